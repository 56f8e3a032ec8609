"""From a declared grid to finished runs: `grid` says what, `plan` says how, `engine` does it."""

from dlexp.sweep.grids import Grid, geomspace, grid

__all__ = ["Grid", "geomspace", "grid"]
