"""How good, how fast, how large: one measurement a file."""
