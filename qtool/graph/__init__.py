"""What every pass needs of a graph: constants, names, dimensions, views, rewiring."""
