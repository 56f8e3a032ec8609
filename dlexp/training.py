"""From plans to saved runs: what the engine finishes, the store keeps, and nothing is lost on the way."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlexp import faults, fingerprint
from dlexp.interrupt import deferred
from dlexp.ops.choices import OWN, SHARED
from dlexp.progress import Display, say
from dlexp.results import checkpoint, columns, folders, store, strictjson, table
from dlexp.results.files import ResultsError
from dlexp.sweep import engine, machine, pace, tuning
from dlexp.sweep.engine import Advanced, Compiling, Finished, Narrowed, Snapshot
from dlexp.sweep.layouts import Layout
from dlexp.sweep.pace import Measured, Pace
from dlexp.types import Experiment

if TYPE_CHECKING:
    from rich.console import Console

    from dlexp.sweep.plan import Group, Plan

LONG_CHUNK_SECONDS = 60.0  # a chunk expected to take longer keeps its state on the way
CHECKPOINT_SECONDS = 30.0  # between two states


def train(
    experiment: Experiment,
    plans: Mapping[str, Plan],
    *,
    scale: str,
    folder: Path,
    fresh: bool,
    console: Console,
    accept: bool = False,
) -> None:
    """Trains every run of the plans that is not saved in the folder yet.

    The first SIGINT or SIGTERM ends it after the segment under way, with the state of the chunk kept.

    Raises:
      ResultsError: where the folder cannot be used or is full, its runs were trained by other code and nobody
        accepts them, or a run does not fit into memory alone.
      KeyboardInterrupt: after a signal, once everything is saved.
    """
    dropped = tuple(plans) if fresh else ()
    for name in dropped:
        num_files = len(list((folder / name).glob("*.parquet")))
        say(console, f"--fresh drops {folder / name} with {num_files} files of runs")
    with folders.claimed(folder, experiment.name, experiment.version, drop=dropped) as manifest:
        sweeps = {name: each.sweep for name, each in plans.items()}
        if not accept:
            fingerprint.check(experiment, sweeps, scale, manifest, folder)
        plans = as_saved(plans, manifest)
        manifest = _declared(experiment, plans, scale, manifest)
        try:
            folders.write_manifest(folder, manifest)
            with deferred(lambda text: say(console, text)) as stopping:
                for name, each in plans.items():
                    with _timed(folder, manifest, name) as about:
                        sweep = _Sweep(each, folder / name, console, stopping)
                        if sweep.is_missing_any():
                            about["layouts"] |= sweep.lay_out(kept=about["layouts"])
                            folders.write_manifest(folder, manifest)
                            sweep.train()
        except engine.OutOfMemoryError as error:
            raise ResultsError(str(error)) from error
        except OSError as error:
            raise ResultsError(
                f"{folder} could not be written ({error.strerror or error}); what was saved until then is whole; make "
                "room and the same command goes on from there"
            ) from error


def num_saved(plan: Plan, folder: Path) -> int:
    """Returns how many runs of a plan are saved in the folder of its sweep, which is left as it is.

    Raises:
      ResultsError: where a file is damaged.
    """
    tables = (store.read_chunk(path, ["run_id"])[0] for path in sorted(folder.glob("*.parquet")))
    saved = {name for table in tables for name in table["run_id"].to_pylist()}
    return plan.num_runs - sum(int(each.sum()) for each in plan.missing(saved)) if saved else 0


def as_saved(plans: Mapping[str, Plan], manifest: Mapping[str, Any], *, exactly: bool = False) -> dict[str, Plan]:
    """Returns the plans in the layouts in which a manifest says that runs were trained on devices like these.

    Calls of one seed stay that only where enough runs of this grid have the same, unless `exactly` asks for them.
    """
    return {name: _with_layouts(each, _saved_layouts(manifest, name), exactly) for name, each in plans.items()}


def _saved_layouts(manifest: Mapping[str, Any], sweep: str) -> dict[str, Any]:
    return dict(manifest.get("sweeps", {}).get(sweep, {}).get("layouts", {}))


def _with_layouts(plan: Plan, layouts: Mapping[str, Any], exactly: bool) -> Plan:
    saved = [layouts.get(_family_key(plan, group)) for group in plan.groups]
    groups = [
        group.with_layout(_possible(Layout.from_json(layout), group, exactly)) if layout else group
        for group, layout in zip(plan.groups, saved, strict=True)
    ]
    return plan._replace(groups=tuple(groups))


def _possible(layout: Layout, group: Group, exactly: bool) -> Layout:
    """Without what cannot be chosen here: what XLA can be told depends on the process."""
    options = {**({"seed": (OWN, SHARED)} if exactly else {}), **group.choices}
    return layout._replace(choices=tuple(pair for pair in layout.choices if pair[1] in options.get(pair[0], ())))


def _family_key(plan: Plan, group: Group) -> str:
    """Names a group and the devices it is laid out for."""
    devices = machine.start_devices()
    where = {"device": devices[0].device_kind, "num_devices": plan.num_devices}
    return strictjson.dumps({**where, "config": group.family.config, "hyper": group.family.hyper_names}, default=repr)


@contextmanager
def _timed(folder: Path, manifest: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yields a sweep's part of the manifest and adds the seconds spent to it and to the whole, however it ends.

    A start that finds all saved adds next to nothing.
    """
    began, about = time.monotonic(), manifest["sweeps"][name]
    try:
        yield about
    finally:
        spent = time.monotonic() - began
        for each in (about, manifest):
            each["seconds"] = round(each.get("seconds", 0.0) + spent, 1)
        folders.write_manifest(folder, manifest)


def _declared(
    experiment: Experiment, plans: Mapping[str, Plan], scale: str, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest: what the current grid is, sweep by sweep; sweeps that are not part of this call stay."""
    sweeps = dict(manifest.get("sweeps", {}))
    for name, each in plans.items():
        sweeps[name] = {
            "num_steps": each.sweep.num_steps,
            "num_evals": each.sweep.num_evals,
            "num_runs": each.num_runs,
            "num_groups": len(each.groups),
            "blocks": table.describe(each.sweep.grid),
            "layouts": _saved_layouts(manifest, name),
            "seconds": sweeps.get(name, {}).get("seconds", 0.0),
            "code": fingerprint.code_of(each.sweep),
        }
    return {
        **manifest,
        "experiment": experiment.name,
        "version": experiment.version,
        "question": experiment.question,
        "scale": scale,
        "sweeps": sweeps,
    }


class _Sweep:
    """One sweep on its way: its events to the display, its chunks to the store, its unfinished state to the disk."""

    def __init__(self, plan: Plan, folder: Path, console: Console, stopping: Callable[[], bool]) -> None:
        self._plan, self._folder, self._console, self._stopping = plan, folder, console, stopping
        self._kept_at, self._paces = time.monotonic(), dict[int, Pace]()
        self._lost = [(0, 0)] * len(plan.groups)  # runs of each group lost at step 0, and runs seen
        machine.enable_compile_cache()
        self._devices = machine.start_devices()
        done = self._saved()
        self._writer = store.Writer(folder, store.conform(folder, columns.of_grid(plan.sweep.grid)))
        self._missing = plan.missing(done) if done else None  # None for all: no ids need be made
        whole = [group.num_runs for group in plan.groups]
        self._num_missing = whole if self._missing is None else [int(each.sum()) for each in self._missing]

    def is_missing_any(self) -> bool:
        """Whether there is anything to train; says so where there is not."""
        if not any(self._num_missing):
            say(self._console, f"{self._plan.identity.sweep}: all {self._plan.num_runs} runs are saved")
        return any(self._num_missing)

    def lay_out(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Chooses how each group with missing runs is trained, where that is not kept, and returns what it chose."""
        fixed = [index for index, group in enumerate(self._plan.groups) if _family_key(self._plan, group) in kept]
        tell = functools.partial(say, self._console)
        self._plan = tuning.tuned(
            self._plan, self._devices, self._num_missing, fixed=fixed, tell=tell, stopping=self._stopping
        )
        pairs = zip(self._plan.groups, self._num_missing, strict=True)
        free = [pair for index, pair in enumerate(pairs) if index not in fixed]
        trained = [group for group, missing in free if missing and not group.measure]
        return {_family_key(self._plan, group): group.layout._asdict() for group in trained}

    def train(self) -> None:
        """Trains and saves the missing runs."""
        provenance = machine.provenance(self._devices)
        identity, sweep = self._plan.identity, self._plan.sweep
        num_done = self._plan.num_runs - sum(self._num_missing)
        display = Display(self._console, identity.sweep, self._plan.num_runs, num_done, sweep.num_steps)
        with display, self._writer:
            for event in engine.train(self._plan, self._devices, self._missing, self._resume):
                self._handle(event, display, provenance)
        trained = time.perf_counter()
        checkpoint.discard(self._folder)
        store.compact(self._folder)
        self._remember_pace(time.perf_counter() - trained)

    def _remember_pace(self, afterwards: float) -> None:
        """For the next plan's prediction; a layout that won against others stays the chosen one.

        Each chunk has its share of the seconds spent afterwards on all of them.
        """
        groups = self._plan.groups
        num_chunks = sum(self._plan.num_chunks(groups[index]) for index in self._paces)
        for index, paced in self._paces.items():
            group, measured = groups[index], paced._replace(start=paced.start + afterwards / num_chunks)
            known = pace.recall(group.program_hash)
            if known and known.layout == group.layout:
                pace.remember(group.program_hash, known._replace(pace=measured))
            elif known is None or not known.is_chosen:
                pace.remember(group.program_hash, Measured(group.layout, measured))

    def _saved(self) -> set[str]:
        identity = self._plan.identity
        asked = {identity.num_steps: self._plan.sweep.num_evals}
        saved, moved = store.finished(self._folder, identity.experiment, identity.version, identity.sweep, asked)
        for path in moved:
            say(self._console, f"damaged or foreign results moved to {path}; their runs are trained again")
        return saved

    def _handle(self, event: engine.Event, display: Display, provenance: Mapping[str, Any]) -> None:
        match event:
            case Compiling(group):
                self._writer.flush()
                display.compiling(str(self._plan.groups[group].family))
            case Narrowed(group, width):
                display.started_over()
                family = self._plan.groups[group].family
                say(self._console, f"{family}: out of memory; going on with {width} runs at once on each device")
            case Advanced():
                self._writer.flush(store.FILE_SECONDS)
                display.advanced(event.run_steps, event.num_nonfinite, event.num_runs, event.took)
                self._keep_state(event)
            case Finished():
                self._note_lost(event)
                self._save(event, provenance)
                display.finished(len(event.runs), sum(at >= 0 for at in event.nonfinite_at), event.seconds)
                if event.pace and event.layout == self._plan.groups[event.group].layout:
                    self._paces[event.group] = event.pace
                if self._stopping():
                    raise KeyboardInterrupt

    def _note_lost(self, chunk: Finished) -> None:
        """Where no run of a group comes beyond step 0, data may be at fault: then nothing is saved and all stops."""
        group = self._plan.groups[chunk.group]
        lost_before, seen_before = self._lost[chunk.group]
        lost, seen = lost_before + int((chunk.nonfinite_at == 0).sum()), seen_before + len(chunk.runs)
        self._lost[chunk.group] = (lost, seen)
        if group.measure or lost < seen:
            return
        if not lost_before and (fault := faults.of_data(group.learner.data)):
            sweep = self._plan.identity.sweep
            raise ResultsError(
                f"sweep {sweep}, {group.family}: all runs are lost at step 0, and {fault}; mend the data and run again"
            )
        if seen == self._num_missing[chunk.group]:
            sentence = f"{group.family}: all {seen} runs are lost at step 0, though the data are finite; going on"
            say(self._console, sentence)

    def _save(self, chunk: Finished, provenance: Mapping[str, Any]) -> None:
        """Rows of quick chunks wait for each other, of measurements none; a kept state goes once the rows are saved."""
        self._writer.add(_columns(chunk), _about(self._plan, chunk, provenance))
        is_kept = checkpoint.is_kept(self._folder, chunk.chunk)
        is_quick = chunk.seconds < store.FILE_SECONDS and not self._plan.groups[chunk.group].measure
        self._writer.flush(store.FILE_SECONDS if is_quick and not is_kept else 0.0)
        if is_kept:
            checkpoint.discard(self._folder, chunk.chunk)

    def _keep_state(self, event: Advanced) -> None:
        stopping = self._stopping()
        due = time.monotonic() - self._kept_at > CHECKPOINT_SECONDS and event.seconds > LONG_CHUNK_SECONDS
        if stopping or due:
            snapshot = event.snapshot()
            checkpoint.save(self._folder, event.chunk, snapshot.step, _to_arrays(snapshot))
            self._kept_at = time.monotonic()
        if stopping:
            raise KeyboardInterrupt

    def _resume(self, chunk: str) -> Snapshot | None:
        kept = checkpoint.restore(self._folder, chunk)
        return _to_snapshot(*kept) if kept else None


def _to_arrays(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """A snapshot under names that make folders nowhere: metrics by their place, their names beside them."""
    names = sorted(snapshot.rows)
    return {
        **{f"carry{index}": leaf for index, leaf in enumerate(snapshot.carry)},
        **{f"rows{index}": snapshot.rows[name] for index, name in enumerate(names)},
        "nonfinite_at": snapshot.nonfinite_at,
        "names": np.frombuffer("\n".join(names).encode(), np.uint8),
    }


def _to_snapshot(step: int, arrays: Mapping[str, np.ndarray]) -> Snapshot:
    def numbered(prefix: str) -> list[np.ndarray]:
        return [arrays[f"{prefix}{index}"] for index in range(sum(name.startswith(prefix) for name in arrays))]

    carry, rows = numbered("carry"), numbered("rows")
    names = arrays["names"].tobytes().decode().split("\n")
    return Snapshot(step, carry, np.array(arrays["nonfinite_at"]), dict(zip(names, map(np.array, rows), strict=True)))


def _columns(chunk: Finished) -> dict[str, Any]:
    ids, runs = zip(*chunk.runs, strict=True)
    columns: dict[str, Any] = {"run_id": list(ids)}
    for name in (*runs[0].config, *runs[0].hyper):
        columns[name] = [run.config.get(name, run.hyper.get(name)) for run in runs]
        if name in runs[0].hyper:
            columns[name] = np.array(columns[name], np.float64)
    columns["seed"] = np.array([run.seed for run in runs], np.int64)
    columns["status"] = list(chunk.status)
    columns["nonfinite_at"] = chunk.nonfinite_at.astype(np.int32)
    return columns | dict(chunk.metrics)


def _about(each: Plan, chunk: Finished, provenance: Mapping[str, Any]) -> dict[str, Any]:
    group = each.groups[chunk.group]
    return {
        "identity": each.identity._asdict(),
        "num_evals": each.sweep.num_evals,
        "config": dict(group.family.config),
        "hyper": {name: legal.default for name, legal in group.learner.hyper.items()},
        "metrics": list(chunk.metrics),
        "provenance": {**provenance, "width": chunk.layout.width, "layout": str(chunk.layout)},
    }
