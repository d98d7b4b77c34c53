"""Which tensors get Q/DQ so that a runtime runs integers: one runtime a file."""
