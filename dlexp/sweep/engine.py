"""The loops over groups, chunks and segments.

The engine knows no model, no data set and no file: it takes a plan, yields what happens, and hands over each
finished chunk of runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Run
from dlexp.sweep.machine import num_cores
from dlexp.sweep.plan import Group, Plan
from dlexp.sweep.programs import Carry, Programs, compile_once_in, lower
from dlexp.types import Learner, PyTree

OK, NONFINITE, STOPPED = "ok", "nonfinite", "stopped"
SEGMENT_SECONDS = 1.0  # between two looks at the progress; the steps of a call are an argument of the program
_LOOK_AHEAD = 8  # groups compiled before the first of them is trained


class Compiling(NamedTuple):
    """A group waits for its programs."""

    group: int


class Advanced(NamedTuple):
    """Runs of a chunk made some steps.

    Attributes:
      run_steps: steps made, summed over runs; padding does not count.
      num_nonfinite: runs of the chunk that have left the finite numbers so far.
    """

    run_steps: int
    num_nonfinite: int


class Finished(NamedTuple):
    """One chunk of runs.

    Attributes:
      group: place of its group in the plan.
      runs: `(run_id, run)` of each row.
      status: ok, nonfinite or stopped.
      nonfinite_at: first non-finite step, -1 where there is none; every metric is NaN from there on.
      metrics: name -> `[run, evaluation, ...]`; those of `evaluate` begin at step 0, those of `update` are means
        over the steps since the last evaluation.
      seconds: of training, compilation not counted.
      width: runs vmapped on each device.
    """

    group: int
    runs: tuple[tuple[str, Run], ...]
    status: tuple[str, ...]
    nonfinite_at: np.ndarray
    metrics: Mapping[str, np.ndarray]
    seconds: float
    width: int


Event = Compiling | Advanced | Finished


def train(plan: Plan, devices: list[jax.Device], done: Container[str] = ()) -> Iterator[Event]:
    """Yields what happens while every run of the plan that is not done is trained.

    Groups are compiled side by side while others train; equal programs are compiled once.

    Raises:
      ValueError: where a learner's metrics are named badly.
    """
    mesh = jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)
    place_data = _cached_placement(NamedSharding(mesh, PartitionSpec()))
    pool = ThreadPoolExecutor(num_cores())
    try:
        ready = _look_ahead(_prepared(plan, mesh, done, compile_once_in(pool)), _LOOK_AHEAD)
        for index, group, futures, missing in ready:
            if not all(future.done() for future in futures):
                yield Compiling(index)
            programs = Programs(*(future.result() for future in futures))
            data = place_data(group.learner.data)
            pace, over_runs = _Pace(), NamedSharding(mesh, PartitionSpec("run"))
            for runs in _batched(missing, group.width * len(devices)):
                chunk = _Chunk(index, group, runs, plan.sweep.num_steps, plan.sweep.num_evals)
                yield from _train_chunk(chunk, programs, data, over_runs, pace)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Chunk(NamedTuple):
    group_index: int
    group: Group
    runs: tuple[tuple[str, Run], ...]
    num_steps: int
    num_evals: int


def _prepared(
    plan: Plan, mesh: jax.sharding.Mesh, done: Container[str], compile_once: Callable[[Any], Future]
) -> Iterator[tuple[int, Group, list[Future], Iterator[tuple[str, Run]]]]:
    """Lowers each group that has runs to train and sets its programs compiling."""
    for index, group in enumerate(plan.groups):
        missing = (entry for entry in plan.runs(group) if entry[0] not in done)
        first = next(missing, None)
        if first is not None:
            yield index, group, list(map(compile_once, lower(group, mesh))), _chained(first, missing)


class _Pace:
    """How many steps the next call makes: about a second's worth, at most ten times as many as the last."""

    def __init__(self) -> None:
        self.steps = 1

    def note(self, steps: int, seconds: float) -> None:
        possible = int(steps * SEGMENT_SECONDS / max(seconds, 1e-6))
        self.steps = max(1, min(10 * max(steps, self.steps), possible))


def _train_chunk(
    chunk: _Chunk, programs: Programs, data: PyTree, sharding: NamedSharding, pace: _Pace
) -> Iterator[Event]:
    began = time.perf_counter()
    num_rows = chunk.group.width * sharding.mesh.size
    seeds, hyper = _arguments(chunk.group.learner, chunk.runs, num_rows, sharding)
    carry = programs.initialize(seeds, hyper, data)
    recorder = _Recorder(chunk)
    recorder.add(0, programs.evaluate(seeds, hyper, data, carry), carry)
    interval = chunk.num_steps // chunk.num_evals
    start = 0
    while start < chunk.num_steps and programs.segment is not None and recorder.any_alive:
        fresh, rest = np.bool_(start % interval == 0), interval - start % interval
        stop = start + min(pace.steps, rest)
        called = time.perf_counter()
        carry = programs.segment(seeds, hyper, data, carry, np.int32(start), np.int32(stop), fresh)
        measured = programs.evaluate(seeds, hyper, data, carry) if stop % interval == 0 else None
        recorder.look(carry)
        pace.note(stop - start, time.perf_counter() - called)
        if measured is not None:
            recorder.add(stop, measured, carry)
        yield Advanced((stop - start) * len(chunk.runs), recorder.num_nonfinite)
        start = stop
    yield recorder.finished(time.perf_counter() - began, carry)


class _Recorder:
    """Collects the evaluations of one chunk on the host and notes which runs left the finite numbers."""

    def __init__(self, chunk: _Chunk) -> None:
        self._chunk = chunk
        self._num_runs = len(chunk.runs)
        self._nonfinite_at = np.full(self._num_runs, -1, np.int32)
        self._rows: dict[str, list[np.ndarray]] = {}

    @property
    def any_alive(self) -> bool:
        return bool((self._nonfinite_at < 0).any())

    @property
    def num_nonfinite(self) -> int:
        return int((self._nonfinite_at >= 0).sum())

    def look(self, carry: Carry) -> None:
        seen = np.asarray(carry.nonfinite_at)[: self._num_runs]
        self._nonfinite_at = np.where(self._nonfinite_at < 0, seen, self._nonfinite_at)

    def add(self, step: int, metrics: Mapping[str, Any], carry: Carry) -> None:
        if step:
            interval = self._chunk.num_steps // self._chunk.num_evals
            metrics = {
                **metrics,
                **{name: np.asarray(total) / interval for name, total in carry.sums.items()},
            }
        finite = np.ones(self._num_runs, bool)
        for name, values in metrics.items():
            values = np.asarray(values)[: self._num_runs]
            self._rows.setdefault(name, []).append(values)
            finite &= np.isfinite(values.reshape(self._num_runs, -1)).all(axis=1)
        self._nonfinite_at = np.where((self._nonfinite_at < 0) & ~finite, step, self._nonfinite_at)

    def finished(self, seconds: float, carry: Carry) -> Finished:
        chunk = self._chunk
        interval = chunk.num_steps // chunk.num_evals
        steps = interval * np.arange(chunk.num_evals + 1 if interval else 1)
        for name, total in carry.sums.items():
            self._rows.setdefault(name, [])
            self._rows[name].insert(0, np.full(total.shape, np.nan, total.dtype)[: self._num_runs])
        metrics = {name: self._curve(rows, steps) for name, rows in self._rows.items()}
        for name in carry.sums:
            metrics[name] = metrics[name][:, 1:]
        status = tuple(OK if at < 0 else NONFINITE for at in self._nonfinite_at)
        return Finished(chunk.group_index, chunk.runs, status, self._nonfinite_at, metrics, seconds, chunk.group.width)

    def _curve(self, rows: list[np.ndarray], steps: np.ndarray) -> np.ndarray:
        """`[run, evaluation, ...]`, NaN from a run's first non-finite step on."""
        curve = np.full((self._num_runs, len(steps), *rows[0].shape[1:]), np.nan, rows[0].dtype)
        curve[:, : len(rows)] = np.stack(rows, axis=1)
        curve[(self._nonfinite_at[:, None] >= 0) & (steps >= self._nonfinite_at[:, None])] = np.nan
        return curve


def _arguments(
    learner: Learner, runs: tuple[tuple[str, Run], ...], num_rows: int, sharding: NamedSharding
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Seeds and swept values of a chunk, padded to the full width by repeating the last run."""
    padded = [run for _, run in runs] + [runs[-1][1]] * (num_rows - len(runs))
    seeds = np.array([run.seed for run in padded], np.uint32)
    points = [planning.full_hyper(learner, run) for run in padded]
    hyper = {
        name: np.array([point[name] for point in points], planning.hyper_dtype(learner, name))
        for name in sorted(learner.hyper)
    }
    return jax.device_put((seeds, hyper), sharding)


def _cached_placement(sharding: NamedSharding) -> Callable[[PyTree], PyTree]:
    """Puts data on the devices once as long as consecutive groups share the very arrays."""
    held: list[tuple[list[Any], PyTree]] = []

    def place(data: PyTree) -> PyTree:
        leaves = jax.tree.leaves(data)
        if (
            not held
            or len(held[0][0]) != len(leaves)
            or any(a is not b for a, b in zip(held[0][0], leaves, strict=True))
        ):
            held[:] = [(leaves, jax.device_put(data, sharding))]
        return held[0][1]

    return place


def _look_ahead(items: Iterator[Any], distance: int) -> Iterator[Any]:
    queue = deque(islice(items, distance))
    while queue:
        yield queue.popleft()
        queue.extend(islice(items, 1))


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
