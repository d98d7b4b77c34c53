"""How float weights become integers: one algorithm a file."""
