"""The loops over groups, chunks and segments.

The engine knows no model, no data set and no file: it takes a plan, yields what happens, and hands over each
finished chunk of runs.
"""

from __future__ import annotations

import hashlib
import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlexp.sweep import machine, programs
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Run
from dlexp.sweep.layouts import Layout
from dlexp.sweep.pace import Pace
from dlexp.sweep.plan import Group, Plan
from dlexp.sweep.programs import Carry, Evaluation, Programs
from dlexp.sweep.recorder import Recorder
from dlexp.types import PyTree

SEGMENT_SECONDS = 1.0  # between two looks at the progress; the steps of a call are an argument of the program
MAX_CALLS_IN_FLIGHT = 2  # more calls are not begun before the oldest has ended; JAX slows down from 32 of them on
CHUNKS_EVALUATED_ALONE = 3  # so many chunks of a group evaluate step 0 in a call of its own, which is timed
_LOOK_AHEAD = 8  # groups that are compiled at most before the first of them is trained


class Snapshot(NamedTuple):
    """All it takes to go on with a chunk: host arrays, bit for bit.

    Attributes:
      step: steps made.
      carry: the leaves of what runs take from call to call, each `[row, ...]`.
      nonfinite_at: `[run]`, first non-finite step or -1.
      rows: name -> `[evaluation, run, ...]`, NaN where not measured yet.
    """

    step: int
    carry: list[np.ndarray]
    nonfinite_at: np.ndarray
    rows: dict[str, np.ndarray]


class Compiling(NamedTuple):
    """A group waits for its programs."""

    group: int


class Advanced(NamedTuple):
    """Runs of a chunk made some steps.

    Attributes:
      chunk: names the chunk: the same runs at the same width have the same name.
      run_steps: steps made, summed over runs; padding does not count.
      num_nonfinite: runs of the chunk that have left the finite numbers so far.
      seconds: what the chunk is expected to take in all, as far as its pace is known.
      snapshot: returns what it takes to go on from here; to be called before the next event.
      num_runs: runs of the chunk.
      took: seconds in which the steps were made; None where an earlier process made them.
    """

    chunk: str
    run_steps: int
    num_nonfinite: int
    seconds: float
    snapshot: Callable[[], Snapshot]
    num_runs: int
    took: float | None = None


class Narrowed(NamedTuple):
    """A call did not fit into memory; the group goes on with fewer runs at once.

    Attributes:
      group: place of the group in the plan.
      width: runs vmapped on each device from now on.
    """

    group: int
    width: int


class Finished(NamedTuple):
    """One chunk of runs.

    Attributes:
      chunk: its name.
      group: place of its group in the plan.
      runs: `(run_id, run)` of each row.
      status: ok, nonfinite or stopped.
      nonfinite_at: first non-finite step, -1 where there is none; every metric is NaN from there on.
      metrics: name -> `[run, evaluation, ...]`; those of `evaluate` begin at step 0, those of `update` are means
        over the steps since the last evaluation.
      seconds: of training, compilation not counted.
      layout: of the programs.
      pace: seconds of the chunk's parts, None where nothing was trained from its beginning.
    """

    chunk: str
    group: int
    runs: tuple[tuple[str, Run], ...]
    status: tuple[str, ...]
    nonfinite_at: np.ndarray
    metrics: Mapping[str, np.ndarray]
    seconds: float
    layout: Layout
    pace: Pace | None = None


Event = Compiling | Advanced | Narrowed | Finished
Resume = Callable[[str], Snapshot | None]


class OutOfMemoryError(Exception):
    """One run alone does not fit into the memory of a device; the message says what it needs and what is there."""


def train(
    plan: Plan,
    devices: list[jax.Device],
    missing: Sequence[np.ndarray] | None = None,
    resume: Resume = lambda chunk: None,
) -> Iterator[Event]:
    """Yields what happens while every missing run of the plan is trained.

    Groups are compiled side by side while others train; equal programs are compiled once. Where a call does not
    fit into memory, the group goes on at half the width.

    Args:
      plan: what to train.
      devices: on which.
      missing: which runs of each group are to be trained, as `Plan.missing` says; None for all.
      resume: chunk name -> the snapshot to go on from, None to begin at step 0.

    Raises:
      ValueError: where a learner's metrics are named badly.
      OutOfMemoryError: where a run does not fit alone.
    """
    if any(group.measure for group in plan.groups):
        yield from _measured(plan, missing)
        return
    mesh = machine.mesh(devices)
    pool = ThreadPoolExecutor(machine.num_cores())
    place_data = _cached_placement(NamedSharding(mesh, PartitionSpec()))
    compile_once = programs.compile_once_in(pool)
    compile_group = _group_compiler(mesh, compile_once)
    try:
        for index, futures in _look_ahead(_set_compiling(plan, missing, compile_group), _LOOK_AHEAD):
            wanted = missing[index] if missing else None
            yield from _Group(plan, index, mesh, wanted, resume).train(futures, place_data, compile_group)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _measured(plan: Plan, missing: Sequence[np.ndarray] | None) -> Iterator[Event]:
    """Runs on the host, one after another, each a chunk of its own; all groups of such a sweep are measurements."""
    for index, group in enumerate(plan.groups):
        if group.measure is None:
            raise TypeError(f"sweep {plan.identity.sweep}: some configs give a Learner, others a Measurement; split it")
        for name, run in plan.runs(group, missing[index] if missing else None):
            began = time.perf_counter()
            values = group.measure(planning.full_hyper(group.learner, run), run.seed)
            metrics = {key: np.asarray(value, np.float32)[None, None] for key, value in sorted(values.items())}
            finite = all(np.isfinite(value).all() for value in metrics.values())
            status, lost_at = ("ok", -1) if finite else ("nonfinite", 0)
            seconds = time.perf_counter() - began
            yield Finished(
                chunk=name,
                group=index,
                runs=((name, run),),
                status=(status,),
                nonfinite_at=np.array([lost_at]),
                metrics=metrics,
                seconds=seconds,
                layout=group.layout,
            )


class _Placed(NamedTuple):
    """A group's programs, its data on the devices, and how its rows lie on them."""

    programs: Programs
    data: PyTree
    over_runs: NamedSharding


class _Group:
    """One group on its way; what was finished is remembered by its count, the order of runs being fixed."""

    def __init__(self, plan: Plan, index: int, mesh: Mesh, wanted: np.ndarray | None, resume: Resume) -> None:
        self._plan, self._index, self._mesh, self._wanted, self._resume = plan, index, mesh, wanted, resume
        self._group, self._num_finished = plan.groups[index], 0

    def train(
        self,
        futures: list[Future],
        place_data: Callable[[PyTree], PyTree],
        compile_group: Callable[[Group], list[Future]],
    ) -> Iterator[Event]:
        """Trains every missing run, at half the width again and again where memory is short."""
        while True:
            if not all(future.done() for future in futures):
                yield Compiling(self._index)
            try:
                made = programs.of(self._group, [future.result() for future in futures])
                data, over_runs = place_data(self._group.learner.data), NamedSharding(self._mesh, PartitionSpec("run"))
                yield from self._train_chunks(_Placed(made, data, over_runs))
                return
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._group = _narrower(self._group, futures, list(self._mesh.devices.flat), error)
            yield Narrowed(self._index, self._group.width)
            futures = compile_group(self._group)

    def _train_chunks(self, placed: _Placed) -> Iterator[Event]:
        clock, chunks = _Clock(), _Ahead(self._chunks(placed))
        for chunk in chunks:
            yield from _train_chunk(chunk, placed, clock, self._resume, chunks.make_next)
            self._num_finished += len(chunk.runs)

    def _chunks(self, placed: _Placed) -> Iterator[_Chunk]:
        wanted = self._plan.runs(self._group, self._wanted)
        left, rows = islice(wanted, self._num_finished, None), self._group.width * self._mesh.size
        for runs in _calls(left, rows, self._group.layout.shares_seed):
            arguments = programs.arguments(self._group, [run for _, run in runs], placed.over_runs)
            sweep = self._plan.sweep
            yield _Chunk(self._index, self._group, runs, sweep.num_steps, sweep.num_evals, (*arguments, placed.data))


class _Chunk(NamedTuple):
    group_index: int
    group: Group
    runs: tuple[tuple[str, Run], ...]
    num_steps: int
    num_evals: int
    arguments: tuple[Any, ...]  # of the programs, on the devices

    def name(self, num_devices: int) -> str:
        sizes = (self.group.layout, num_devices, self.num_steps, self.num_evals)
        text = " ".join((*map(str, sizes), *(run_id for run_id, _ in self.runs)))
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class _Ahead:
    """Chunks, the next of which can be made before it is asked for: while the devices are busy."""

    def __init__(self, chunks: Iterator[_Chunk]) -> None:
        self._chunks, self._made = chunks, deque[_Chunk]()

    def make_next(self) -> None:
        """Makes the next chunk, if there is one and it is not made yet."""
        if not self._made:
            self._made.extend(islice(self._chunks, 1))

    def __iter__(self) -> Iterator[_Chunk]:
        self.make_next()
        while self._made:
            yield self._made.popleft()
            self.make_next()


class _Clock:
    """Times the chunks of a group, and says how many steps are made until the next look at them.

    About a second's worth, at most ten times as many as the last.
    """

    def __init__(self) -> None:
        self.steps = 1
        self._began = time.perf_counter()
        self._num_chunks = self._num_steps = self._num_evals = 0
        self._training = self._evaluating = 0.0
        self._alone = 0.0  # the shortest evaluation that was a call of its own; until there was one, none takes time

    @property
    def times_evaluations(self) -> bool:
        """Whether the first evaluation of a chunk is to be a call of its own, so that it can be timed."""
        return self._num_chunks < CHUNKS_EVALUATED_ALONE

    def started(self, evaluating: float | None = None) -> None:
        """A chunk began; its first evaluation took so many seconds, where it was a call of its own."""
        self._num_chunks += 1
        if evaluating is not None:
            self._num_evals, self._evaluating = self._num_evals + 1, self._evaluating + evaluating
            self._alone = min(evaluating, self._alone or evaluating)

    def noted(self, num_steps: int, num_evals: int, seconds: float) -> None:
        """Steps were made, evaluations among them."""
        evaluating = max(0.0, min(num_evals * self._alone, seconds - 1e-6))  # a call of its own takes longer
        self._num_steps, self._num_evals = self._num_steps + num_steps, self._num_evals + num_evals
        self._training, self._evaluating = self._training + seconds - evaluating, self._evaluating + evaluating
        possible = int(SEGMENT_SECONDS * num_steps / max(seconds, 1e-6))
        self.steps = max(1, min(10 * max(num_steps, self.steps), possible))

    def pace(self) -> Pace:
        """Returns what a chunk takes, what is done with it outside the engine counted."""
        others = time.perf_counter() - self._began - self._training - self._evaluating
        evaluation = self._evaluating / max(self._num_evals, 1)
        return Pace(others / max(self._num_chunks, 1), self._training / max(self._num_steps, 1), evaluation)


def _train_chunk(
    chunk: _Chunk, placed: _Placed, clock: _Clock, resume: Resume, make_next: Callable[[], None]
) -> Iterator[Event]:
    began = time.perf_counter()
    name, num_runs = chunk.name(placed.over_runs.mesh.size), len(chunk.runs)
    recorder = Recorder(num_runs, chunk.num_steps, chunk.num_evals)
    segment = partial(placed.programs.segment, *chunk.arguments)
    advance = partial(_advance, segment, recorder, chunk.group.num_kept)
    carry = placed.programs.initialize(*chunk.arguments)
    saved = resume(name)
    if saved is None or not programs.fits(saved.carry, carry):  # or the code has changed since: it begins anew
        start, carry = _first_evaluation(chunk, recorder, clock, carry, advance)
    else:
        start, recorder.nonfinite_at, recorder.rows = saved.step, saved.nonfinite_at, saved.rows
        carry = programs.to_devices(saved.carry, carry)
        kept = saved
        yield Advanced(name, start * num_runs, _num_lost(recorder), 0.0, lambda: kept, num_runs)
    while start < chunk.num_steps and recorder.any_alive:
        called, first = time.perf_counter(), max(start, 0)
        stop = min(first + clock.steps, chunk.num_steps)
        carry = advance(carry, start, stop, make_next if stop == chunk.num_steps else lambda: None)
        took = time.perf_counter() - called
        clock.noted(stop - first, len(recorder.evaluated(start, stop)), took)
        take = _snapshotter(stop, carry, recorder)
        expected = clock.pace().seconds(chunk.num_steps, chunk.num_evals + 1)
        made, lost = (stop - first) * num_runs, _num_lost(recorder)
        yield Advanced(name, made, lost, expected, take, num_runs=num_runs, took=took)
        start = stop
    seconds, metrics = time.perf_counter() - began, recorder.curves(carry.means)
    whole = saved is None and _num_lost(recorder) < num_runs
    yield Finished(
        chunk=name,
        group=chunk.group_index,
        runs=chunk.runs,
        status=recorder.status(),
        nonfinite_at=recorder.nonfinite_at,
        metrics=metrics,
        seconds=seconds,
        layout=chunk.group.layout,
        pace=clock.pace() if whole else None,
    )


def _first_evaluation(
    chunk: _Chunk, recorder: Recorder, clock: _Clock, carry: Carry, advance: Callable[..., Carry]
) -> tuple[int, Carry]:
    """Evaluates step 0 in a call of its own, which is timed, or leaves it to the call of the first steps.

    Returns the `start` of the next call, and the carry.
    """
    start = programs.before_first_step(recorder.interval)
    if chunk.num_steps and not clock.times_evaluations:
        clock.started()
        return start, carry
    jax.block_until_ready(carry)
    ready = time.perf_counter()
    carry = advance(carry, start, 0, lambda: None)
    clock.started(time.perf_counter() - ready)
    return 0, carry


def _advance(
    segment: Callable[..., tuple[Carry, Callable[[], list[Evaluation]]]],
    recorder: Recorder,
    num_kept: int,
    carry: Carry,
    start: int,
    stop: int,
    meanwhile: Callable[[], None],
) -> Carry:
    """Sets calls going, one after another, and records the evaluations of each while the next are under way.

    Returns the last carry; what is to be done meanwhile is done once the last call is under way.
    """
    under_way = deque[tuple[range, Callable[[], list[Evaluation]]]]()
    for first, end in recorder.calls(start, stop, num_kept):
        carry, evaluations = segment(carry, first, end, recorder.interval)
        under_way.append((recorder.evaluated(first, end), evaluations))
        if len(under_way) > MAX_CALLS_IN_FLIGHT:
            _record(recorder, *under_way.popleft())
    meanwhile()
    for each in under_way:
        _record(recorder, *each)
    recorder.note_nonfinite(carry.nonfinite_at)
    return carry


def _record(recorder: Recorder, steps: range, evaluations: Callable[[], list[Evaluation]]) -> None:
    """Waits for them; at step 0 there is nothing yet to be the mean of."""
    for step, evaluation in zip(steps, evaluations(), strict=True):
        recorder.note_nonfinite(evaluation.nonfinite_at)
        recorder.add(step, evaluation.metrics, evaluation.means if step else {})


def _num_lost(recorder: Recorder) -> int:
    return int((recorder.nonfinite_at >= 0).sum())


def _snapshotter(step: int, carry: PyTree, recorder: Recorder) -> Callable[[], Snapshot]:
    def take() -> Snapshot:
        return Snapshot(step, programs.to_host(carry), recorder.nonfinite_at, recorder.rows)

    return take


def _is_out_of_memory(error: Exception) -> bool:
    """XLA says RESOURCE_EXHAUSTED where it allocates at once, and an internal error where it does so on the way."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _narrower(group: Group, futures: list[Future], devices: list[jax.Device], error: Exception) -> Group:
    """The group at half its width, or an error that says what one run needs."""
    if group.width > 1:
        return group.with_layout(group.layout._replace(width=group.width // 2))
    needed = max((_needed_bytes(future) for future in futures), default=0)
    raise OutOfMemoryError(
        f"one run of {dict(group.family.config)} does not fit into memory: it needs about {needed / 2**20:.0f} MiB a "
        f"device, there are {machine.device_memory(devices) / 2**20:.0f} MiB; make the network or the batch smaller"
    ) from error


def _needed_bytes(future: Future) -> int:
    if not future.done() or future.exception():
        return 0
    analysis = future.result().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes


def _set_compiling(
    plan: Plan, missing: Sequence[np.ndarray] | None, compile_group: Callable[[Group], list[Future]]
) -> Iterator[tuple[int, list[Future]]]:
    """Lowers each group that has runs to train and sets its programs compiling."""
    for index, group in enumerate(plan.groups):
        if missing is None or missing[index].any():
            yield index, compile_group(group)


def _group_compiler(mesh: Mesh, compile_once: Callable[[Any], Future]) -> Callable[[Group], list[Future]]:
    return lambda group: [compile_once(lowered) for lowered in programs.lower(group, mesh)]


def _cached_placement(sharding: NamedSharding) -> Callable[[PyTree], PyTree]:
    """Puts data on the devices once as long as consecutive groups share the very arrays in the same tree."""
    held: list[tuple[list[Any], Any, PyTree]] = []

    def place(data: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(data)
        is_held = bool(held) and held[0][1] == treedef and all(map(operator.is_, held[0][0], leaves))
        if not is_held:
            held[:] = [(leaves, treedef, jax.device_put(data, sharding))]
        return held[0][2]

    return place


def _look_ahead(items: Iterator[tuple[int, list[Future]]], distance: int) -> Iterator[tuple[int, list[Future]]]:
    """Lowers more groups as long as the next one is being compiled; what is compiled is trained at once."""
    queue = deque(islice(items, 1))
    while queue:
        _, futures = queue[0]
        while len(queue) < distance and not all(future.done() for future in futures):
            if not (more := list(islice(items, 1))):
                break
            queue.extend(more)
        yield queue.popleft()
        if not queue:
            queue.extend(islice(items, 1))


def _calls(runs: Iterable[tuple[str, Run]], size: int, shares_seed: bool) -> Iterator[tuple[tuple[str, Run], ...]]:
    """Yields as many runs as fit into a call, of one seed where they share it."""
    for _, alike in groupby(runs, lambda entry: entry[1].seed if shares_seed else None):
        while batch := tuple(islice(alike, size)):
            yield batch
