"""Data sets as explicit splits of host arrays."""

from dlexp.data.splits import Dataset, Split, standardise

__all__ = ["Dataset", "Split", "standardise"]
