"""The version of qtool, at the bottom so that everything may name it."""

__version__ = "0.1.0"
