"""What is on the disk of a sweep: Parquet files of chunks of runs, named by their own content.

A file's name carries the SHA-256 of its bytes: no second write could disagree with the first, and a file that was
damaged since does not match its name. `dlexp.results.columns` says what the columns of a folder are.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlexp.results import columns as disk
from dlexp.results import strictjson
from dlexp.results.columns import Columns, to_numpy
from dlexp.results.files import NewerFormatError, ResultsError, check_format, set_aside, write_bytes

__all__ = ["Writer", "chunks", "compact", "conform", "finished", "read_chunk", "to_numpy"]

FILE_SECONDS = 0.25  # that the rows of chunks which end quickly wait for each other: a file costs 4 milliseconds
FORMAT = 2  # files of format 1 have the columns of their own group, arrays of fixed sizes, and no number
_KEY = b"dlexp"
_FILES_AT_ONCE = 256  # held in memory while they are merged
_ROWS_ENOUGH = 20_000  # a file of so many is left alone: memory does not grow with the sweep
_Chunk = tuple[Path, pa.Table, dict[str, Any]]


class Writer:
    """Writes the rows of several chunks to one file, where they are alike and end one soon after another.

    Killed, it loses what still waits; on leaving the context nothing waits.
    """

    def __init__(self, folder: Path, columns: Columns = disk.NONE) -> None:
        """Writes to the folder of a sweep.

        Args:
          folder: of the sweep.
          columns: that its files have, from `conform`.
        """
        self._folder, self._waiting, self._since = folder, list[pa.Table](), 0.0
        self._columns, self._is_uneven = columns, False

    def __enter__(self) -> Writer:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Writes what waits; if that brought new columns, the files before it get them, too."""
        self.flush()
        if self._is_uneven:
            conform(self._folder)

    def add(self, columns: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Lets the rows of one chunk wait.

        Args:
          columns: name -> list of scalars, or array `[run, ...]`; arrays with trailing axes become nested lists.
          about: what JSON can hold: which columns are which, and where the numbers come from.
        """
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting.append(_table(columns, about))

    def flush(self, after: float = 0.0) -> None:
        """Writes what waits, if the first of it has waited so many seconds."""
        is_due = time.monotonic() - self._since >= after
        while self._waiting and is_due:
            alike = _alike(self._waiting)
            rows = pa.concat_tables(alike).combine_chunks()
            columns = disk.settled(disk.united([self._columns, disk.of_table(rows)]))
            self._is_uneven |= bool(self._columns.metrics) and columns != self._columns
            self._columns = columns
            _write_table(self._folder, rows, self._columns)
            del self._waiting[: len(alike)]


def chunks(folder: Path) -> Iterator[tuple[Path, pa.Table, dict[str, Any]]]:
    """Yields each file of a sweep: path, table and what `about` said of its chunks.

    Raises:
      ResultsError: at a file that does not match its name.
    """
    for path in sorted(folder.glob("*.parquet")):
        yield path, *read_chunk(path)


def read_chunk(path: Path, names: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Returns the rows of a file, as they were given to `Writer.add`, and what `about` said of them.

    Args:
      path: of the file.
      names: of the columns to read (default: all that the chunk had).

    Raises:
      ResultsError: where its bytes do not match its name, or are no chunk; `NewerFormatError` where a newer dlexp
        wrote it.
    """
    content = path.read_bytes()
    if path.stem != _digest(content):
        raise ResultsError(f"{path} is damaged: its content does not match its name; remove it and run again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        about = strictjson.loads(file.schema_arrow.metadata[_KEY])
        form, described = about.pop("format", 1), about.pop("columns", None)
        check_format(path, form, FORMAT)
        chosen = names or (None if described is None else list(described))
        table = file.read(columns=chosen).replace_schema_metadata(None)
        return table if described is None else disk.from_disk(table, described), about
    except (pa.ArrowException, TypeError, KeyError, ValueError, AttributeError) as error:
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
      ResultsError: where saved runs were evaluated another number of times, or a newer dlexp wrote a file.
    """
    ids: set[str] = set()
    moved = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, about = read_chunk(path, ["run_id"])
            check_identity(path, about, experiment, version, sweep)
        except NewerFormatError:
            raise
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


def conform(folder: Path, axes: Mapping[str, pa.DataType] | None = None) -> Columns:
    """Writes the files of a sweep anew that lack columns, have one of another type or another form, or none of them.

    Killed halfway, it leaves rows twice, never none.

    Args:
      folder: of the sweep.
      axes: of the grid that is trained now, from `columns.of_grid`; those of the files come on top.

    Returns:
      the columns of all its files.

    Raises:
      ResultsError: at a file that is damaged.
    """
    schemas = {path: _schema_of(path) for path in sorted(folder.glob("*.parquet"))}
    asked = [_columns_of(path, schema) for path, schema in schemas.items()]
    columns = disk.settled(disk.united([Columns(axes or {}, {}), *asked]))
    for path, schema in schemas.items():
        if not (_is_of_this_form(schema) and schema.equals(columns.schema)):
            table, about = read_chunk(path)
            _replace([path], _write_table(folder, _with_about(table, about), columns))
    return columns


def compact(folder: Path) -> None:
    """Puts the chunks of each group into one file, or few of a size; killed halfway, it leaves rows twice, never none.

    Chunks are of one group where all they say of themselves but their provenance agrees. A row that stands twice
    with different values stays twice, for `table.load` to name.
    """
    columns = conform(folder)
    waiting: dict[str, list[_Chunk]] = {}
    for chunk in chunks(folder):
        _, table, about = chunk
        if len(table) >= _ROWS_ENOUGH:
            continue
        said = {name: value for name, value in about.items() if name != "provenance"}
        members = waiting.setdefault(json.dumps([table.schema.to_string(), said], sort_keys=True), [])
        members.append(chunk)
        if len(members) == _FILES_AT_ONCE or sum(len(table) for _, table, _ in members) >= _ROWS_ENOUGH:
            merged = _merged(folder, members, columns)
            members[:] = [merged] if len(merged[1]) < _ROWS_ENOUGH else []
    for members in filter(None, waiting.values()):
        _merged(folder, members, columns)


def _merged(folder: Path, members: list[_Chunk], columns: Columns) -> _Chunk:
    """One chunk in place of several; their files go once its own is there."""
    if len(members) < 2:
        return members[0]
    table = _without_repeats(pa.concat_tables([table for _, table, _ in members])).combine_chunks()
    about = {**members[0][2], "provenance": _distinct([about["provenance"] for *_, about in members])}
    merged = _write_table(folder, _with_about(table, about), columns)
    _replace([path for path, *_ in members], merged)
    return merged, table, about


def _replace(paths: list[Path], by: Path) -> None:
    for path in paths:
        if path != by:
            path.unlink()


def _columns_of(path: Path, schema: pa.Schema) -> Columns:
    """Of a file of the first form, what its rows ask for."""
    return disk.of_file(schema) if _is_of_this_form(schema) else disk.of_table(read_chunk(path)[0])


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error}); remove it and run again") from error


def _is_of_this_form(schema: pa.Schema) -> bool:
    return strictjson.loads((schema.metadata or {}).get(_KEY, b"{}")).get("format", 1) == FORMAT


def _table(columns: Mapping[str, Any], about: Mapping[str, Any]) -> pa.Table:
    return _with_about(pa.table({name: disk.to_arrow(values) for name, values in columns.items()}), about)


def _with_about(table: pa.Table, about: Mapping[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({_KEY: strictjson.dumps(about).encode()})


def _alike(tables: list[pa.Table]) -> list[pa.Table]:
    """The first of them, as far as they have the same columns and say the same of themselves."""
    return list(takewhile(lambda table: table.schema.equals(tables[0].schema, check_metadata=True), tables))


def _write_table(folder: Path, table: pa.Table, columns: Columns) -> Path:
    """Writes a chunk, whose metadata says what it is, in the form in which it lies on the disk."""
    about = strictjson.loads(table.schema.metadata[_KEY])
    on_disk, described = disk.to_disk(table, columns, _eval_steps(about))
    content = _parquet(_with_about(on_disk, {"format": FORMAT, "columns": described, **about}), columns)
    path = folder / f"{_digest(content)}.parquet"
    write_bytes(path, content)
    return path


def _parquet(table: pa.Table, columns: Columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_statistics=columns.with_statistics)
    return sink.getvalue().to_pybytes()


def _eval_steps(about: Mapping[str, Any]) -> np.ndarray | None:
    """The optimizer step of each evaluation, None of rows that do not say how long they were trained."""
    if "identity" not in about or "num_evals" not in about:
        return None
    num_steps, num_evals = about["identity"]["num_steps"], about["num_evals"]
    return num_steps // num_evals * np.arange(num_evals + 1 if num_steps else 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


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
