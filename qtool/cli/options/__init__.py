"""The options of the commands: names, help texts, types."""
