"""Divides a graph into files that run one after the other."""
