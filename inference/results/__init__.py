"""What prediction writes beside the masks."""
