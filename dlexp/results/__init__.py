"""Saved results: `folders`, `store` and `checkpoint` write them, `table` reads them. None knows the engine."""

from dlexp.results.files import ResultsError
from dlexp.results.table import NotMeasuredError, Results, Table, load

__all__ = ["NotMeasuredError", "Results", "ResultsError", "Table", "load"]
