"""What the commands show, for people and as JSON."""
