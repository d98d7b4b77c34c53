"""TensorRT on NVIDIA GPUs: Q/DQ before what layers read; its own compiler chooses kernels."""
