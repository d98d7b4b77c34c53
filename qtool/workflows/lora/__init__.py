"""Merges adapters into weights and graphs."""
