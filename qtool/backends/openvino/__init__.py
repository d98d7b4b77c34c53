"""OpenVINO on Intel CPUs, GPUs and NPUs: Q/DQ on the inputs of layers; its own compiler chooses kernels."""
