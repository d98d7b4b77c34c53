"""torch's formats: checkpoints, pickles, zip files, exported and scripted programs."""
