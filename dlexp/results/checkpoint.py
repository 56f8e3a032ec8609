"""The state of a chunk that is not finished: kept by Orbax beside the results, removed once the chunk is saved."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "unfinished"


def save(folder: Path, chunk: str, step: int, arrays: dict[str, np.ndarray]) -> None:
    """Keeps named arrays under the chunk's name, in place of what was kept of it before.

    The new state is whole before the old one goes.

    Raises:
      OSError: where it cannot be written, whatever Orbax says of it.
    """
    import orbax.checkpoint as ocp

    place = (folder / FOLDER / chunk).absolute()
    held = {name: array for name, array in arrays.items() if array.size}  # Orbax keeps no empty arrays
    shapes = {name: np.array([len(array.shape), *array.shape], np.int64) for name, array in arrays.items()}
    dtypes = {name: np.frombuffer(array.dtype.name.encode(), np.uint8) for name, array in arrays.items()}
    kept = {"arrays": held, "shapes": shapes, "dtypes": dtypes}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(place / str(step), kept, force=True)
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"the state of a chunk cannot be kept: {error}") from error
    for older in place.iterdir():
        if older.name != str(step):
            shutil.rmtree(older)


def restore(folder: Path, chunk: str) -> tuple[int, dict[str, np.ndarray]] | None:
    """Returns the step and the arrays of the latest whole state of a chunk, None where there is none.

    A state that cannot be read is passed over: the chunk is then trained from an earlier one or from its start.
    """
    place = (folder / FOLDER / chunk).absolute()
    steps = sorted((int(each.name) for each in place.glob("*") if each.name.isdigit()), reverse=True)
    for step in steps:
        arrays = _read(place / str(step))
        if arrays is not None:
            return step, arrays
    return None


def is_kept(folder: Path, chunk: str) -> bool:
    """Whether anything is kept of a chunk."""
    return (folder / FOLDER / chunk).exists()


def discard(folder: Path, chunk: str | None = None) -> None:
    """Removes what is kept of a chunk, or of all chunks."""
    place = folder / FOLDER
    shutil.rmtree(place / chunk if chunk else place, ignore_errors=True)
    if place.exists() and not any(place.iterdir()):
        place.rmdir()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            kept: Any = checkpointer.restore(path)
        shapes = {name: tuple(shape[1:]) for name, shape in kept["shapes"].items()}
        dtypes = {
            name: np.dtype(np.asarray(dtype).tobytes().decode()) for name, dtype in kept.get("dtypes", {}).items()
        }
        held = kept.get("arrays", {})
        empty = {name: np.zeros(shape, dtypes.get(name)) for name, shape in shapes.items() if name not in held}
        return {**{name: np.asarray(array) for name, array in held.items()}, **empty}
    except Exception:  # whatever Orbax says of a damaged folder, it is not a state to go on from
        return None
