"""Where saved runs stand in a grid: found from their values, a column at a time, without making the grid's runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dlexp.sweep.axes import number_text, typed_text
from dlexp.sweep.grids import Block, Grid

OTHERS = ("run_id", "seed", "status", "nonfinite_at")  # columns of every chunk that are no axes


class Places:
    """The order of a grid's runs as `Grid.families` and `Grid.runs` have it: a later run has a larger place."""

    def __init__(self, grid: Grid) -> None:
        """Looks at the axes of the grid alone."""
        self._blocks = [_Members(block) for block in grid.blocks]
        self._ranks = {
            _family_key(family.config, family.hyper_names): rank for rank, family in enumerate(grid.families())
        }
        self._stride = sum(block.num_runs for block in self._blocks)

    def of(self, rows: pd.DataFrame, config: Mapping[str, Any]) -> np.ndarray:
        """Returns the place of each row, `[row]`, -1 where the grid has no such run.

        Args:
          rows: columns of the swept axes and of `OTHERS`, and perhaps of the config.
          config: of all these rows.
        """
        swept = sorted(name for name in rows if name not in config and name not in OTHERS)
        places = np.full(len(rows), -1, np.int64)
        rank = self._ranks.get(_family_key(config, swept))
        if rank is None:
            return places
        start = (rank + 1) * self._stride
        for block in reversed(self._blocks):  # a run in several blocks stands in the first
            start -= block.num_runs
            if block.has(config, swept):
                index = block.index(rows)
                places = np.where(index >= 0, start + index, places)
        return places


class _Members:
    """The values of a block's axes and their places there."""

    def __init__(self, block: Block) -> None:
        self._config = {name: set(map(typed_text, values)) for name, values in block.config.items()}
        self._hyper = {name: _numbered(map(number_text, values)) for name, values in block.hyper.items()}
        self._seeds = np.array(block.seeds, np.int64)
        self._seed_order = np.argsort(self._seeds, kind="stable")
        self.num_runs = math.prod(map(len, self._hyper.values())) * len(self._seeds)

    def has(self, config: Mapping[str, Any], swept: list[str]) -> bool:
        return (
            sorted(self._hyper) == swept
            and self._config.keys() == config.keys()
            and all(typed_text(value) in self._config[name] for name, value in config.items())
        )

    def index(self, rows: pd.DataFrame) -> np.ndarray:
        """The place of each row in the product of the swept axes and the seeds, -1 where a value is none of them."""
        index, is_here = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for name, known in self._hyper.items():
            codes = _codes(rows[name].to_numpy(), known)
            index, is_here = index * len(known) + codes, is_here & (codes >= 0)
        seeds = rows["seed"].to_numpy()
        found = np.searchsorted(self._seeds, seeds, sorter=self._seed_order)
        codes = self._seed_order[np.minimum(found, len(self._seeds) - 1)]
        is_here &= self._seeds[codes] == seeds
        return np.where(is_here, index * len(self._seeds) + codes, -1)


def _codes(values: np.ndarray, known: Mapping[str, int]) -> np.ndarray:
    distinct, inverse = np.unique(values, return_inverse=True)
    return np.array([known.get(number_text(value), -1) for value in distinct.tolist()], np.int64)[inverse]


def _numbered(keys: Iterable[str]) -> dict[str, int]:
    return {key: place for place, key in enumerate(keys)}


def _family_key(config: Mapping[str, Any], swept: Iterable[str]) -> Hashable:
    return tuple(sorted(swept)), tuple(sorted((name, *typed_text(value)) for name, value in config.items()))
