"""Which tensors of a base an adapter changes, and the sum of all changes of one tensor."""
