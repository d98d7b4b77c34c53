"""Inserts, removes and reads QuantizeLinear/DequantizeLinear (QDQ) and other stored integers."""
