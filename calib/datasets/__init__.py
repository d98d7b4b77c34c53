"""One kind of data a file; ``qtool.calib.dataset.open_dataset`` picks the kind."""
