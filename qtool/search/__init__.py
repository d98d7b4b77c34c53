"""Decisions by measurement: what a change to the quantized model does to the outputs, and what it costs in time."""
