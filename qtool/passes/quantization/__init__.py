"""Passes that get a float graph ready to be quantized."""
