"""What is on the disk: one Parquet file a chunk, named by its own content, and a manifest.

Everything is written beside its place, synced and renamed into it, so a name either holds a whole file or does not
exist. A chunk's name carries the SHA-256 of its bytes: no second write could disagree with the first, and a file
that was damaged since does not match its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
MANIFEST = "manifest.json"
SET_ASIDE = "damaged"
_DRAWN = {"figures", "claims.json"}  # what a redrawing from the reference leaves
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


def claim_folder(folder: Path, experiment: str, version: int, *, fresh: bool = False) -> dict[str, Any]:
    """Makes the folder this experiment's and returns the manifest it has so far (empty where it is new).

    Args:
      folder: where results go.
      experiment: name of the experiment.
      version: of the experiment; results of another version are refused unless `fresh`.
      fresh: drop what is there.

    Raises:
      ResultsError: where the folder holds something else or cannot be written.
    """
    try:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir():
            raise ResultsError(f"{there} is a file, not a folder; choose another --out")
        manifest = read_manifest(folder) or {}
        if not manifest and folder.exists() and {entry.name for entry in folder.iterdir()} - _DRAWN:
            raise ResultsError(f"{folder} holds files that are no results; choose another --out")
        if manifest and manifest["experiment"] != experiment:
            raise ResultsError(f"{folder} holds results of {manifest['experiment']}; choose another --out")
        if manifest and manifest["version"] != version and not fresh:
            raise ResultsError(
                f"{folder} holds results of version {manifest['version']}, the experiment is at {version}; "
                "drop them with --fresh or choose another --out"
            )
        if fresh and manifest:
            shutil.rmtree(folder)
            manifest = {}
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return manifest
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error


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


def finished(folder: Path) -> tuple[set[str], list[Path]]:
    """Returns the ids of all runs saved in a sweep's folder, and the damaged files it moved aside on the way."""
    ids: set[str] = set()
    moved = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            ids.update(read_chunk(path)[0]["run_id"].to_pylist())
        except ResultsError:
            target = folder.parent / SET_ASIDE / path.name
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            moved.append(target)
    return ids, moved


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
