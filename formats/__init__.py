"""Reads and writes model files; nothing here quantizes."""
