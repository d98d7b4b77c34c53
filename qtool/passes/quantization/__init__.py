"""Passes that prepare a float graph for quantization."""
