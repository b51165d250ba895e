"""Temperature scaling and abstention."""
