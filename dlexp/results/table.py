"""Saved results as tables: a row a run, curves, and arrays labelled by the axes."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlexp.results import columns, folders, store
from dlexp.results.files import ResultsError
from dlexp.results.places import OTHERS, Places
from dlexp.sweep.grids import Block, Grid, Identity

if TYPE_CHECKING:
    import xarray as xr


class NotMeasuredError(ResultsError, ValueError):
    """A sweep, or a value on an axis, that the saved grid does not have: smaller scales leave out much."""


_MAX_LABELLED = 50_000_000  # numbers in one labelled array


@dataclass(frozen=True, eq=False)
class Part:
    """Runs whose metrics have the same shapes: `frame` without metrics, and each metric `[run, evaluation, ...]`."""

    frame: pd.DataFrame
    metrics: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Part:
        """Returns some of the rows, in this order."""
        if np.array_equal(rows, np.arange(len(self.frame))):
            return self
        frame = self.frame.iloc[rows].reset_index(drop=True)
        return Part(frame, {name: values[rows] for name, values in self.metrics.items()})


@dataclass(frozen=True, eq=False)
class Table:
    """The runs of one sweep.

    Attributes:
      name: of the sweep.
      parts: the runs by the shapes of their metrics.
      axes: names of the axes, in the grid's order, without the seed.
      num_steps: optimizer steps of a run.
      num_evals: evaluations after step 0.
    """

    name: str
    parts: tuple[Part, ...]
    axes: tuple[str, ...]
    num_steps: int
    num_evals: int

    def __len__(self) -> int:
        return sum(len(part.frame) for part in self.parts)

    def __repr__(self) -> str:
        return f"Table({self.name}: {len(self)} runs over {', '.join(self.axes)}; {', '.join(self.metrics)})"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a run: run_id, its axes, seed, status, nonfinite_at, and each scalar metric's last value.

        Axes of integers are integers, nullable ones (`Int64`) where some of these runs lack the axis.
        """
        if not self.parts:
            return pd.DataFrame()
        frames = []
        for part in self.parts:
            last = {name: values[:, -1] for name, values in part.metrics.items() if values.ndim == 2}
            frames.append(pd.concat([part.frame, pd.DataFrame(last, index=part.frame.index)], axis=1))
        gaps = {name for name in self.axes if any(name not in frame for frame in frames)}
        whole = pd.concat([_with_nullable(frame, gaps) for frame in frames], ignore_index=True)
        first = [name for name in (OTHERS[0], *self.axes, *OTHERS[1:]) if name in whole]
        return whole[first + [name for name in whole if name not in first]]

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics."""
        return sorted({name for part in self.parts for name in part.metrics})

    def select(self, **values: Any) -> Table:
        """Returns the runs with these values on these axes (`seed` and `status` too); a list means any of them.

        Raises:
          ValueError: on an axis the sweep has not, or (`NotMeasuredError`) where no run is left.
        """
        for name in values:
            if name not in (*self.axes, "seed", "status"):
                raise ValueError(f"select: sweep {self.name} has no axis {name!r}; it has {', '.join(self.axes)}")
        parts = [_select(part, values) for part in self.parts]
        left = tuple(part for part in parts if len(part.frame))
        if not left:
            raise NotMeasuredError(f"select: no run of sweep {self.name} has {values}")
        return Table(self.name, left, self.axes, self.num_steps, self.num_evals)

    def curves(self, metric: str) -> np.ndarray:
        """Returns one metric of all runs, `[run, evaluation, ...]`, rows as in `frame`.

        Raises:
          ValueError: where no run has the metric, or its shape differs between runs.
        """
        arrays = [part.metrics[metric] for part in self.parts if metric in part.metrics]
        if len(arrays) < len(self.parts):
            raise ValueError(f"curves: not every run has {metric!r}; there are {', '.join(self.metrics)}")
        if len({array.shape[1:] for array in arrays}) > 1:
            raise ValueError(f"curves: {metric!r} has several shapes in sweep {self.name}; select one config first")
        return np.concatenate(arrays)

    def steps(self, metric: str) -> np.ndarray:
        """Returns the optimizer step of each evaluation of a metric, `[evaluation]`."""
        interval = self.num_steps // self.num_evals
        num = self.curves(metric).shape[1]
        return interval * (np.arange(num) + (self.num_evals + 1 - num if interval else 0))

    def labelled(self, metric: str) -> xr.DataArray:
        """Returns one metric labelled by its axes: `[*axes, seed, step, ...]`, NaN where the grid has no run.

        An axis that some blocks of the grid lack has an extra label there: NaN among numbers, None among others.
        The array's name has `_` for each `/` of the metric's, which file formats take for folders; the attribute
        `metric` has the metric's own. `dlexp.results.netcdf` writes the array to a file and reads it back equal.

        Raises:
          ValueError: as `curves`, or where the product of the axes is too large; select first.
        """
        import xarray as xr

        values, frame = self.curves(metric), self.frame
        names = [name for name in (*self.axes, "seed") if name in frame]
        labels, places = zip(*(_labels(frame[name]) for name in names), strict=True)
        shape = (*map(len, labels), *values.shape[1:])
        if np.prod([float(n) for n in shape]) > _MAX_LABELLED:
            raise ValueError(f"labelled: {' x '.join(map(str, shape))} numbers are too many; select first")
        array = np.full(shape, np.nan, np.result_type(values.dtype, np.float32))
        array[places] = values
        rest = [f"axis_{index}" for index in range(values.ndim - 2)]
        coords = {**dict(zip(names, labels, strict=True)), "step": self.steps(metric)}
        name, attrs = metric.replace("/", "_"), {"metric": metric}
        return xr.DataArray(array, dims=[*names, "step", *rest], coords=coords, name=name, attrs=attrs)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes `frame` as CSV."""
        self.frame.to_csv(path, index=False)


@dataclass(frozen=True, eq=False)
class Results(Mapping[str, Table]):
    """All saved sweeps of one experiment at one scale: a mapping from the sweep's name to its table.

    Attributes:
      experiment: its name.
      scale: smoke, cpu or gpu.
      folder: where they are.
      tables: the sweeps.
      manifest: what else is known of them.
    """

    experiment: str
    scale: str
    folder: Path
    tables: Mapping[str, Table]
    manifest: Mapping[str, Any]

    def __getitem__(self, name: str) -> Table:
        """Returns a sweep's table."""
        if name not in self.tables:
            known = ", ".join(self.tables) or "none"
            raise NotMeasuredError(f"{self.folder} has no finished run of sweep {name!r}; there are {known}")
        return self.tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tables

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __repr__(self) -> str:
        sweeps = ", ".join(f"{name}: {len(table)} runs" for name, table in self.tables.items())
        return f"Results({self.experiment}, {self.scale}, {sweeps})"


def load(folder: str | os.PathLike) -> Results:
    """Returns the runs of the current grid saved in `DIR/section/name/scale`; others in the folder are left out.

    Raises:
      ResultsError: where there are none, a file is damaged, or one run was saved with two values.
    """
    folder = Path(folder)
    manifest = folders.read_manifest(folder)
    if manifest is None:
        raise ResultsError(f"{folder} holds no results; train them first")
    tables = {}
    for name, declared in manifest["sweeps"].items():
        identity = Identity(manifest["experiment"], manifest["version"], name, declared["num_steps"])
        table = _table(folder / name, identity, grid_of(declared["blocks"]), declared["num_evals"])
        if len(table):
            tables[name] = table
    return Results(manifest["experiment"], manifest["scale"], folder, tables, manifest)


def describe(grid: Grid) -> list[dict[str, Any]]:
    """Returns a grid's blocks as JSON can hold them."""
    return [{key: _listed(value) for key, value in block._asdict().items()} for block in grid.blocks]


def _listed(value: Any) -> Any:
    return {key: list(entry) for key, entry in value.items()} if isinstance(value, Mapping) else list(value)


def grid_of(blocks: list[dict[str, Any]]) -> Grid:
    """Returns the grid that `describe` was given."""

    def block(described: dict[str, Any]) -> Block:
        config, hyper = (
            {name: tuple(values) for name, values in described[kind].items()} for kind in ("config", "hyper")
        )
        return Block(config, hyper, tuple(described["seeds"]))

    return Grid(tuple(map(block, blocks)))


def _table(folder: Path, identity: Identity, grid: Grid, num_evals: int) -> Table:
    types = columns.of_grid(grid)
    places = Places(grid)
    parts = []
    for path, rows, about in store.chunks(folder):
        store.check_identity(path, about, identity.experiment, identity.version, identity.sweep)
        if about["identity"]["num_steps"] == identity.num_steps:
            parts.append(_part(rows, about, places, types))
    merged = _merged([part for part in parts if len(part.frame)], folder)
    return Table(identity.sweep, merged, tuple(types), identity.num_steps, num_evals)


def _part(rows: Any, about: Mapping[str, Any], places: Places, types: Mapping[str, Any]) -> Part:
    metrics = {name: store.to_numpy(rows[name]) for name in about["metrics"]}
    frame = rows.drop_columns(list(metrics)).to_pandas()
    place = places.of(frame, about["config"])
    part = Part(frame.assign(place=place), metrics).take(np.flatnonzero(place >= 0))
    integers = [name for name in frame if name in types and str(types[name]) == "int64"]
    return Part(part.frame.astype(dict.fromkeys(integers, np.int64)), part.metrics)


def _merged(parts: list[Part], folder: Path) -> tuple[Part, ...]:
    """Parts with equal columns and shapes become one, in the grid's order, each run once."""
    alike: dict[Any, list[Part]] = {}
    for part in parts:
        shapes = tuple(sorted((name, values.shape[1:]) for name, values in part.metrics.items()))
        alike.setdefault((tuple(part.frame.columns), shapes), []).append(part)
    merged = []
    for members in alike.values():
        members.sort(key=lambda part: part.frame["place"].iloc[0])
        frame = pd.concat([part.frame for part in members], ignore_index=True)
        order = np.argsort(frame["place"].to_numpy(), kind="stable")
        metrics = {name: _in_order(members, name, order) for name in list(members[0].metrics)}
        merged.append(_each_once(frame.iloc[order].reset_index(drop=True), metrics, folder))
    merged.sort(key=lambda part: part.frame["place"].iloc[0])
    return tuple(Part(part.frame.drop(columns="place"), part.metrics) for part in merged)


def _in_order(parts: list[Part], metric: str, order: np.ndarray) -> np.ndarray:
    """One metric of all parts; they give it away, so that no more than one metric is in memory twice."""
    joined = np.concatenate([part.metrics.pop(metric) for part in parts])
    return joined if np.array_equal(order, np.arange(len(order))) else joined[order]


def _each_once(frame: pd.DataFrame, metrics: dict[str, np.ndarray], folder: Path) -> Part:
    repeated = np.flatnonzero(frame["place"].duplicated().to_numpy())
    for row in repeated:
        if not all(np.array_equal(v[row], v[row - 1], equal_nan=True) for v in metrics.values()):
            name = frame["run_id"].iloc[row]
            raise ResultsError(f"{folder} holds run {name} twice with different values; train again with --fresh")
    return Part(frame, metrics).take(np.setdiff1d(np.arange(len(frame)), repeated))


def _select(part: Part, values: Mapping[str, Any]) -> Part:
    keep = np.ones(len(part.frame), bool)
    for name, value in values.items():
        wanted = list(value) if isinstance(value, (list, tuple, set, np.ndarray)) else [value]
        if name in part.frame:
            column = part.frame[name]
            keep &= _close(column, wanted) if column.dtype.kind in "fiu" else column.isin(wanted).to_numpy()
        else:
            keep &= any(_is_missing(value) for value in wanted)
    return part.take(np.flatnonzero(keep))


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _close(column: pd.Series, wanted: list[Any]) -> np.ndarray:
    """Equal to about 8 significant digits: a rate that was computed finds the one that was declared.

    Among integers a wanted one is equal to itself alone: seeds may have ten digits.
    """
    if column.dtype.kind in "iu":
        return column.isin([_whole(value) for value in wanted]).to_numpy()
    numbers = np.array([np.nan if value is None else value for value in wanted], float)
    return np.isclose(column.to_numpy()[:, None], numbers, rtol=1e-8, atol=0).any(axis=1)


def _whole(value: Any) -> Any:
    """The integer next to a float that is meant to be one."""
    is_near = isinstance(value, float) and math.isfinite(value) and math.isclose(value, round(value), rel_tol=1e-8)
    return round(value) if is_near else value


def _with_nullable(frame: pd.DataFrame, gaps: Collection[str]) -> pd.DataFrame:
    integers = [name for name in frame if name in gaps and frame[name].dtype.kind in "iu"]
    return frame.astype(dict.fromkeys(integers, "Int64"))


def _labels(column: pd.Series) -> tuple[pd.Index, np.ndarray]:
    """The distinct values of a column in order (numbers sorted), and each row's place among them.

    An index of a stated type: pandas 3 would make NaN of a None among texts.
    """
    is_number = pd.api.types.is_numeric_dtype(column)
    codes, values = pd.factorize(column, sort=is_number, use_na_sentinel=True)
    labels = values.tolist()
    if (codes < 0).any():
        codes = np.where(codes < 0, len(labels), codes)
        labels.append(np.nan if is_number else None)
    return pd.Index(labels, dtype=None if is_number else object), codes
