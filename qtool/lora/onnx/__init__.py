"""Finds the weights of a checkpoint in an ONNX graph, and changes them there."""
