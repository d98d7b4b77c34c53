"""Fake quantization of a graph that stays open, and the noise that it makes in the outputs."""
