"""Backends, one folder per runtime: QDQ placement, integer operators, and how its models run and are verified."""
