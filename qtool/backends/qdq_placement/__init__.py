"""Places Q/DQ by operator, for runtimes whose own compiler chooses kernels."""
