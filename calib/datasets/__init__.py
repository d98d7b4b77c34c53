"""The kinds of calibration data, one per file; ``qtool.calib.dataset.open_dataset`` selects the kind."""
