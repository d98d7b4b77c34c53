"""Weights as integers in blocks of their inputs."""
