"""What is wrong with data, where all runs are lost before they have made a step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dlexp.types import PyTree


def of_data(data: PyTree) -> str:
    """Returns a sentence's beginning on the first array that is at fault: not finite, or a negative class.

    Empty where none is. Classes are the integers of an array named `labels`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        name, array = f"data{jax.tree_util.keystr(path)}", np.asarray(leaf)
        if array.dtype.kind in "fc" and not (finite := np.isfinite(array)).all():
            return f"{name} has {_counted(~finite)} not finite (first: row {_first_row(~finite)})"
        is_class = name.endswith(("labels", "labels']")) and array.dtype.kind == "i"
        if is_class and (array < 0).any():
            return f"{name} has {_counted(array < 0)} negative (first: row {_first_row(array < 0)}); classes begin at 0"
    return ""


def _counted(mask: np.ndarray) -> str:
    count = int(mask.sum())
    return f"{count:,} of {mask.size:,} numbers that {'is' if count == 1 else 'are'}"


def _first_row(mask: Any) -> int:
    return int(np.argwhere(mask)[0][0]) if np.ndim(mask) else 0
