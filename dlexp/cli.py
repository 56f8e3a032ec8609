"""The flags every experiment shares, and what it says in the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from rich.console import Console

from dlexp import api
from dlexp.results import store
from dlexp.results.store import ResultsError
from dlexp.types import Experiment

INTERRUPTED = 130
_USAGE = 2


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs an experiment as its flags say and exits: 0 done, 1 the results cannot be used, 2 bad flags, 130 stopped."""
    argv = list(sys.argv if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(experiment, argv, Console(), Console(stderr=True)))


def run(experiment: Experiment, argv: Sequence[str], console: Console, errors: Console) -> int:
    """Does what the flags in `argv[1:]` say and returns the exit status of `main`."""
    try:
        values = _parse(list(argv))
        if values["help"]:
            _say(console, f"{experiment.name}: {experiment.question}\n{_flags().get_help()}")
            return 0
        return _redraw(experiment, values, console) if values["redraw"] else _run(experiment, values, console)
    except flags.Error as error:
        _say(errors, f"error: {error}; --help lists the flags")
        return _USAGE
    except _UsageError as error:
        _say(errors, f"error: {error}")
        return _USAGE
    except ResultsError as error:
        _say(errors, f"error: {error}")
        return 1
    except OSError as error:
        _say(errors, f"error: {error.filename or 'a file'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        _say(console, "stopped; what was finished is saved, and the same command goes on from there")
        return INTERRUPTED


class _UsageError(Exception):
    """Something asked for that does not exist or fit."""


def _run(experiment: Experiment, values: dict[str, Any], console: Console) -> int:
    from dlexp import report, training

    try:
        plans = api.plan(experiment, scale=values["scale"], **_choices(values))
    except (ValueError, TypeError, FileNotFoundError) as error:
        if os.environ.get("DLEXP_TRACEBACK"):
            raise
        raise _UsageError(_flagged(str(error), values)) from error
    if values["plan"]:
        for part in report.plan_tables(plans):
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))
        return 0
    if values["run_id"]:
        return _train_again(experiment, values, console)
    folder = store.folder_of(values["out"], experiment.name, values["scale"])
    options = {"scale": values["scale"], "folder": folder, "fresh": values["fresh"], "console": console}
    training.train(experiment, plans, **options)
    return _conclude(experiment, folder, console)


def _conclude(experiment: Experiment, folder: Path, console: Console) -> int:
    """Figures, claims, and the closing summary."""
    from dlexp import report
    from dlexp.claims import from_json
    from dlexp.results import load

    results = load(folder)
    for part in report.best_points(results):
        console.print(part)
    try:
        written = api.publish(experiment, results)
    except ResultsError as error:
        _say(console, str(error))
        return 0
    claims = from_json((results.folder / "claims.json").read_text())
    if claims:
        console.print(report.claim_table(claims))
    reference = api.reference_of(results)
    for sentence in report.agreement(results, reference) if reference else ():
        _say(console, sentence)
    for path in written:
        _say(console, str(path))
    return 0


def _redraw(experiment: Experiment, values: dict[str, Any], console: Console) -> int:
    results = api.find(experiment.name, values["scale"], values["out"])
    target = store.folder_of(values["out"], experiment.name, values["scale"])
    if results.folder != target:
        _say(console, f"drawn from the reference results in {results.folder}")
    for path in api.publish(experiment, results, folder=target):
        _say(console, str(path))
    return 0


def _train_again(experiment: Experiment, values: dict[str, Any], console: Console) -> int:
    try:
        metrics = api.train_again(experiment, values["run_id"], scale=values["scale"])
    except ValueError as error:
        raise _UsageError(f"--run_id: {error}") from error
    for name, curve in metrics.items():
        _say(console, f"{name}: {' '.join(f'{value:.5g}' for value in curve.reshape(len(curve), -1)[:, 0])}")
    return 0


def _flags() -> flags.FlagValues:
    """The flags, held by no global: several experiments may be run from one process."""
    values = flags.FlagValues()
    flags.DEFINE_enum("scale", "cpu", api.SCALES, "how large a grid", flag_values=values)
    flags.DEFINE_integer("seeds", None, "seeds of every point", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("num_steps", None, "optimizer steps of every run", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_string("axis", [], "NAME=VALUE,VALUE,... or NAME=geom:LOW:HIGH:COUNT", flag_values=values)
    flags.DEFINE_multi_string("sweep", [], "run this sweep alone; may be repeated", flag_values=values)
    flags.DEFINE_string("out", "runs", "where results go", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of data files (else DLEXP_DATA_DIR)", flag_values=values)
    flags.DEFINE_string("run_id", None, "train this run again alone and print its curves", flag_values=values)
    flags.DEFINE_boolean("plan", False, "show what would be trained, and train nothing", flag_values=values)
    flags.DEFINE_boolean("redraw", False, "draw from saved results, and train nothing", flag_values=values)
    flags.DEFINE_boolean("fresh", False, "drop the saved results and start over", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this text", short_name="h", flag_values=values)
    return values


def _parse(argv: list[str]) -> dict[str, Any]:
    parsed = _flags()
    rest = parsed(argv)[1:]
    if rest:
        raise _UsageError(f"{rest[0]!r} is no flag; flags begin with two dashes, --help lists them")
    values = parsed.flag_values_dict()
    if values["data_dir"] is not None:
        if not Path(values["data_dir"]).is_dir():
            raise _UsageError(f"--data_dir={values['data_dir']}: there is no such folder; name one that exists")
        os.environ["DLEXP_DATA_DIR"] = values["data_dir"]
    return values


def _choices(values: dict[str, Any]) -> dict[str, Any]:
    from dlexp.sweep.grids import parse_axis

    try:
        axes = dict(map(parse_axis, values["axis"]))
    except ValueError as error:
        raise _UsageError(f"--axis: {error}") from error
    return {"seeds": values["seeds"], "num_steps": values["num_steps"], "axes": axes, "only": values["sweep"]}


def _flagged(message: str, values: dict[str, Any]) -> str:
    """The message with the flag it speaks of in front, where it speaks of one."""
    given = [(f"--axis={text}", text.partition("=")) for text in values["axis"]]
    for flag, (name, _, text) in given:
        if name in message or any(value in message for value in text.split(",")):
            return f"{flag}: {message}"
    for name in ("num_steps", "seeds", "sweep"):
        if values[name] and message.startswith((name, "sweep ")) and name in message:
            value = ",".join(values[name]) if isinstance(values[name], list) else values[name]
            return f"--{name}={value}: {message}"
    return message


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
