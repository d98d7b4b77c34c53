"""onnxruntime's CPU provider: which nodes run on integers, 16-bit sums, kernels' times, this machine."""
