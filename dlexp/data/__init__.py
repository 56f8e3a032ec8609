"""Data sets as explicit splits of host arrays, standardised by what the training split alone tells."""

from dlexp.data.splits import Dataset, Split, standardise

__all__ = ["Dataset", "Split", "standardise"]
