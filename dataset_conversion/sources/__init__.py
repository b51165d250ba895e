"""One module a source, with its original layout and its quirks."""
