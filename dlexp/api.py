"""From an experiment to its results, for scripts and notebooks: each arrow of the flow is one call here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dlexp
from dlexp import claims as judging
from dlexp.results import store, table
from dlexp.results.store import ResultsError
from dlexp.results.table import Results
from dlexp.sweep import overrides
from dlexp.sweep.grids import Identity
from dlexp.types import Experiment

if TYPE_CHECKING:
    from rich.console import Console

    from dlexp.sweep.plan import Plan

SCALES = ("smoke", "cpu", "gpu")
REFERENCE = Path(dlexp.__file__).parents[1] / "results"


def run(
    experiment: Experiment,
    *,
    scale: str = "cpu",
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
    out: str | os.PathLike = "runs",
    fresh: bool = False,
    console: Console | None = None,
) -> Results:
    """Trains what is missing of an experiment, saves it, draws and judges it, and returns its results.

    Args:
      experiment: what to run.
      scale: smoke, cpu or gpu.
      seeds: seeds of every point in place of the experiment's own.
      num_steps: training length in place of the experiment's own; such runs stand beside the others.
      axes: name -> values, or a text such as `geom:1e-4:1:13`, in every sweep that has the axis.
      only: names of the sweeps to run (default all).
      out: results go to `out/section/name/scale`.
      fresh: drop what is saved there first.
      console: where progress is shown (default: standard output).

    Raises:
      ValueError: where something asked for does not exist or fit; nothing is written then.
      ResultsError: where the folder cannot be used.
    """
    from rich.console import Console

    from dlexp import training

    plans = plan(experiment, scale=scale, seeds=seeds, num_steps=num_steps, axes=axes, only=only)
    folder, console = store.folder_of(out, experiment.name, scale), console or Console()
    training.train(experiment, plans, scale=scale, folder=folder, fresh=fresh, console=console)
    results = table.load(folder)
    try:
        publish(experiment, results)
    except ResultsError as error:
        console.print(str(error), highlight=False, soft_wrap=True, markup=False)
    return results


def plan(
    experiment: Experiment,
    *,
    scale: str = "cpu",
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
) -> dict[str, Plan]:
    """Returns how each sweep would be trained on the devices at hand; nothing is compiled or written.

    Raises:
      ValueError: as `run` does.
    """
    from dlexp.sweep import machine
    from dlexp.sweep import plan as planning

    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    declared = experiment.sweeps(scale)
    sweeps = overrides.apply(declared, seeds=seeds, num_steps=num_steps, axes=axes, only=only)
    devices = machine.start_devices()
    return {
        name: planning.make(Identity(experiment.name, experiment.version, name, sweep.num_steps), sweep, devices)
        for name, sweep in sweeps.items()
    }


def publish(experiment: Experiment, results: Results, folder: Path | None = None) -> list[Path]:
    """Draws the figures and judges the claims from saved results and returns the paths of what it wrote.

    Args:
      experiment: whose figures and claims.
      results: what they are made from.
      folder: where they go (default: to the results).

    Raises:
      ResultsError: where the saved grid is not the experiment's own and they cannot be made from it.
    """
    from dlexp import plots

    folder = folder or results.folder
    written = []
    try:
        with plots.style():
            figures = experiment.figures(results)
        claims = experiment.claims(results)
    except Exception as error:
        if not _is_changed(experiment, results):
            raise
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ResultsError(
            f"no figures and claims: they cannot be made from the changed grid ({reason}); the runs are saved in "
            f"{results.folder}"
        ) from error
    for name, figure in figures.items():
        written += plots.save(figure, folder / "figures" / name)
    path = folder / "claims.json"
    store.write_text(path, judging.to_json(claims))
    return [*written, path]


def train_again(experiment: Experiment, run_id: str, *, scale: str = "cpu") -> dict[str, np.ndarray]:
    """Trains one run again, alone, and returns its metrics, each `[evaluation, ...]`.

    At equal versions, device and width the numbers are the saved ones, bit for bit.

    Raises:
      ValueError: where the experiment has no such run at this scale.
    """
    from dlexp.sweep import engine, machine

    machine.enable_compile_cache()
    for each in plan(experiment, scale=scale).values():
        others = _Others(run_id)
        if any(name == run_id for group in each.groups for name, _ in each.runs(group)):
            events = engine.train(each, machine.start_devices(), done=others)
            finished = next(event for event in events if isinstance(event, engine.Finished))
            return {name: values[0] for name, values in finished.metrics.items()}
    raise ValueError(f"{experiment.name} has no run {run_id!r} at scale {scale}; run ids stand in the results' frame")


def find(experiment: str, scale: str, out: str | os.PathLike = "runs") -> Results:
    """Returns an experiment's own results where `out` has them, else the reference.

    Raises:
      ResultsError: where neither is there.
    """
    for root in (out, REFERENCE):
        folder = store.folder_of(root, experiment, scale)
        if store.read_manifest(folder) is not None:
            return table.load(folder)
    raise ResultsError(f"{experiment} has no results at scale {scale}, neither in {out} nor as a reference")


def reference_of(results: Results) -> Results | None:
    """Returns the reference results of the same experiment and scale, None where there are none."""
    folder = store.folder_of(REFERENCE, results.experiment, results.scale)
    if store.read_manifest(folder) is None or folder.resolve() == results.folder.resolve():
        return None
    return table.load(folder)


class _Others:
    """Contains every run id but one."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def __contains__(self, run_id: object) -> bool:
        return run_id != self._run_id


def _is_changed(experiment: Experiment, results: Results) -> bool:
    """Whether the saved grid is another than the experiment declares, or lacks a sweep."""
    declared = experiment.sweeps(results.scale)
    saved = results.manifest["sweeps"]
    same = {name: table.describe(sweep.grid) for name, sweep in declared.items()}
    return same != {name: saved[name]["blocks"] for name in results if name in saved}
