"""Model folders: found, checked, loaded, installed."""
