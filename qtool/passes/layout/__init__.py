"""Changes the order in which tensors keep their axes, and leaves as few Transpose nodes as that takes."""
