"""Runs independent tasks in this process, or in those of a cluster."""
