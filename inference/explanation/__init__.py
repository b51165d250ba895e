"""Why a class was named."""
