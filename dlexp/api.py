"""From an experiment to its results, for scripts and notebooks: each arrow of the flow is one call here."""

from __future__ import annotations

import base64
import html
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dlexp
from dlexp.results import files, folders, table
from dlexp.results.files import ResultsError
from dlexp.results.table import NotMeasuredError, Results
from dlexp.study import claims as judging
from dlexp.sweep import overrides, scales
from dlexp.sweep.grids import Identity
from dlexp.types import Experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from dlexp.sweep.plan import Plan

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
REFERENCE = Path(dlexp.__file__).parents[1] / "results"


def run(
    experiment: Experiment,
    *,
    scale: str = "cpu",
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
    precision: str = "float32",
    out: str | os.PathLike = "runs",
    fresh: bool = False,
    accept: bool = False,
    console: Console | None = None,
) -> Results:
    """Trains what is missing of an experiment, saves it, draws and judges it, and returns its results.

    The best points are printed, as the command line does; `figures` shows what was drawn.

    Args:
      experiment: what to run.
      scale: smoke, cpu or gpu.
      seeds: seeds of every point in place of the experiment's own.
      num_steps: training length in place of the experiment's own; such runs stand beside the others.
      axes: name -> values, or a text such as `geom:1e-4:1:13`, in every sweep that has the axis.
      only: names of the sweeps to run (default all).
      precision: of products of matrices: float32, tensorfloat32 or bfloat16, recorded with the results.
      out: results go to `out/section/name/scale`.
      fresh: drop what is saved there first.
      accept: keep runs that were saved there by other code than the experiment has now.
      console: where progress is shown (default: standard output).

    Raises:
      ValueError: where something asked for does not exist or fit; nothing is written then.
      ResultsError: where the folder cannot be used, or its runs were trained by other code.
    """
    from rich.console import Console

    from dlexp import report, training
    from dlexp.progress import say

    plans = plan(experiment, scale=scale, seeds=seeds, num_steps=num_steps, axes=axes, only=only, precision=precision)
    folder, console = folders.folder_of(out, experiment.name, scale), console or Console()
    options: dict[str, Any] = {"fresh": fresh, "accept": accept, "console": console}
    training.train(experiment, plans, scale=scale, folder=folder, **options)
    results = table.load(folder)
    for part in report.best_points(results):
        console.print(part)
    try:
        publish(experiment, results, tell=lambda sentence: say(console, sentence))
    except ResultsError as error:
        say(console, str(error))
    return results


def plan(
    experiment: Experiment,
    *,
    scale: str = "cpu",
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
    precision: str = "float32",
) -> dict[str, Plan]:
    """Returns how each sweep would be trained on the devices at hand; nothing is compiled or written.

    Raises:
      ValueError: as `run` does.
    """
    from dlexp.sweep import contract, machine
    from dlexp.sweep import plan as planning

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    machine.check_settings()
    declared = scales.sweeps(experiment, scale)
    contract.check_sweeps(declared)
    _check_names(experiment.name, declared)
    only = (only,) if isinstance(only, str) else only
    sweeps = overrides.apply(declared, seeds=seeds, num_steps=num_steps, axes=axes, only=only)
    devices = machine.start_devices()
    machine.set_precision(devices, precision)
    return {
        name: planning.make(Identity(experiment.name, experiment.version, name, sweep.num_steps), sweep, devices)
        for name, sweep in sweeps.items()
    }


def _check_names(experiment: str, sweeps: Iterable[str]) -> None:
    """They become names of folders."""
    for name in (*experiment.split("."), *sweeps):
        if not re.fullmatch(r"\w[\w-]*", name) or name in ("figures", "damaged"):
            raise ValueError(
                f"{name!r} cannot be a part of an experiment's name or a sweep's; use letters, digits, _ and -"
            )


def publish(
    experiment: Experiment,
    results: Results,
    folder: Path | None = None,
    *,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Path]:
    """Draws the figures and judges the claims from saved results and returns the paths of what it wrote.

    Args:
      experiment: whose figures and claims.
      results: what they are made from.
      folder: where they go (default: to the results).
      tell: is told what cannot be drawn or judged because this grid has not measured it.

    Raises:
      ResultsError: where runs are missing, or the saved grid is not the experiment's own and they cannot be made
        from it; what was drawn of another grid is withdrawn.
    """
    from dlexp.study import style

    folder = folder or results.folder
    try:
        _check_complete(results)
        with style.style():
            drawn = _drawn(experiment, results, tell)
        claims = _judged(experiment, results, tell, anything=bool(drawn))
    except Exception as error:
        if not isinstance(error, ResultsError) and not _is_changed(experiment, results):
            raise
        if folder == results.folder:
            _withdraw(folder)
        raise ResultsError(
            f"no figures and claims: they cannot be made from what is saved ({_reason(error)}); the runs are in "
            f"{results.folder}"
        ) from error
    written = []
    for name in {figure.__name__ for figure in experiment.figures} - drawn.keys():  # one there is of another grid
        for ending in ("svg", "png"):
            (folder / "figures" / f"{name}.{ending}").unlink(missing_ok=True)
    for name, figure in drawn.items():
        written += style.save(figure, folder / "figures" / name)
    path = folder / "claims.json"
    files.write_text(path, judging.to_json(claims))
    return [*written, path]


class Drawn(Mapping[str, Path]):
    """Figures as they were saved: a mapping from a figure's name to its SVG file, which a notebook shows inline."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """Holds the paths."""
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> Path:
        """Returns the file of one figure."""
        return self._paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def _repr_html_(self) -> str:
        """As pictures, not as elements of the page: the names inside one figure are those of another, too."""
        contents = {name: base64.b64encode(path.read_bytes()).decode() for name, path in self._paths.items()}
        return "\n".join(
            f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{content}" style="max-width: 100%">'
            for name, content in contents.items()
        )


def figures(results: Results) -> Drawn:
    """Returns the figures drawn of results in the house style; as the last line of a notebook's cell, shows them.

    Raises:
      ResultsError: where none was drawn.
    """
    paths = {path.stem: path for path in sorted((results.folder / "figures").glob("*.svg"))}
    if not paths:
        raise ResultsError(f"no figure is saved in {results.folder}; api.publish(EXPERIMENT, results) draws them")
    return Drawn(paths)


def _drawn(experiment: Experiment, results: Results, tell: Callable[[str], None]) -> dict[str, Figure]:
    """The figures that this grid has the points for; an error where it has them for none."""
    from matplotlib.figure import Figure

    if callable(experiment.figures):
        raise TypeError("an experiment's figures must be functions, got a function; write (function,) for one")
    drawn: dict[str, Figure] = {}
    last = None
    for figure in experiment.figures:
        try:
            made = figure(results)
            if not isinstance(made, Figure):
                raise TypeError(f"figure {figure.__name__} must return a matplotlib Figure, got {type(made).__name__}")
            drawn[figure.__name__] = made
        except NotMeasuredError as error:
            tell(f"figure {figure.__name__} is left out: {error}")
            last = error
    if last and not drawn:
        raise last
    return drawn


def _judged(
    experiment: Experiment, results: Results, tell: Callable[[str], None], *, anything: bool
) -> Sequence[judging.Claim]:
    try:
        return experiment.claims(results)
    except NotMeasuredError as error:
        if not anything:
            raise
        tell(f"no claim is judged: {error}")
        return ()


def _check_complete(results: Results) -> None:
    for name, declared in results.manifest["sweeps"].items():
        num_saved = len(results.tables.get(name, ()))
        if num_saved < declared["num_runs"]:
            raise ResultsError(
                f"sweep {name} has {num_saved} of {declared['num_runs']} runs; run the same command again to finish it"
            )


def _withdraw(folder: Path) -> None:
    """Figures and claims of another grid must not stand beside these results."""
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "claims.json").unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, ResultsError) else f"{type(error).__name__}: "
    return f"{kind}{error}"


def train_again(plans: Mapping[str, Plan], run_id: str) -> dict[str, np.ndarray]:
    """Trains one run of these plans again, alone, and returns its metrics, each `[evaluation, ...]`.

    At equal versions, device and width the numbers are the saved ones, bit for bit.

    Raises:
      ValueError: where no plan has such a run.
    """
    from dlexp.sweep import engine, machine

    machine.enable_compile_cache()
    chosen = plan_with(plans, run_id)
    events = engine.train(chosen, machine.start_devices(), chosen.missing(_Others(run_id)))
    finished = next(event for event in events if isinstance(event, engine.Finished))
    return {name: values[0] for name, values in finished.metrics.items()}


def plan_with(plans: Mapping[str, Plan], run_id: str) -> Plan:
    """Returns the plan that has a run of this id.

    Raises:
      ValueError: where there is none.
    """
    for each in plans.values():
        if any(name == run_id for group in each.groups for name, _ in each.runs(group)):
            return each
    raise ValueError(f"there is no run {run_id!r} in this grid; run ids stand in the results' frame")


def find(experiment: str, version: int, scale: str, out: str | os.PathLike = "runs") -> Results:
    """Returns an experiment's own results where `out` has them, else the reference.

    Raises:
      ResultsError: where neither is there, or they are of another version.
    """
    for root in (out, REFERENCE):
        folder = folders.folder_of(root, experiment, scale)
        manifest = folders.read_manifest(folder)
        if manifest is not None and manifest["version"] != version:
            raise ResultsError(
                f"{folder} is of version {manifest['version']}, the experiment is at {version}; train again"
            )
        if manifest is not None and (results := table.load(folder)):
            return results
    raise ResultsError(f"{experiment} has no results at scale {scale}, neither in {out} nor as a reference")


def reference_of(results: Results) -> Results | None:
    """Returns the reference results of the same experiment and scale, None where there are none."""
    folder = folders.folder_of(REFERENCE, results.experiment, results.scale)
    if folders.read_manifest(folder) is None or folder.resolve() == results.folder.resolve():
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
    declared = scales.sweeps(experiment, results.scale)
    saved = results.manifest["sweeps"]
    same = {name: table.describe(sweep.grid) for name, sweep in declared.items()}
    return same != {name: saved[name]["blocks"] for name in results if name in saved}
