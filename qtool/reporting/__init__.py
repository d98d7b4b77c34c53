"""Reports on quantized models compared with their float model, and their output formats."""
