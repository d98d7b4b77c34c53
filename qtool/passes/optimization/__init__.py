"""Passes that make a float graph smaller and faster."""
