"""Labelled arrays as netCDF files, for xarray, R, Julia and others.

NetCDF has no missing text and, in its classic form, no integers beyond 32 bits; both are written in another way and
come back as they were.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import xarray as xr

Engine = Literal["netcdf4", "h5netcdf", "scipy"]
_TYPE, _NONE = "label_type", "label_of_none"
_LAST_SHORT = 2**31 - 1


def write(array: xr.DataArray, path: str | os.PathLike, *, engine: Engine | None = None) -> None:
    """Writes an array from `Table.labelled` to a netCDF file; `read` returns it as it was.

    A label that is None is written as the text `none`, and an attribute of its axis says so.

    Args:
      array: the array.
      path: of the file.
      engine: which library writes it: netcdf4, h5netcdf or scipy (default: xarray's choice among those installed).

    Raises:
      ValueError: where an axis has labels of several types, which netCDF cannot hold.
    """
    written = array.assign_coords({name: _written(array[name]) for name in array.coords})
    written.to_netcdf(path, engine=engine)


def read(path: str | os.PathLike, *, engine: Engine | None = None) -> xr.DataArray:
    """Returns the array that `write` was given.

    Args:
      path: of the file.
      engine: which library reads it (default: xarray's choice).
    """
    import xarray as xr

    with xr.open_dataarray(path, engine=engine) as file:
        array = file.load()
    return array.assign_coords({name: _read(array[name]) for name in array.coords})


def _written(coord: Any) -> Any:
    """A coordinate in a form that every engine keeps."""
    values, attrs = coord.values, {**coord.attrs, _TYPE: str(coord.dtype)}
    if values.dtype == object:
        labels = values.ravel().tolist()
        texts = [label for label in labels if label is not None]
        if not all(isinstance(value, str) for value in texts):
            raise ValueError(
                f"netcdf.write: axis {coord.name} has labels of several types, {labels}; select those of one"
            )
        none = "none"
        while none in texts:
            none += "_"
        values = np.array([none if label is None else label for label in labels], str).reshape(values.shape)
        attrs[_NONE] = none
    elif values.dtype == bool:
        values = values.astype(np.int8)
    elif values.dtype.kind in "iu" and np.abs(values).max(initial=0) > _LAST_SHORT:
        values = values.astype(np.float64)
    return coord.dims, values, attrs


def _read(coord: Any) -> Any:
    attrs = dict(coord.attrs)
    kind, none = attrs.pop(_TYPE, None), attrs.pop(_NONE, None)
    values = coord.values
    if none is not None:
        labels = [None if label == none else label for label in values.ravel().tolist()]
        # An index of a stated type: pandas 3 would make NaN of a None among texts.
        values = pd.Index(labels, dtype=object) if values.ndim else np.array(labels[0], object)
    elif kind is not None and not kind.startswith("<U"):
        values = values.astype(kind)
    return coord.dims, values, attrs
