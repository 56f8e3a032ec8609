"""The columns of a sweep's Parquet files: the same in every file of a folder, so that any reader reads it whole.

In memory a chunk has the columns of its own group, and metrics are fixed-size lists or tensors. On the disk it has the
columns of the whole folder, null where its group lacks one, each of one type; metrics are lists, nested for more axes.
What a chunk had in memory stands in the file's metadata, so that it comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlexp.sweep.grids import Grid

_FIRST = {"run_id": pa.string()}
_LAST = {
    "seed": pa.int64(),
    "status": pa.string(),
    "nonfinite_at": pa.int32(),
    "num_steps": pa.int64(),
    "eval_steps": pa.list_(pa.int64()),
}
_END_OF_INTEGERS = 2**63


class Columns(NamedTuple):
    """The columns of a folder's files that are not the same everywhere: name -> type on the disk.

    Attributes:
      axes: of the grid, in its order.
      metrics: lists of floating numbers, nested for more than one axis.
    """

    axes: Mapping[str, pa.DataType]
    metrics: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """All columns in their order on the disk."""
        metrics = {name: self.metrics[name] for name in sorted(self.metrics)}
        return pa.schema({**_FIRST, **self.axes, **_LAST, **metrics})

    @property
    def with_statistics(self) -> list[str]:
        """The columns whose least and largest value may stand in a file.

        Statistics leave NaN out, so a reader that skips rows by them would never find it.
        """
        return [field.name for field in self.schema if not pa.types.is_floating(field.type) and not _is_list(field)]


NONE = Columns({}, {})


def of_grid(grid: Grid) -> dict[str, pa.DataType]:
    """Returns the one type of each axis of a grid, the seed aside: integers as 64 bits where all its values are.

    Values that are no numbers alone, such as `(1, "all")`, are text.
    """
    types: dict[str, list[pa.DataType]] = {}
    for block in grid.blocks:
        for name, values in (*block.config.items(), *block.hyper.items()):
            types.setdefault(name, []).extend({_type_of(value) for value in values})
    return {name: reduce(_common, found) for name, found in types.items()}


def of_table(table: pa.Table) -> Columns:
    """Returns what the columns of a chunk in memory ask for.

    Whole numbers in a column of floats ask for no type: the grid tells whether they are integers.
    """
    fields = [field for field in table.schema if field.name not in (*_FIRST, *_LAST)]
    axes = {field.name: _asked(table[field.name]) for field in fields if not is_array(field.type)}
    return Columns(axes, {field.name: _nested(field.type) for field in fields if is_array(field.type)})


def of_file(schema: pa.Schema) -> Columns:
    """Returns the columns of a file on the disk."""
    fields = [field for field in schema if field.name not in (*_FIRST, *_LAST)]
    return Columns(
        {field.name: field.type for field in fields if not _is_list(field)},
        {field.name: field.type for field in fields if _is_list(field)},
    )


def united(several: Iterable[Columns]) -> Columns:
    """Returns columns that hold those of all: axes in order of appearance, each of a type for all its values."""
    axes: dict[str, pa.DataType] = {}
    metrics: dict[str, pa.DataType] = {}
    for each in several:
        for name, kind in each.axes.items():
            axes[name] = _common(axes.get(name, pa.null()), kind)
        for name, kind in each.metrics.items():
            metrics[name] = _deeper(metrics.get(name, kind), kind)
    return Columns(axes, metrics)


def settled(columns: Columns) -> Columns:
    """Returns the columns with a type for the axes that no one asked a type for."""
    return columns._replace(axes={n: pa.float64() if t == pa.null() else t for n, t in columns.axes.items()})


def to_disk(table: pa.Table, columns: Columns, eval_steps: np.ndarray | None) -> tuple[pa.Table, dict[str, Any]]:
    """Returns a chunk with the columns of its folder, and what `from_disk` needs to undo it, as JSON can hold it.

    Args:
      table: the chunk in memory.
      columns: of the folder; they hold the chunk's own.
      eval_steps: the optimizer step of each evaluation, None where that is not known.
    """
    num, arrays = len(table), {}
    for field in columns.schema:
        if field.name in table.column_names:
            arrays[field.name] = _fitted(table[field.name], field.type)
        elif field.name == "num_steps" and eval_steps is not None:
            arrays[field.name] = pa.array(np.full(num, eval_steps[-1]), field.type)
        elif field.name == "eval_steps" and eval_steps is not None:
            arrays[field.name] = _lists(np.tile(eval_steps, (num, 1)), 1)
        else:
            arrays[field.name] = pa.nulls(num, field.type)
    return pa.table(arrays, schema=columns.schema), {field.name: _described(field.type) for field in table.schema}


def from_disk(table: pa.Table, described: Mapping[str, Any]) -> pa.Table:
    """Returns the chunk that `to_disk` was given, as far as the table has its columns.

    Raises:
      ValueError: where a metric has not the numbers that its shape says.
    """
    there = {name: said for name, said in described.items() if name in table.column_names}
    return pa.table({name: _restored(table[name], said) for name, said in there.items()})


def is_array(kind: pa.DataType) -> bool:
    """Whether it is the type of a metric in memory."""
    return isinstance(kind, pa.FixedShapeTensorType) or pa.types.is_fixed_size_list(kind)


def to_arrow(values: Any) -> pa.Array:
    """Returns a column in memory: of an array with one trailing axis a fixed-size list, with more a tensor."""
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values)
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values.copy())  # strides of axes of one entry count, too


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column in memory as an array `[run, ...]`."""
    array = _whole(column)
    if isinstance(array, pa.FixedShapeTensorArray):
        return array.to_numpy_ndarray()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if abs(value) < _END_OF_INTEGERS else pa.float64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.null() in (one, other) or one == other:
        return other if one == pa.null() else one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _asked(column: pa.ChunkedArray) -> pa.DataType:
    if not pa.types.is_floating(column.type):
        return column.type
    values = column.to_numpy().astype(float)
    is_whole = bool(np.all((np.abs(values) < _END_OF_INTEGERS) & (values == np.floor(values))))
    return pa.null() if is_whole else pa.float64()


def _is_list(field: pa.Field) -> bool:
    return pa.types.is_list(field.type)


def _shape(kind: pa.DataType) -> tuple[int, ...]:
    return tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else (kind.list_size,)


def _nested(kind: pa.DataType) -> pa.DataType:
    return reduce(lambda inner, _: pa.list_(inner), _shape(kind), kind.value_type)


def _depth(kind: pa.DataType) -> int:
    return 1 + _depth(kind.value_type) if pa.types.is_list(kind) else 0


def _leaf(kind: pa.DataType) -> pa.DataType:
    return _leaf(kind.value_type) if pa.types.is_list(kind) else kind


def _deeper(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A list as deep as the deeper one, of numbers that hold those of both."""
    if one == other:
        return one
    dtype = np.result_type(_leaf(one).to_pandas_dtype(), _leaf(other).to_pandas_dtype())
    return reduce(lambda inner, _: pa.list_(inner), range(max(_depth(one), _depth(other))), pa.from_numpy_dtype(dtype))


def _fitted(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    if not is_array(column.type):
        return column if column.type == kind else column.cast(kind)
    values = to_numpy(column).astype(_leaf(kind).to_pandas_dtype(), copy=False)
    return _lists(values, _depth(kind))


def _lists(values: np.ndarray, depth: int) -> pa.Array:
    """An array `[run, ...]` as lists nested so deep; axes of one entry are added at the end where it has fewer."""
    shape = values.shape + (1,) * (depth - values.ndim + 1)
    nested = pa.array(np.ascontiguousarray(values).reshape(-1))
    for axis in range(depth, 0, -1):
        num = int(np.prod(shape[:axis], dtype=np.int64))
        nested = pa.ListArray.from_arrays(pa.array(np.arange(num + 1, dtype=np.int32) * shape[axis]), nested)
    return nested


def _described(kind: pa.DataType) -> Any:
    return {"dtype": str(kind.value_type), "shape": list(_shape(kind))} if is_array(kind) else str(kind)


def _restored(column: pa.ChunkedArray, described: Any) -> Any:
    if isinstance(described, str):
        kind = pa.type_for_alias(described)
        return column if column.type == kind else column.cast(kind)
    values = _whole(column)
    while pa.types.is_list(values.type):
        values = values.flatten()
    shape, kind = described["shape"], pa.type_for_alias(described["dtype"])
    if len(values) != len(column) * np.prod(shape, dtype=np.int64):
        raise ValueError(f"a metric of shape {shape} has {len(values)} numbers in {len(column)} rows")
    values = values if values.type == kind else pc.cast(values, kind, safe=False)
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(values, shape[0])
    storage = pa.FixedSizeListArray.from_arrays(values, int(np.prod(shape, dtype=np.int64)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, shape), storage)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    return array
