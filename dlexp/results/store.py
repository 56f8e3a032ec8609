"""What is on the disk of a sweep: Parquet files of chunks of runs, named by their own content.

A file's name carries the SHA-256 of its bytes: no second write could disagree with the first, and a file that was
damaged since does not match its name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlexp.results.files import ResultsError, set_aside, write_bytes

FILE_SECONDS = 0.25  # that the rows of chunks which end quickly wait for each other: a file costs 4 milliseconds
_KEY = b"dlexp"
_FILES_AT_ONCE = 256  # held in memory while they are merged
_ROWS_ENOUGH = 20_000  # a file of so many is left alone: memory does not grow with the sweep
_Chunk = tuple[Path, pa.Table, dict[str, Any]]


class Writer:
    """Writes the rows of several chunks to one file, where they are alike and end one soon after another.

    Killed, it loses what still waits; on leaving the context nothing waits.
    """

    def __init__(self, folder: Path) -> None:
        """Writes to the folder of a sweep."""
        self._folder, self._waiting, self._since = folder, list[pa.Table](), 0.0

    def __enter__(self) -> Writer:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Writes what waits."""
        self.flush()

    def add(self, columns: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Lets the rows of one chunk wait.

        Args:
          columns: name -> list of scalars, or array `[run, ...]`; arrays of one trailing axis become list columns, of
            more fixed-shape tensor columns.
          about: what JSON can hold: which columns are which, and where the numbers come from.
        """
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting.append(_table(columns, about))

    def flush(self, after: float = 0.0) -> None:
        """Writes what waits, if the first of it has waited so many seconds."""
        is_due = time.monotonic() - self._since >= after
        while self._waiting and is_due:
            alike = _alike(self._waiting)
            _write_table(self._folder, pa.concat_tables(alike).combine_chunks())
            del self._waiting[: len(alike)]


def chunks(folder: Path) -> Iterator[tuple[Path, pa.Table, dict[str, Any]]]:
    """Yields each file of a sweep: path, table and what `about` said of its chunks.

    Raises:
      ResultsError: at a file that does not match its name.
    """
    for path in sorted(folder.glob("*.parquet")):
        yield path, *read_chunk(path)


def read_chunk(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Returns the rows of a file and what `about` said of them.

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


def finished(
    folder: Path, experiment: str, version: int, sweep: str, num_evals: Mapping[int, int] | None = None
) -> tuple[set[str], list[Path]]:
    """Returns the ids of a sweep's saved runs, and the files it moved aside: damaged ones, other experiments' ones.

    Args:
      folder: of the sweep.
      experiment: whose chunks count.
      version: whose chunks count.
      sweep: whose chunks count.
      num_evals: training length -> evaluations that runs of that length must have.

    Raises:
      ResultsError: where saved runs were evaluated another number of times.
    """
    ids: set[str] = set()
    moved = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, about = read_chunk(path)
            check_identity(path, about, experiment, version, sweep)
        except ResultsError:
            moved.append(set_aside(path, folder.parent))
            continue
        asked = (num_evals or {}).get(about["identity"]["num_steps"], about["num_evals"])
        if asked != about["num_evals"]:
            raise ResultsError(
                f"{folder} holds runs with {about['num_evals']} evaluations, now {asked} are asked for; raise the "
                "experiment's version, drop the runs with --fresh, or choose another --out"
            )
        ids.update(table["run_id"].to_pylist())
    return ids, moved


def check_identity(path: Path, about: Mapping[str, Any], experiment: str, version: int, sweep: str) -> None:
    """Raises ResultsError unless a chunk says that it is of this sweep."""
    identity = about["identity"]
    if (identity["experiment"], identity["version"], identity["sweep"]) != (experiment, version, sweep):
        raise ResultsError(f"{path} is of {identity['experiment']}, sweep {identity['sweep']}; remove it and run again")


def compact(folder: Path) -> None:
    """Puts the chunks of each group into one file, or few of a size; killed halfway, it leaves rows twice, never none.

    Chunks are of one group where all they say of themselves but their provenance agrees. A row that stands twice
    with different values stays twice, for `table.load` to name.
    """
    waiting: dict[str, list[_Chunk]] = {}
    for chunk in chunks(folder):
        _, table, about = chunk
        if len(table) >= _ROWS_ENOUGH:
            continue
        said = {name: value for name, value in about.items() if name != "provenance"}
        members = waiting.setdefault(json.dumps([table.schema.remove_metadata().to_string(), said], sort_keys=True), [])
        members.append(chunk)
        if len(members) == _FILES_AT_ONCE or sum(len(table) for _, table, _ in members) >= _ROWS_ENOUGH:
            merged = _merged(folder, members)
            members[:] = [merged] if len(merged[1]) < _ROWS_ENOUGH else []
    for members in filter(None, waiting.values()):
        _merged(folder, members)


def _merged(folder: Path, members: list[_Chunk]) -> _Chunk:
    """One chunk in place of several; their files go once its own is there."""
    if len(members) < 2:
        return members[0]
    tables = [table.replace_schema_metadata(None) for _, table, _ in members]
    table = _without_repeats(pa.concat_tables(tables)).combine_chunks()
    about = {**members[0][2], "provenance": _distinct([about["provenance"] for *_, about in members])}
    merged = _write_table(folder, table.replace_schema_metadata({_KEY: json.dumps(about).encode()}))
    for path, *_ in members:
        if path != merged:
            path.unlink()
    return merged, table, about


def _table(columns: Mapping[str, Any], about: Mapping[str, Any]) -> pa.Table:
    arrays = {name: _to_arrow(values) for name, values in columns.items()}
    return pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(about).encode()})


def _alike(tables: list[pa.Table]) -> list[pa.Table]:
    """The first of them, as far as they have the same columns and say the same of themselves."""
    return list(takewhile(lambda table: table.schema.equals(tables[0].schema, check_metadata=True), tables))


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
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values.copy())  # strides of axes of one entry count, too


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as an array `[run, ...]`, whatever `Writer` made of it."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    if isinstance(array, pa.FixedShapeTensorArray):
        return array.to_numpy_ndarray()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


def _without_repeats(table: pa.Table) -> pa.Table:
    """Each row once; what is compared is the whole row, bit for bit."""
    texts = [json.dumps(row, sort_keys=True) for row in table.to_pylist()] if _repeats(table) else []
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    return table.take(sorted(first.values())) if texts else table


def _repeats(table: pa.Table) -> bool:
    ids = table["run_id"].to_pylist()
    return len(set(ids)) < len(ids)


def _distinct(provenances: list[Any]) -> list[Any]:
    entries = [each for item in provenances for each in (item if isinstance(item, list) else [item])]
    return [json.loads(text) for text in dict.fromkeys(json.dumps(each, sort_keys=True) for each in entries)]
