"""qtool makes trained models small and fast without breaking them."""

__version__ = "0.1.0"
