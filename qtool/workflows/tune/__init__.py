"""What a quantization searches for: ranges, corrections, layers to keep float."""
