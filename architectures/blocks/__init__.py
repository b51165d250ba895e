"""Building blocks of the papers' networks, 2-D and 3-D."""
