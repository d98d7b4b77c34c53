"""What torch stores: checkpoints, pickles, zip files, exported and scripted programs."""
