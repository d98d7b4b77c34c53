"""Merges adapters into ONNX graphs: finds the weights of a checkpoint there and changes them."""
