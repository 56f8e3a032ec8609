"""Rows of data drawn by the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from dlexp.types import Hyper, Key, PyTree


class Batch(NamedTuple):
    """What chance decides in one step: the rows of a batch (None for all, in order), and a key for everything else."""

    rows: jax.Array | None
    key: Key

    def of(self, data: PyTree) -> PyTree:
        """Returns these rows of every array of a pytree."""
        return data if self.rows is None else jax.tree.map(lambda array: array[self.rows], data)


def check_batch_size(caller: str, batch_size: int | None, data: PyTree) -> None:
    """Raises ValueError, in the caller's name, unless so many rows can be drawn from every array in `data`."""
    if batch_size is None:
        return
    lengths = sorted({array.shape[0] if array.ndim else 0 for array in jax.tree.leaves(data)})
    if len(lengths) != 1 or not lengths[0]:
        found = f"lengths {lengths}" if lengths else "no arrays"
        raise ValueError(f"{caller}: batches need data of equally many rows, at least one, got {found}")
    if not 1 <= batch_size <= lengths[0]:
        raise ValueError(
            f"{caller}: batch_size must be in [1, {lengths[0]}] (the rows of the data) or None for all of them, "
            f"got {batch_size}"
        )


def draw_batches(batch_size: int | None) -> Callable[[Key, Hyper, PyTree], Batch]:
    """Returns the `draw` of a learner: rows of a batch and a key, or the step's key alone where no rows are drawn."""

    def draw(key: Key, hyper: Hyper, data: PyTree) -> Batch:
        if batch_size is None:
            return Batch(None, key)
        batch_key, key = jax.random.split(key)
        num_rows = len(jax.tree.leaves(data)[0])
        return Batch(jax.random.randint(batch_key, (batch_size,), 0, num_rows), key)

    return draw
