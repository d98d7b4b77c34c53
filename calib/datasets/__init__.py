"""One kind of data a file; ``calib.dataset.open_dataset`` picks the kind."""
