"""ONNX graphs: files, outlines, external data, checks, types and shapes."""
