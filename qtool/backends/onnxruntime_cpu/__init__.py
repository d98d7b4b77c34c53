"""onnxruntime's CPU provider: QDQ placement, integer kernels, 16-bit sums, kernel times, this machine."""
