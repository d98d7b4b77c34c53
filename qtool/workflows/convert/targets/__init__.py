"""Formats of other runtimes, each written by that runtime's own library."""
