"""TFLite files, which LiteRT runs: a graph becomes a torch program, and litert-torch converts that.

litert-torch keeps the integers of Q/DQ as kernels of int8, and needs no TensorFlow
(https://github.com/google-ai-edge/litert-torch).
"""
