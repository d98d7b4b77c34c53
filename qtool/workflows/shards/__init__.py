"""Workflows over parts of the data, and over the machines of a cluster."""
