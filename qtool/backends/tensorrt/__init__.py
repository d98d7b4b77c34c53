"""TensorRT on NVIDIA GPUs: Q/DQ on the inputs of layers; its own compiler chooses kernels."""
