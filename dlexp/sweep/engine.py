"""The compiled programs and the loops over chunks and segments.

The one place where runs are vmapped. It knows no model, no data set and no file: it takes a plan, yields what
happens, and hands over each finished chunk of runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Run
from dlexp.sweep.machine import num_cores
from dlexp.sweep.plan import Group, Plan
from dlexp.types import Key, Learner, PyTree

OK, NONFINITE, STOPPED = "ok", "nonfinite", "stopped"
SEGMENT_SECONDS = 1.0  # between two looks at the progress; the steps of a call are an argument of the program
_INIT, _UPDATE, _EVALUATE = range(3)  # purposes folded into a run's key
_LOOK_AHEAD = 8  # groups compiled before the first of them is trained


class Carry(NamedTuple):
    """What a run takes from one call to the next.

    Attributes:
      state: the learner's.
      nonfinite_at: first step with a non-finite metric, -1 as long as there is none.
      sums: the update's metrics, summed since the last evaluation.
    """

    state: PyTree
    nonfinite_at: jax.Array
    sums: PyTree


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
        ready = _look_ahead(_prepared(plan, mesh, done, _compile_once(pool)), _LOOK_AHEAD)
        for index, group, futures, missing in ready:
            if not all(future.done() for future in futures):
                yield Compiling(index)
            programs = Programs(*(future.result() for future in futures))
            data = place_data(group.learner.data)
            for runs in _batched(missing, group.width * len(devices)):
                chunk = _Chunk(index, group, runs, plan.sweep.num_steps, plan.sweep.num_evals)
                yield from _train_chunk(chunk, programs, data, NamedSharding(mesh, PartitionSpec("run")))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Programs(NamedTuple):
    """The three compiled programs of a group; `segment` is missing where nothing is trained."""

    initialize: Callable[..., Carry]
    evaluate: Callable[..., dict[str, jax.Array]]
    segment: Callable[..., Carry] | None = None


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


def lower(group: Group, mesh: jax.sharding.Mesh) -> list[Any]:
    """Returns the group's programs, traced but not compiled: initialize, evaluate and, if it trains, segment."""
    learner = group.learner
    runs = NamedSharding(mesh, PartitionSpec("run"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    num_rows = group.width * mesh.size

    def rows(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_rows,), dtype, sharding=runs)

    def placed(sharding: NamedSharding) -> Callable[[Any], jax.ShapeDtypeStruct]:
        return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    seeds = rows(np.uint32)
    hyper = {name: rows(planning.hyper_dtype(learner, name)) for name in sorted(learner.hyper)}
    data = jax.tree.map(placed(everywhere), learner.data)
    step = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)

    def spread(function: Callable, kinds: str, over_runs: Callable) -> Callable:
        """r: an axis of runs; everything else is the same for all."""
        axes = tuple(0 if kind == "r" else None for kind in kinds)
        specs = tuple(PartitionSpec("run") if kind == "r" else PartitionSpec() for kind in kinds)
        return jax.shard_map(
            over_runs(function, axes),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec("run"),
            check_vma=False,
        )

    def initialize(seeds: jax.Array, hyper: Any, data: Any) -> Carry:
        return spread(_initialize(learner), "rrd", _one_after_another)(seeds, hyper, data)

    def evaluate(seeds: jax.Array, hyper: Any, data: Any, carry: Carry) -> dict[str, jax.Array]:
        return spread(_evaluate(learner), "rrdr", jax.vmap)(seeds, hyper, data, carry)

    def segment(seeds: jax.Array, hyper: Any, data: Any, carry: Carry, start: Any, stop: Any, fresh: Any) -> Carry:
        function = spread(_segment(learner), "rrdrsss", jax.vmap)
        return function(seeds, hyper, data, carry, start, stop, fresh)

    carry = jax.tree.map(placed(runs), jax.eval_shape(initialize, seeds, hyper, data))
    lowered = [
        jax.jit(initialize).lower(seeds, hyper, data),
        jax.jit(evaluate).lower(seeds, hyper, data, carry),
    ]
    if learner.update is not None:
        fresh = jax.ShapeDtypeStruct((), np.bool_, sharding=everywhere)
        jitted = jax.jit(segment, donate_argnums=3)
        lowered.append(jitted.lower(seeds, hyper, data, carry, step, step, fresh))
    return lowered


def _one_after_another(function: Callable, axes: tuple[int | None, ...]) -> Callable:
    """Like vmap, one run at a time: jax 0.10 hangs on a vmapped QR inside shard_map over several CPU devices."""

    def over_runs(*args: Any) -> Any:
        batched = tuple(arg for arg, axis in zip(args, axes, strict=True) if axis == 0)

        def one(batched: tuple) -> Any:
            remaining = iter(batched)
            return function(*(next(remaining) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)))

        return jax.lax.map(one, batched)

    return over_runs


def _key(seed: jax.Array, purpose: int) -> Key:
    return jax.random.fold_in(jax.random.key(seed), purpose)


def _initialize(learner: Learner) -> Callable[..., Carry]:
    def initialize(seed: jax.Array, hyper: Any, data: Any) -> Carry:
        key = _key(seed, _INIT)
        state = learner.init(key, hyper, data)
        sums: Any = {}
        if learner.update is not None:
            _, metrics = jax.eval_shape(learner.update, key, hyper, data, state)
            sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(metrics))
        return Carry(state, jnp.full((), -1, jnp.int32), sums)

    return initialize


def _segment(learner: Learner) -> Callable[..., Carry]:
    """Steps `start` to `stop`, both arguments: one program serves every length."""
    assert learner.update is not None
    update = learner.update

    def segment(
        seed: jax.Array,
        hyper: Any,
        data: Any,
        carry: Carry,
        start: jax.Array,
        stop: jax.Array,
        fresh: jax.Array,
    ) -> Carry:
        key = _key(seed, _UPDATE)

        def step(index: jax.Array, carry: Carry) -> Carry:
            state, metrics = update(jax.random.fold_in(key, index), hyper, data, carry.state)
            first_time = (carry.nonfinite_at < 0) & ~_all_finite(metrics)
            nonfinite_at = jnp.where(first_time, index + 1, carry.nonfinite_at)
            return Carry(state, nonfinite_at, jax.tree.map(jnp.add, carry.sums, dict(metrics)))

        sums = jax.tree.map(lambda leaf: jnp.where(fresh, jnp.zeros_like(leaf), leaf), carry.sums)
        return jax.lax.fori_loop(start, stop, step, carry._replace(sums=sums))

    return segment


def _evaluate(learner: Learner) -> Callable[..., dict[str, jax.Array]]:
    def evaluate(seed: jax.Array, hyper: Any, data: Any, carry: Carry) -> dict[str, jax.Array]:
        metrics = dict(learner.evaluate(_key(seed, _EVALUATE), hyper, data, carry.state))
        wrong = [name for name in (*metrics, *carry.sums) if "/" not in name]
        if wrong or metrics.keys() & carry.sums.keys():
            raise ValueError(
                "a learner's metrics need names with a slash (test/accuracy), different in update and evaluate; "
                f"got {sorted(carry.sums)} and {sorted(metrics)}"
            )
        return metrics

    return evaluate


def _all_finite(metrics: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics)]).all()


def _train_chunk(chunk: _Chunk, programs: Programs, data: PyTree, sharding: NamedSharding) -> Iterator[Event]:
    began = time.perf_counter()
    num_rows = chunk.group.width * sharding.mesh.size
    seeds, hyper = _arguments(chunk.group.learner, chunk.runs, num_rows, sharding)
    carry = programs.initialize(seeds, hyper, data)
    recorder = _Recorder(chunk)
    recorder.add(0, jax.device_get(programs.evaluate(seeds, hyper, data, carry)), carry)
    interval, piece = chunk.num_steps // chunk.num_evals, 1
    for evaluation in range(chunk.num_evals if interval else 0):
        start, end = evaluation * interval, (evaluation + 1) * interval
        while start < end and programs.segment is not None and recorder.any_alive:
            stop = min(start + piece, end)
            called = time.perf_counter()
            fresh = np.bool_(start == evaluation * interval)
            carry = programs.segment(seeds, hyper, data, carry, np.int32(start), np.int32(stop), fresh)
            recorder.look(carry)
            piece = _next_piece(stop - start, time.perf_counter() - called)
            yield Advanced((stop - start) * len(chunk.runs), recorder.num_nonfinite)
            start = stop
        if recorder.any_alive:
            recorder.add(end, jax.device_get(programs.evaluate(seeds, hyper, data, carry)), carry)
        else:
            yield Advanced((end - start) * len(chunk.runs), recorder.num_nonfinite)
    yield recorder.finished(time.perf_counter() - began, carry)


def _next_piece(steps: int, seconds: float) -> int:
    """Steps for about a second, at most ten times as many as the last call made."""
    return max(1, min(10 * steps, int(steps * SEGMENT_SECONDS / max(seconds, 1e-6))))


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


def _compile_once(pool: ThreadPoolExecutor) -> Callable[[Any], Future]:
    """Compiles lowered programs in the background; equal ones share an executable.

    Programs of equal text that are called with other trees (the evaluation of another optimizer's state, say) are
    compiled after the first, so that the compile cache on disk answers for them.
    """
    shared: dict[Any, Future] = {}
    first_with: dict[str, Future] = {}

    def after(first: Future, lowered: Any) -> Any:
        first.result()
        return lowered.compile()

    def submit(lowered: Any) -> Future:
        text = lowered.as_text()
        key = (text, lowered.in_tree, lowered.out_tree)
        if key not in shared:
            first = first_with.get(text)
            shared[key] = pool.submit(after, first, lowered) if first else pool.submit(lowered.compile)
            first_with.setdefault(text, shared[key])
        return shared[key]

    return submit


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
