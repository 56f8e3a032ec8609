"""The folder of one experiment at one scale: its manifest, and whose it is while it is written to."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlexp.results import strictjson
from dlexp.results.checkpoint import FOLDER as UNFINISHED
from dlexp.results.files import LEFTOVERS, SET_ASIDE, ResultsError, check_format, set_aside, write_text

FORMAT = 2  # an older one is read, and written anew where its folder is trained on
MANIFEST = "manifest.json"
_KEYS = ("experiment", "version", "scale", "sweeps")
_OTHERS = (MANIFEST, "claims.json", "figures", SET_ASIDE)


class _UnreadableError(ResultsError):
    """A manifest that is no JSON: damaged, not another's."""


def folder_of(root: str | os.PathLike, experiment: str, scale: str) -> Path:
    """Returns `root/section/name/scale`.

    >>> folder_of("runs", "optimization.adam", "cpu").as_posix()
    'runs/optimization/adam/cpu'
    """
    return Path(root, *experiment.split("."), scale)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest, None where there is none.

    Raises:
      ResultsError: where it cannot be read, is none of ours, or a newer dlexp wrote it.
    """
    path = folder / MANIFEST
    try:
        manifest = strictjson.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _UnreadableError(f"{path} cannot be read ({error}); remove it and run again") from error
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(form, int) or form < 1:
        raise ResultsError(f"{path} is no manifest of results; choose another --out")
    check_format(path, form, FORMAT)
    if any(key not in manifest for key in _KEYS):
        raise ResultsError(f"{path} is no whole manifest of results; choose another --out")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest, whole or not at all, by one of the present format."""
    write_text(
        folder / MANIFEST, strictjson.dumps({"format": FORMAT, **manifest} | {"format": FORMAT}, indent=1) + "\n"
    )


@contextmanager
def claimed(folder: Path, experiment: str, version: int, *, drop: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """A context in which the folder is this experiment's and this process's alone; yields its manifest so far.

    The manifest is empty where the folder is new, or where it was unreadable and has been moved aside. What a
    killed process left half-written is removed. The lock goes with the process that holds it, however that ends.

    Args:
      folder: where results go.
      experiment: name of the experiment.
      version: of the experiment; results of another version are refused unless all of them are dropped.
      drop: names of sweeps to drop first.

    Raises:
      ResultsError: where the folder holds something else, is in use, or cannot be written.
    """
    try:
        _check_is_folder(folder)
        manifest = _own_manifest(folder, experiment, version, drop)  # before anything is written anywhere
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        lock = _lock(folder)
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error
    with lock:
        _remove_leftovers(folder)
        if manifest is None:
            set_aside(folder / MANIFEST, folder)
        for name in drop:
            _drop(folder / name)
        yield _without(manifest or {}, drop)


def _check_is_folder(folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise ResultsError(f"{there} is a file, not a folder; choose another --out")


def _own_manifest(folder: Path, experiment: str, version: int, drop: Collection[str]) -> dict[str, Any] | None:
    """The manifest, empty where there is none yet, None where it is damaged and the folder is ours all the same."""
    try:
        manifest = read_manifest(folder)
    except _UnreadableError:
        _refuse_foreign(folder)
        return None
    if manifest is None:
        _refuse_foreign(folder)
        return {}
    if manifest["experiment"] != experiment:
        raise ResultsError(f"{folder} holds results of {manifest['experiment']}; choose another --out")
    if manifest["version"] != version and not set(manifest["sweeps"]) <= set(drop):
        raise ResultsError(
            f"{folder} holds results of version {manifest['version']}, the experiment is at {version}; "
            "drop them with --fresh or choose another --out"
        )
    return manifest


def _refuse_foreign(folder: Path) -> None:
    foreign = [path.name for path in folder.glob("*") if path.name not in _OTHERS and not _is_of_a_sweep(path)]
    if foreign:
        raise ResultsError(f"{folder} holds files that are no results ({foreign[0]}); choose another --out")


def _is_of_a_sweep(path: Path) -> bool:
    """Whether it is a folder of chunks, or something a killed process left."""
    if path.name.startswith("."):
        return path.name == ".lock" or path.match(LEFTOVERS) or ".dropped-" in path.name
    entries = path.glob("*") if path.is_dir() else iter([path / "a file"])
    return all(entry.suffix in (".parquet", ".tmp") or entry.name == UNFINISHED for entry in entries)


def _lock(folder: Path) -> Any:
    lock = open(folder / ".lock", "w")  # noqa: SIM115 - held as long as the context that gets it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ResultsError(
            f"{folder} is in use by another process; wait until it ends, or choose another --out"
        ) from error
    return lock


def _remove_leftovers(folder: Path) -> None:
    for path in folder.rglob(LEFTOVERS):
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.dropped-*"):
        shutil.rmtree(path, ignore_errors=True)


def _drop(folder: Path) -> None:
    """Renamed first: a kill on the way leaves a sweep that is whole or gone, never half."""
    if folder.exists():
        condemned = folder.with_name(f".{folder.name}.dropped-{os.getpid()}")
        os.replace(folder, condemned)
        shutil.rmtree(condemned)


def _without(manifest: Mapping[str, Any], drop: Collection[str]) -> dict[str, Any]:
    """The manifest of the other sweeps; the seconds spent on those that are dropped go with them."""
    sweeps = manifest.get("sweeps", {})
    kept = {name: sweep for name, sweep in sweeps.items() if name not in drop}
    dropped = sum(sweep.get("seconds", 0.0) for name, sweep in sweeps.items() if name in drop)
    return {**manifest, "sweeps": kept, "seconds": round(manifest.get("seconds", 0.0) - dropped, 1)} if kept else {}
