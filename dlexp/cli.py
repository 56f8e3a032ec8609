"""The flags every experiment shares, and what it says in the terminal."""

from __future__ import annotations

import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dlexp import interrupt

interrupt.quiet_start()  # before the imports below, which take seconds

from absl import flags
from rich.console import Console

from dlexp import api, fingerprint, sources
from dlexp.progress import say
from dlexp.results import folders
from dlexp.results.files import ResultsError
from dlexp.sweep import scales
from dlexp.types import Experiment

if TYPE_CHECKING:
    from dlexp.sweep.plan import Plan

INTERRUPTED = interrupt.INTERRUPTED
_USAGE = 2
_STOPPED = "stopped; what was finished is saved, and the same command goes on from there"


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs an experiment as its flags say and exits: 0 done, 1 the results cannot be used, 2 bad flags, 130 stopped."""
    console, errors = Console(emoji=False), Console(emoji=False, stderr=True)
    words = list(sys.argv if argv is None else argv)
    sys.exit(ended(lambda: run(experiment, words, console, errors), console))


def ended(command: Callable[[], int], console: Console) -> int:
    """Runs a command, from its first line on prepared for SIGINT and SIGTERM, and returns its exit status.

    After one of them the process ends here, rather than wait for what is still being compiled.
    """
    try:
        with interrupt.watched(lambda sentence: say(console, sentence)):
            status = command()
    except KeyboardInterrupt:
        say(console, _STOPPED)
        status = INTERRUPTED
    if status == INTERRUPTED:
        sys.stdout.flush()
        os._exit(status)
    return status


def run(experiment: Experiment, argv: Sequence[str], console: Console, errors: Console) -> int:
    """Does what the flags in `argv[1:]` say and returns the exit status of `main`."""
    try:
        values = _parse(list(argv))
        if values["help"]:
            say(console, f"{experiment.name}: {experiment.question}\n{_flags().get_help()}")
            return 0
        return _redraw(experiment, values, console) if values["redraw"] else _run(experiment, values, console)
    except flags.Error as error:
        say(errors, f"error: {error}; --help lists the flags")
        return _USAGE
    except _UsageError as error:
        say(errors, f"error: {error}")
        return _USAGE
    except ResultsError as error:
        say(errors, f"error: {error}")
        return 1
    except OSError as error:
        say(errors, f"error: {error.filename or 'a file'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        say(console, _STOPPED)
        return INTERRUPTED


class _UsageError(Exception):
    """Something asked for that does not exist or fit."""


def _run(experiment: Experiment, values: dict[str, Any], console: Console) -> int:
    from dlexp import report, training

    try:
        plans = api.plan(experiment, scale=values["scale"], **_choices(values))
    except (ValueError, TypeError) as error:
        if not _is_our_own(error):
            raise
        raise _UsageError(_located(_flagged(str(error), values), error)) from error
    except KeyError as error:
        if not (flag := _asked_for(error, values)):
            raise  # the author's own
        raise _UsageError(
            f"{flag}: the experiment knows no {error}; its module's docstring says what there is"
        ) from error
    for sentence in _blocks_changed(experiment, values):
        say(console, sentence)
    folder = folders.folder_of(values["out"], experiment.name, values["scale"])
    if values["plan"]:
        for part in report.plan_tables(plans):
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))
        for name, each in plans.items():
            say(
                console,
                f"{name}: {training.num_saved(each, folder / name)} of {each.num_runs} runs are saved in {folder}",
            )
        return 0
    if values["run_id"] is not None:
        return _train_again(_as_saved(experiment, plans, values), values, console)
    options = {name: values[name] for name in ("scale", "fresh", "accept")}
    options |= {"folder": folder, "console": console}
    training.train(experiment, plans, **options)
    return _conclude(experiment, folder, console)


def _conclude(experiment: Experiment, folder: Path, console: Console) -> int:
    """Figures, claims, and the closing summary."""
    from dlexp import report
    from dlexp.results import load
    from dlexp.study.claims import from_json

    results = load(folder)
    for part in report.best_points(results):
        console.print(part)
    try:
        written = api.publish(experiment, results, tell=lambda sentence: say(console, sentence))
    except ResultsError as error:
        say(console, str(error))
        return 0
    except Exception:
        say(console, f"the runs are saved in {folder}; once figures and claims are mended, --redraw is enough")
        raise
    claims = from_json((results.folder / "claims.json").read_text())
    if claims:
        console.print(report.claim_table(claims))
    reference = api.reference_of(results)
    for sentence in report.agreement(results, reference) if reference else ():
        say(console, sentence)
    for path in written:
        say(console, str(path))
    return 0


def _redraw(experiment: Experiment, values: dict[str, Any], console: Console) -> int:
    results = api.find(experiment.name, experiment.version, values["scale"], values["out"])
    target = folders.folder_of(values["out"], experiment.name, values["scale"])
    if results.folder != target:
        say(console, f"drawn from the reference results in {results.folder}")
    elif not values["accept"]:
        fingerprint.check(
            experiment, scales.sweeps(experiment, values["scale"]), values["scale"], results.manifest, target
        )
    for path in api.publish(experiment, results, folder=target, tell=lambda sentence: say(console, sentence)):
        say(console, str(path))
    return 0


def _as_saved(experiment: Experiment, plans: Mapping[str, Plan], values: dict[str, Any]) -> Mapping[str, Plan]:
    """The plans in the layouts of the user's own results, else of the reference."""
    from dlexp import training

    roots = (values["out"], api.REFERENCE)
    own, reference = (folders.folder_of(root, experiment.name, values["scale"]) for root in roots)
    manifest = folders.read_manifest(own) or {}
    if not values["accept"]:
        sweeps = {name: each.sweep for name, each in plans.items()}
        fingerprint.check(experiment, sweeps, values["scale"], manifest, own)
    return training.as_saved(plans, manifest or folders.read_manifest(reference) or {}, exactly=True)


def _train_again(plans: Mapping[str, Plan], values: dict[str, Any], console: Console) -> int:
    try:
        metrics = api.train_again(plans, values["run_id"])
    except ValueError as error:
        raise _UsageError(f"--run_id={values['run_id']}: {error}") from error
    steps = api.plan_with(plans, values["run_id"]).evaluation_steps()
    for name, curve in metrics.items():
        pairs = zip(steps[-len(curve) :], curve.reshape(len(curve), -1)[:, 0], strict=True)
        say(console, f"{name}: {', '.join(f'{step}: {value:.5g}' for step, value in pairs)}")
    return 0


def _flags() -> flags.FlagValues:
    """The flags, held by no global: several experiments may be run from one process."""
    values = flags.FlagValues()
    held: Any = {"flag_values": values}
    flags.DEFINE_enum("scale", "cpu", scales.SCALES, "how large a grid: for tests, two cores, an accelerator", **held)
    flags.DEFINE_integer("seeds", None, "seeds of every point, in place of the experiment's own", 1, 10**7, **held)
    flags.DEFINE_integer("num_steps", None, "optimizer steps of every run; other runs stay", 1, 2**31 - 1, **held)
    axis = "other values on an axis, NAME=VALUE,VALUE,... or NAME=geom:LOW:HIGH:COUNT; may be repeated"
    flags.DEFINE_multi_string("axis", [], axis, **held)
    flags.DEFINE_multi_string("sweep", [], "run this sweep alone; may be repeated", **held)
    flags.DEFINE_enum("precision", "float32", api.PRECISIONS, "of products of matrices; recorded with the runs", **held)
    flags.DEFINE_string("out", "runs", "folder of results, which go to OUT/section/name/scale", **held)
    flags.DEFINE_string("data_dir", None, "folder of downloaded data files (else DLEXP_DATA_DIR)", **held)
    flags.DEFINE_string("run_id", None, "train this run of the results again, alone, and print its curves", **held)
    flags.DEFINE_boolean("plan", False, "show what would be trained and what is saved, and train nothing", **held)
    flags.DEFINE_boolean("redraw", False, "draw and judge again from saved results, and train nothing", **held)
    flags.DEFINE_boolean("fresh", False, "drop the saved runs of these sweeps and start over", **held)
    flags.DEFINE_boolean("accept", False, "keep runs that were saved by other code than the file has now", **held)
    flags.DEFINE_boolean("help", False, "show this text", short_name="h", **held)
    return values


def _parse(argv: list[str]) -> dict[str, Any]:
    parsed = _flags()
    rest = parsed(argv)[1:]
    if rest:
        raise _UsageError(f"{rest[0]!r} is no flag; flags begin with two dashes, --help lists them")
    values = parsed.flag_values_dict()
    _check_combination(values)
    if values["data_dir"] is not None:
        if not Path(values["data_dir"]).is_dir():
            raise _UsageError(f"--data_dir={values['data_dir']}: there is no such folder; name one that exists")
        os.environ["DLEXP_DATA_DIR"] = values["data_dir"]
    return values


def _check_combination(values: dict[str, Any]) -> None:
    """Refuses flags of which one would be ignored."""
    modes = [f"--{name}" for name in ("plan", "redraw", "run_id") if values[name] not in (None, False)]
    if len(modes) > 1:
        raise _UsageError(f"{' and '.join(modes)} exclude each other; give one of them")
    choices = ("axis", "seeds", "num_steps", "sweep") if values["redraw"] else ()
    for name in (*choices, "fresh") if modes else ():
        if values[name]:
            raise _UsageError(f"--{name} means nothing with {modes[0]}; leave one of them out")
    axes = [text.partition("=")[0] for text in values["axis"]]
    for name in axes:
        if axes.count(name) > 1:
            raise _UsageError(f"--axis={name} is given twice; put all its values into one, separated by commas")


def _choices(values: dict[str, Any]) -> dict[str, Any]:
    from dlexp.sweep.axes import parse_axis

    axes = {}
    for text in values["axis"]:
        try:
            name, axes_values = parse_axis(text)
        except ValueError as error:
            raise _UsageError(f"--axis={text}: {error}") from error
        axes[name] = axes_values
    chosen = {name: values[name] for name in ("seeds", "num_steps", "precision")}
    return {**chosen, "axes": axes, "only": values["sweep"]}


def _is_our_own(error: Exception) -> bool:
    """Whether this project raised it, to tell the user; another's error keeps its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(api.__file__).parent)


def _located(message: str, error: Exception) -> str:
    """The message with the line of the user's file that led to it, unless it names a flag or the line already."""
    line = sources.own_line(error)
    return message if line is None or message.startswith("--") or line.file in message else f"{message} ({line})"


def _blocks_changed(experiment: Experiment, values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each axis and union of grids of which only some blocks have the axis."""
    names = [text.partition("=")[0].strip() for text in values["axis"]]
    declared = scales.sweeps(experiment, values["scale"]) if names else {}
    for sweep, name in itertools.product(values["sweep"] or declared, names):
        blocks = declared[sweep].grid.blocks
        having = [block for block in blocks if name in block.config or name in block.hyper]
        if name != "seed" and 0 < len(having) < len(blocks):
            texts = [", ".join(f"{key}={_listed(each)}" for key, each in block.config.items()) for block in having]
            which = "; ".join(text or "the one without config" for text in texts)
            yield f"--axis={name} changes {len(having)} of the {len(blocks)} grids of sweep {sweep}: {which}"


def _listed(values: Sequence[Any]) -> str:
    return ",".join(map(str, values[:4])) + (",..." if len(values) > 4 else "")


def _asked_for(error: KeyError, values: dict[str, Any]) -> str:
    """The flag that asks for what is not there, empty where none does."""
    missing = str(error.args[0]) if error.args else ""
    axes = [text for text in values["axis"] if missing in map(str.strip, text.partition("=")[2].split(","))]
    return f"--axis={axes[0]}" if axes else f"--scale={missing}" if missing == values["scale"] else ""


def _flagged(message: str, values: dict[str, Any]) -> str:
    """The message with the flag it speaks of in front, where it speaks of one."""
    for text in values["axis"]:
        if re.search(rf"\b{re.escape(text.partition('=')[0])}\b", message) or repr(text.partition("=")[2]) in message:
            return f"--axis={text}: {message}"
    for name in ("num_steps", "seeds", "sweep"):
        if values[name] and message.startswith((name, "sweep ")) and name in message:
            value = ",".join(values[name]) if isinstance(values[name], list) else values[name]
            return f"--{name}={value}: {message}"
    return message
