"""Measurements of models: accuracy, speed, memory and size; one a file."""
