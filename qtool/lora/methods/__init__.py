"""Adapter methods by PEFT's names, one per file: how each changes a weight."""
