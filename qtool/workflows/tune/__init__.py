"""Searches of a quantization: ranges, corrections, mixed precision."""
