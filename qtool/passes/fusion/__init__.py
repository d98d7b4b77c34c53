"""Recognizes functions that exporters spell out: attention, rotary embeddings, normalizations, activations."""
