"""Qualcomm NPUs through QNN: Q/DQ around every tensor; its own compiler chooses kernels."""
