"""Files that hold others: zip files, and pickles."""
