"""What a user asks for in place of an experiment's own sweeps: other seeds, lengths, values, fewer sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlexp.sweep import grids
from dlexp.sweep.axes import parse_values
from dlexp.types import Sweep


def apply(
    declared: Mapping[str, Sweep],
    *,
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
) -> dict[str, Sweep]:
    """Returns the sweeps with everything that was asked for put into them.

    Args:
      declared: the experiment's own.
      seeds: of every point.
      num_steps: of every run that is trained at all.
      axes: name -> values, or their text, in every sweep that has the axis.
      only: names of the sweeps to keep (default all).

    Raises:
      ValueError: where a sweep, axis or value does not exist or fit.
    """
    if not declared:
        raise ValueError("the experiment has no sweeps at this scale")
    for name in only:
        if name not in declared:
            raise ValueError(f"sweep must be one of {', '.join(declared)}, got {name!r}")
    sweeps = {name: sweep for name, sweep in declared.items() if not only or name in only}
    if seeds is not None:
        if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
            raise ValueError(f"seeds must be an integer of at least 1, got {seeds!r}")
        if "seed" in (axes or {}):
            raise ValueError("seeds and the axis seed say the same thing twice; give one of them")
        sweeps = {name: _with_axis(sweep, "seed", seeds) for name, sweep in sweeps.items()}
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        together = math.lcm(*(sweep.num_evals for sweep in sweeps.values() if sweep.num_steps))
        if num_steps % together:
            raise ValueError(
                f"num_steps must be a multiple of {together} for the evaluations of {', '.join(sweeps)}, got "
                f"{num_steps}; take {-(-num_steps // together) * together}, or change one sweep alone with --sweep=NAME"
            )
        sweeps = {name: _with_num_steps(sweep, num_steps) for name, sweep in sweeps.items()}
    for name, values in (axes or {}).items():
        sweeps = _with_axis_everywhere(sweeps, name, values)
    return sweeps


def _with_num_steps(sweep: Sweep, num_steps: int) -> Sweep:
    return sweep._replace(num_steps=num_steps) if sweep.num_steps else sweep


def _with_axis(sweep: Sweep, name: str, values: Sequence[Any] | int) -> Sweep:
    return sweep._replace(grid=grids.override(sweep.grid, name, values))


def _with_axis_everywhere(sweeps: dict[str, Sweep], name: str, values: Sequence[Any] | str) -> dict[str, Sweep]:
    holders = [each for each, sweep in sweeps.items() if name in sweep.grid.names]
    if not holders:
        known = dict.fromkeys(axis for sweep in sweeps.values() for axis in sweep.grid.names)
        raise ValueError(f"there is no axis {name!r}; the axes are {', '.join(known)}")
    changed = dict(sweeps)
    for each in holders:
        grid = sweeps[each].grid
        like = (0.0,) if name in grid.hyper_names else grid.axes[name]
        parsed = parse_values(values, like) if isinstance(values, str) else values
        changed[each] = _with_axis(sweeps[each], name, parsed)
    return changed
