"""Saved results: `store` writes them, `table` reads them. Neither knows a model or the engine."""

from dlexp.results.store import ResultsError
from dlexp.results.table import Results, Table, load

__all__ = ["Results", "ResultsError", "Table", "load"]
