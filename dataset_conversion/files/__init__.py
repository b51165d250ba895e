"""Reading and writing that survives damaged input and killed processes."""
