"""What every pass needs of a graph: constants, names, lengths, views, rewiring."""
