"""Searches of weight-only quantization: methods, levels of products, bits."""
