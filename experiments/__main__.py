"""Lists every experiment, runs them all, redraws them all, or shows what is saved of them all.

python -m experiments [--all | --redraw | --plan] [--scale=smoke|cpu|gpu] [--out=DIR] [--data_dir=DIR] [--markdown]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table as Rows

import experiments
from dlexp import api, cli
from dlexp.results import folders
from dlexp.sweep import scales
from dlexp.types import Experiment

REPOSITORY = Path(experiments.__file__).parents[1]


def module_names() -> list[str]:
    """Returns the names of all experiment modules below this folder, in order."""
    found = pkgutil.walk_packages(experiments.__path__, "experiments.")
    names = (each.name for each in found if not each.ispkg)
    return sorted(name for name in names if not name.rpartition(".")[2].startswith("_"))


def experiment_of(module_name: str) -> Experiment:
    """Imports a module and returns its `EXPERIMENT`."""
    return importlib.import_module(module_name).EXPERIMENT


def main(argv: Sequence[str]) -> int:
    """Does what the flags say and returns the exit status: 0, 1 where an experiment failed, 2 on bad flags."""
    values = _flags()
    try:
        rest = values(list(argv), known_only=True)[1:]
        runs = values["all"].value or values.redraw or values.plan
        if rest and not runs:
            raise flags.Error(f"{rest[0]!r} is unknown here; --help lists the flags")
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if values["help"].value:
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    console = Console(emoji=False)
    if values.markdown:
        print(markdown_table())
        return 0
    if runs:
        return _run_all([arg for arg in argv[1:] if arg.lstrip("-").partition("=")[0] not in ("all", "noall")], console)
    console.print(_listing(values.scale, values.out))
    return 0


def markdown_table() -> str:
    """Returns the README's table of experiments, from the modules and their reference results."""
    lines = ["| experiment | question | figure | runs, time on two cores |", "|---|---|---|---|"]
    for experiment in map(experiment_of, module_names()):
        folder = folders.folder_of(api.REFERENCE, experiment.name, "cpu")
        manifest = folders.read_manifest(folder) or {}
        figures = sorted((folder / "figures").glob("*.svg"))
        links = ", ".join(f"[{path.stem}]({path.relative_to(REPOSITORY).as_posix()})" for path in figures)
        num_runs = sum(sweep["num_runs"] for sweep in manifest.get("sweeps", {}).values())
        cost = f"{num_runs:,}, {manifest['seconds']:.0f} s" if "seconds" in manifest else "-"
        lines.append(f"| `{experiment.name}` | {experiment.question} | {links or '-'} | {cost} |")
    return "\n".join(lines)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "show this text", flag_values=values)
    flags.DEFINE_boolean("all", False, "run every experiment", flag_values=values)
    flags.DEFINE_boolean("redraw", False, "draw every experiment from saved results", flag_values=values)
    flags.DEFINE_boolean("plan", False, "show each experiment's plan and what is saved of it", flag_values=values)
    flags.DEFINE_boolean("markdown", False, "print the README's table of experiments", flag_values=values)
    flags.DEFINE_enum("scale", "cpu", scales.SCALES, "how large the grids", flag_values=values)
    flags.DEFINE_string("out", "runs", "where results go", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of data files", flag_values=values)
    return values


def _listing(scale: str, out: str) -> Rows:
    rows = Rows(box=box.SIMPLE)
    for heading in ("experiment", "question", f"saved at scale {scale}"):
        rows.add_column(heading, overflow="fold", no_wrap=heading == "experiment")
    for name in module_names():
        try:
            experiment = experiment_of(name)
        except Exception as error:  # one broken module hides no other
            rows.add_row(name, f"cannot be imported: {type(error).__name__}: {error}", "-")
            continue
        saved = [
            name for name, root in (("own", out), ("reference", api.REFERENCE)) if _is_saved(experiment, scale, root)
        ]
        rows.add_row(f"experiments.{experiment.name}", experiment.question, ", ".join(saved) or "-")
    return rows


def _is_saved(experiment: Experiment, scale: str, root: str | Path) -> bool:
    return (folders.folder_of(root, experiment.name, scale) / folders.MANIFEST).exists()


def _run_all(arguments: Sequence[str], console: Console) -> int:
    """Runs each experiment with these flags, goes on after a failure, and sums up."""
    rows = Rows(title="summary", title_justify="left", box=box.SIMPLE)
    for heading in ("experiment", "outcome", "seconds"):
        rows.add_column(heading)
    failed = 0
    for name in module_names():
        console.rule(name)
        began = time.monotonic()
        try:
            status = cli.run(
                experiment_of(name), ["experiments", *arguments], console, Console(emoji=False, stderr=True)
            )
        except Exception:
            traceback.print_exc()
            status = 1
        if status == cli.INTERRUPTED:
            return status
        failed += status != 0
        rows.add_row(name, "done" if status == 0 else "failed", f"{time.monotonic() - began:.1f}")
    console.print(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(cli.ended(lambda: main(sys.argv), Console(emoji=False)))
