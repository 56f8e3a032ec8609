"""A deep learning lesson turned into measurements: grids of networks trained as one compiled program."""

__version__ = "0.1.0"
