"""Finds the order in which nodes need the least memory."""
