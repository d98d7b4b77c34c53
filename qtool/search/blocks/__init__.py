"""Rounds the weights of a weight-only plan in blocks, with the data that a model computes with."""
