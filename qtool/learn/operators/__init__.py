"""What operators of ONNX compute, in torch, with gradients."""
