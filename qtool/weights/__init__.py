"""Weight quantization: round to nearest, GPTQ, GPTAQ, SmoothQuant, cross-layer equalization, one algorithm a file."""
