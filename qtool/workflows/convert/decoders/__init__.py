"""Converts decoders of language models."""
