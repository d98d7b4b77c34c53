"""Static analysis of a graph's costs: tensor lifetimes, multiply-adds, integer regions."""
