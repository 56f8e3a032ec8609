"""From an experiment to its results, for scripts and notebooks: each arrow of the flow is one call here."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dlexp
from dlexp import claims as judging
from dlexp.results import store, table
from dlexp.results.store import ResultsError
from dlexp.results.table import Results
from dlexp.sweep import grids
from dlexp.sweep.grids import Identity
from dlexp.types import Experiment, Sweep

if TYPE_CHECKING:
    from rich.console import Console

    from dlexp.sweep.engine import Finished
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

    plans = plan(experiment, scale=scale, seeds=seeds, num_steps=num_steps, axes=axes, only=only)
    folder = train(experiment, plans, scale=scale, out=out, fresh=fresh, console=console)
    results = table.load(folder)
    try:
        publish(experiment, results)
    except ResultsError as error:
        (console or Console()).print(str(error), highlight=False, soft_wrap=True, markup=False)
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
    from dlexp.sweep import engine
    from dlexp.sweep import plan as planning

    sweeps = chosen_sweeps(experiment, scale, seeds=seeds, num_steps=num_steps, axes=axes, only=only)
    devices = engine.start_devices()
    return {
        name: planning.make(Identity(experiment.name, experiment.version, name, sweep.num_steps), sweep, devices)
        for name, sweep in sweeps.items()
    }


def chosen_sweeps(
    experiment: Experiment,
    scale: str,
    *,
    seeds: int | None = None,
    num_steps: int | None = None,
    axes: Mapping[str, Sequence[Any] | str] | None = None,
    only: Sequence[str] = (),
) -> dict[str, Sweep]:
    """Returns the experiment's sweeps with everything that was asked for put into them.

    Raises:
      ValueError: where a scale, sweep, axis or value does not exist or fit.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    declared = dict(experiment.sweeps(scale))
    for name in only:
        if name not in declared:
            raise ValueError(f"sweep must be one of {', '.join(declared)}, got {name!r}")
    sweeps = {name: sweep for name, sweep in declared.items() if not only or name in only}
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        sweeps = {name: _with_axis(sweep, "seed", tuple(range(seeds))) for name, sweep in sweeps.items()}
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        sweeps = {
            name: sweep._replace(num_steps=num_steps) if sweep.num_steps else sweep for name, sweep in sweeps.items()
        }
    for name, values in (axes or {}).items():
        sweeps = _with_axis_everywhere(sweeps, name, values)
    return sweeps


def train(
    experiment: Experiment,
    plans: Mapping[str, Plan],
    *,
    scale: str,
    out: str | os.PathLike = "runs",
    fresh: bool = False,
    console: Console | None = None,
) -> Path:
    """Trains every run of the plans that is not saved yet and returns the folder of the results.

    Raises:
      ResultsError: where the folder cannot be used.
    """
    from rich.console import Console

    console = console or Console()
    folder = store.folder_of(out, experiment.name, scale)
    _say_what_is_dropped(folder, fresh, console)
    manifest = store.claim_folder(folder, experiment.name, experiment.version, fresh=fresh)
    manifest = _declared(experiment, plans, scale, manifest)
    store.write_manifest(folder, manifest)
    began = time.monotonic()
    try:
        trained = sum(_train_sweep(each, folder / name, console) for name, each in plans.items())
    except OSError as error:
        raise ResultsError(
            f"{folder} could not be written ({error.strerror or error}); what was saved until then is whole, and "
            "the same command goes on from there"
        ) from error
    if trained:
        manifest["seconds"] = round(manifest.get("seconds", 0.0) + time.monotonic() - began, 1)
        store.write_manifest(folder, manifest)
    return folder


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
    from dlexp.sweep import engine

    enable_compile_cache()
    for each in plan(experiment, scale=scale).values():
        others = _Others(run_id)
        if any(name == run_id for group in each.groups for name, _ in each.runs(group)):
            events = engine.train(each, engine.start_devices(), done=others)
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


def enable_compile_cache() -> None:
    """Keeps compiled programs on disk, in the user's cache folder, unless JAX was told where already."""
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        import pooch

        config.update("jax_compilation_cache_dir", str(pooch.os_cache("dlexp") / "xla"))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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


def _with_axis(sweep: Sweep, name: str, values: Sequence[Any]) -> Sweep:
    return sweep._replace(grid=grids.override(sweep.grid, name, values))


def _with_axis_everywhere(sweeps: dict[str, Sweep], name: str, values: Sequence[Any] | str) -> dict[str, Sweep]:
    holders = [each for each, sweep in sweeps.items() if name in sweep.grid.axes]
    if not holders:
        known = dict.fromkeys(axis for sweep in sweeps.values() for axis in sweep.grid.axes)
        raise ValueError(f"there is no axis {name!r}; the axes are {', '.join(known)}")
    changed = dict(sweeps)
    for each in holders:
        grid = sweeps[each].grid
        parsed = grids.parse_values(values, grid.axes[name]) if isinstance(values, str) else values
        if isinstance(values, str) and name in grid.hyper_names:
            parsed = grids.parse_values(values, (0.0,))
        changed[each] = _with_axis(sweeps[each], name, parsed)
    return changed


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
        }
    return {
        **manifest,
        "experiment": experiment.name,
        "version": experiment.version,
        "question": experiment.question,
        "scale": scale,
        "sweeps": sweeps,
    }


def _say_what_is_dropped(folder: Path, fresh: bool, console: Console) -> None:
    if fresh and folder.exists():
        num_files = len(list(folder.rglob("*.parquet")))
        console.print(f"--fresh drops {folder} with {num_files} files of runs", highlight=False, soft_wrap=True)


def _train_sweep(each: Plan, folder: Path, console: Console) -> int:
    """Trains and saves one sweep's missing runs and returns how many there were."""
    from dlexp.progress import Display
    from dlexp.sweep import engine

    enable_compile_cache()
    saved, moved = store.finished(folder)
    for path in moved:
        console.print(f"damaged results moved to {path}; their runs are trained again", highlight=False)
    num_done = sum(1 for group in each.groups for name, _ in each.runs(group) if name in saved)
    num_missing = each.num_runs - num_done
    if not num_missing:
        console.print(f"{each.identity.sweep}: all {num_done} runs are saved", highlight=False)
        return 0
    provenance = _provenance(len(engine.start_devices()))
    with Display(console, each.identity.sweep, each.num_runs, num_done, each.sweep.num_steps) as display:
        for event in engine.train(each, engine.start_devices(), saved):
            match event:
                case engine.Compiling(group):
                    display.compiling(_config_text(each.groups[group].family.config))
                case engine.Advanced(run_steps, num_nonfinite):
                    display.advanced(run_steps, num_nonfinite)
                case engine.Finished():
                    store.write_chunk(folder, _columns(event), _about(each, event, provenance))
                    display.finished(len(event.runs), sum(at >= 0 for at in event.nonfinite_at))
    store.compact(folder)
    return num_missing


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
        "config": dict(group.family.config),
        "hyper": {name: legal.default for name, legal in group.learner.hyper.items()},
        "metrics": list(chunk.metrics),
        "provenance": {**provenance, "width": chunk.width},
    }


def _provenance(num_devices: int) -> dict[str, Any]:
    """What it takes to train the same numbers again."""
    import jax

    config: Any = jax.config
    device = jax.local_devices()[0]
    packages = ("dlexp", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: _installed_version(name) for name in packages},
        "platform": device.platform,
        "device": device.device_kind,
        "machine": platform.machine(),
        "num_devices": num_devices,
        "matmul_precision": config.jax_default_matmul_precision or "default",
        "float": "float64" if config.jax_enable_x64 else "float32",
        "git_commit": _git_commit(),
    }


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return dlexp.__version__ if package == "dlexp" else "unknown"


def _git_commit() -> str:
    command: Callable[..., Any] = subprocess.run
    try:
        folder = Path(dlexp.__file__).parent
        done = command(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def _config_text(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.items()) or "the programs"
