"""Reads adapters such as LoRA, and merges them into weights and graphs."""
