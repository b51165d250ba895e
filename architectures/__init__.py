"""Networks and their building blocks; depends on torch and dynamic-network-architectures only."""
