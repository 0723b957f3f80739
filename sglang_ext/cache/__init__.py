"""The tiered radix cache: L1 device memory, L2 host memory, L3 disk."""
