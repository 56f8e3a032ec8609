"""What is on the disk: one Parquet file a chunk, named by its own content, and a manifest.

Everything is written beside its place, synced and renamed into it, so a name either holds a whole file or does not
exist. A chunk's name carries the SHA-256 of its bytes: no second write could disagree with the first, and a file
that was damaged since does not match its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
MANIFEST = "manifest.json"
SET_ASIDE = "damaged"
_DRAWN = {"figures", "claims.json"}
_KEY = b"dlexp"


class ResultsError(Exception):
    """Saved results that cannot be used as they are; the message says which file and what to do."""


def folder_of(root: str | os.PathLike, experiment: str, scale: str) -> Path:
    """Returns `root/section/name/scale`.

    >>> folder_of("runs", "optimization.adam", "cpu").as_posix()
    'runs/optimization/adam/cpu'
    """
    return Path(root, *experiment.split("."), scale)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest, None where there is none.

    Raises:
      ResultsError: where it cannot be read, or is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}); remove it, or the folder, and run again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ResultsError(f"{path} is no manifest of format {FORMAT}; choose another --out, or remove the folder")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest, whole or not at all."""
    write_text(folder / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n")


@contextmanager
def claimed(folder: Path, experiment: str, version: int, *, fresh: bool = False) -> Iterator[dict[str, Any]]:
    """A context in which the folder is this experiment's and this process's alone; yields its manifest so far.

    The manifest is empty where the folder is new, or where it was damaged and has been moved aside. What a killed
    process left half-written is removed. The lock goes with the process that holds it, however that ends.

    Args:
      folder: where results go.
      experiment: name of the experiment.
      version: of the experiment; results of another version are refused unless `fresh`.
      fresh: drop what is there.

    Raises:
      ResultsError: where the folder holds something else, is in use, or cannot be written.
    """
    try:
        _check_is_ours(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _remove_leftovers(folder)
            manifest = _own_manifest(folder, experiment, version, fresh=fresh)
            if fresh and folder.exists():
                _drop(folder)
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            yield {} if fresh else manifest
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}); choose another --out") from error


def _check_is_ours(folder: Path) -> None:
    """Refuses a file in the way, and a folder with anything but results."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise ResultsError(f"{there} is a file, not a folder; choose another --out")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if names and MANIFEST not in names and SET_ASIDE not in names and not all(map(_is_harmless, names)):
        raise ResultsError(f"{folder} holds files that are no results; choose another --out")


def _is_harmless(name: str) -> bool:
    return name in _DRAWN or name.startswith(f".{MANIFEST}.")  # what a redrawing, or a kill at the start, leaves


def _own_manifest(folder: Path, experiment: str, version: int, *, fresh: bool) -> dict[str, Any]:
    try:
        manifest = read_manifest(folder) or {}
    except ResultsError:
        set_aside(folder / MANIFEST, folder)
        return {}
    if manifest and manifest["experiment"] != experiment:
        raise ResultsError(f"{folder} holds results of {manifest['experiment']}; choose another --out")
    if manifest and manifest["version"] != version and not fresh:
        raise ResultsError(
            f"{folder} holds results of version {manifest['version']}, the experiment is at {version}; "
            "drop them with --fresh or choose another --out"
        )
    return manifest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(
                f"{folder} is in use by another process; wait until it ends, or choose another --out"
            ) from error
        yield


def _remove_leftovers(folder: Path) -> None:
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.parent.glob(f".{folder.name}.dropped-*"):
        shutil.rmtree(path, ignore_errors=True)


def _drop(folder: Path) -> None:
    """Renamed first: a kill on the way leaves a folder that is whole or gone, never half."""
    condemned = folder.with_name(f".{folder.name}.dropped-{os.getpid()}")
    os.replace(folder, condemned)
    shutil.rmtree(condemned)


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a damaged file to `folder/damaged` and returns where it is now."""
    target = folder / SET_ASIDE / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    return target


def write_chunk(folder: Path, columns: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Writes the rows of one chunk and returns the file's path.

    Args:
      folder: of the sweep.
      columns: name -> list of scalars, or array `[run, ...]`; arrays of one trailing axis become list columns, of
        more fixed-shape tensor columns.
      about: what JSON can hold: which columns are which, and where the numbers come from.
    """
    arrays = {name: _to_arrow(values) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    return _write_table(folder, table)


def chunks(folder: Path) -> Iterator[tuple[Path, pa.Table, dict[str, Any]]]:
    """Yields each chunk of a sweep: path, table and what `about` said.

    Raises:
      ResultsError: at a file that does not match its name.
    """
    for path in sorted(folder.glob("*.parquet")):
        yield path, *read_chunk(path)


def read_chunk(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Returns one chunk and what its `about` said.

    Raises:
      ResultsError: where its bytes do not match its name, or are no chunk.
    """
    content = path.read_bytes()
    if path.stem != _digest(content):
        raise ResultsError(f"{path} is damaged: its content does not match its name; remove it and run again")
    try:
        table = pq.read_table(pa.BufferReader(content))
        return table, json.loads(table.schema.metadata[_KEY])
    except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
        raise ResultsError(f"{path} is no chunk of results ({error}); remove it and run again") from error


def finished(folder: Path, experiment: str, version: int, sweep: str) -> tuple[set[str], list[Path]]:
    """Returns the ids of a sweep's saved runs, and the files it moved aside: damaged ones, other experiments' ones."""
    ids: set[str] = set()
    moved = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, about = read_chunk(path)
            check_identity(path, about, experiment, version, sweep)
            ids.update(table["run_id"].to_pylist())
        except ResultsError:
            moved.append(set_aside(path, folder.parent))
    return ids, moved


def check_identity(path: Path, about: Mapping[str, Any], experiment: str, version: int, sweep: str) -> None:
    """Raises ResultsError unless a chunk says that it is of this sweep."""
    identity = about["identity"]
    if (identity["experiment"], identity["version"], identity["sweep"]) != (experiment, version, sweep):
        raise ResultsError(f"{path} is of {identity['experiment']}, sweep {identity['sweep']}; remove it and run again")


def compact(folder: Path) -> None:
    """Puts the chunks of each group into one file; killed halfway, it leaves rows twice, never none.

    Chunks are of one group where their columns and their config agree.
    """
    groups: dict[str, list[tuple[Path, pa.Table, dict[str, Any]]]] = {}
    for path, table, about in chunks(folder):
        key = json.dumps([table.schema.to_string(), about.get("config")], sort_keys=True, default=str)
        groups.setdefault(key, []).append((path, table, about))
    for members in groups.values():
        if len(members) < 2:
            continue
        table = _without_repeats(pa.concat_tables([table for _, table, _ in members]))
        about = {**members[0][2], "provenance": _distinct([a["provenance"] for *_, a in members])}
        merged = _write_table(folder, table.replace_schema_metadata({_KEY: json.dumps(about).encode()}))
        for path, *_ in members:
            if path != merged:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: beside its place, synced, renamed, and the folder synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # not on Windows
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_table(folder: Path, table: pa.Table) -> Path:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    path = folder / f"{_digest(content)}.parquet"
    write_bytes(path, content)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _to_arrow(values: Any) -> pa.Array:
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values)
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as an array `[run, ...]`, whatever `write_chunk` made of it."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    if isinstance(array, pa.FixedShapeTensorArray):
        return array.to_numpy_ndarray()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


def _without_repeats(table: pa.Table) -> pa.Table:
    _, first = np.unique(np.array(table["run_id"].to_pylist()), return_index=True)
    return table.take(np.sort(first)) if len(first) < len(table) else table


def _distinct(provenances: list[Any]) -> list[Any]:
    entries = [each for item in provenances for each in (item if isinstance(item, list) else [item])]
    return [json.loads(text) for text in dict.fromkeys(json.dumps(each, sort_keys=True) for each in entries)]
