"""Language models that decode with a cache of keys and values."""
