"""Converts models to ONNX and between opsets and float types, and checks the result."""
