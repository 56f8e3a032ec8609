"""From a declared grid to finished runs: `grid` says what, `plan` says how, `engine` does it."""

from dlexp.sweep.axes import geomspace
from dlexp.sweep.grids import Grid, grid

__all__ = ["Grid", "geomspace", "grid"]
