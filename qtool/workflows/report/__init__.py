"""Compares quantized models with their float model."""
