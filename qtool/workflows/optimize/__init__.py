"""Rewrites and splits graphs without changing what they compute."""
