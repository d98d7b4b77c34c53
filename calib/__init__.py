"""From data to scales: statistics, ranges and affine parameters, on numpy alone."""
