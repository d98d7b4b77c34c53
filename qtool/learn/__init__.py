"""Learns by gradients what rounding lost."""
