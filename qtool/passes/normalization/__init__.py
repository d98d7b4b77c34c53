"""Brings graphs of every exporter and opset into one form."""
