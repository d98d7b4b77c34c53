"""Determines what a graph costs as it runs: tensors and how long they live, multiplications, borders of integers."""
