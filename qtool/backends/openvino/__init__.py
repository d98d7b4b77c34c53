"""OpenVINO on Intel CPUs, GPUs and NPUs: Q/DQ before what layers read; its own compiler chooses kernels."""
