"""Layout passes: change the axis order of tensors with as few Transpose nodes as possible."""
