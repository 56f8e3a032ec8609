"""The three sizes of an experiment: `cpu` is declared, `smoke` and `gpu` follow from it by a stated rule.

- `smoke`: two seeds, the two ends of each axis, 20 steps, and at most three groups: one of each sweep, then the
  second of each. It shows that everything runs.
- `gpu`: eight times as many seeds, from the first one on, and three steps in place of one on every swept axis of
  five or more values that lie a constant factor apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dlexp.sweep import axes, grids
from dlexp.sweep.grids import Block, Grid
from dlexp.types import Experiment, Sweep

SCALES = ("smoke", "cpu", "gpu")
SMOKE_STEPS, SMOKE_GROUPS, SMOKE_SEEDS = 20, 3, 2
GPU_SEEDS, GPU_REFINEMENT, REFINED_FROM = 8, 3, 5


def sweeps(experiment: Experiment, scale: str) -> Mapping[str, Sweep]:
    """Returns an experiment's sweeps at a scale.

    Raises:
      ValueError: on a scale that is none of the three.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if inspect.signature(experiment.sweeps).parameters:
        return experiment.sweeps(scale)
    declared = experiment.sweeps()
    if scale == "smoke":
        return smoke(declared)
    return gpu(declared) if scale == "gpu" else declared


def smoke(declared: Mapping[str, Sweep]) -> dict[str, Sweep]:
    """Returns the smallest sweeps that still go through everything; those beyond the third group are left out."""
    blocks = {name: [*_single_groups(sweep.grid)] for name, sweep in declared.items()}
    rounds = max(map(len, blocks.values()), default=0)
    order = [(name, place) for place in range(rounds) for name, own in blocks.items() if place < len(own)]
    taken = order[:SMOKE_GROUPS]
    return {
        name: _shortened(sweep._replace(grid=Grid(tuple(blocks[name][place] for each, place in taken if each == name))))
        for name, sweep in declared.items()
        if any(each == name for each, _ in taken)
    }


def gpu(declared: Mapping[str, Sweep]) -> dict[str, Sweep]:
    """Returns the sweeps with more seeds and finer swept axes."""
    return {
        name: sweep._replace(grid=Grid(tuple(map(_refined, sweep.grid.blocks)))) for name, sweep in declared.items()
    }


def _single_groups(grid: Grid) -> Iterator[Block]:
    """One block for each of a grid's groups, with the ends of every swept axis and two seeds."""
    for group in grid.families():
        having = next(block for block in grid.blocks if _stands_in(group, block))
        hyper = {name: tuple(dict.fromkeys((values[0], values[-1]))) for name, values in having.hyper.items()}
        config = {name: (value,) for name, value in group.config.items()}
        yield Block(config, hyper, tuple(range(SMOKE_SEEDS)))


def _stands_in(group: grids.GroupKey, block: Block) -> bool:
    same_names = tuple(sorted(block.hyper)) == group.hyper_names and block.config.keys() == group.config.keys()
    return same_names and all(value in block.config[name] for name, value in group.config.items())


def _shortened(sweep: Sweep) -> Sweep:
    if not sweep.num_steps:
        return sweep
    num_steps = min(SMOKE_STEPS, sweep.num_steps)
    num_evals = max(n for n in range(1, min(sweep.num_evals, num_steps) + 1) if num_steps % n == 0)
    return sweep._replace(num_steps=num_steps, num_evals=num_evals)


def _refined(block: Block) -> Block:
    first, num_seeds = min(block.seeds), len(block.seeds)
    hyper = {name: _refined_axis(values) for name, values in block.hyper.items()}
    return Block(block.config, hyper, tuple(range(first, first + GPU_SEEDS * num_seeds)))


def _refined_axis(values: Sequence[float]) -> tuple[float, ...]:
    """Three steps for one, where the values lie a constant factor apart; they stay among them."""
    numbers = np.asarray(values, float)
    if len(numbers) < REFINED_FROM or (numbers <= 0).any():
        return tuple(values)
    logs = np.log(numbers)
    if not np.allclose(np.diff(logs), logs[1] - logs[0], rtol=1e-3):
        return tuple(values)
    between = axes.geomspace(float(numbers[0]), float(numbers[-1]), GPU_REFINEMENT * (len(numbers) - 1) + 1)
    return tuple(values[i // GPU_REFINEMENT] if i % GPU_REFINEMENT == 0 else x for i, x in enumerate(between))
