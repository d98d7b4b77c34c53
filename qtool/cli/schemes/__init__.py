"""What ``qtool quantize`` runs and shows for the schemes besides the static one."""
