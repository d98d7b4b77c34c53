"""QDQ placement by operator: which tensors get QuantizeLinear and DequantizeLinear."""
