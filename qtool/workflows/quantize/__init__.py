"""Calibrates, quantizes and dequantizes models, and checks the result."""
