"""Learning on the outputs of the float model."""
