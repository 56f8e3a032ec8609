"""Files that are whole or not there: written beside their place, synced, renamed into it."""

from __future__ import annotations

import os
from pathlib import Path

LEFTOVERS = ".*.tmp"  # what a kill in the middle of a write leaves
SET_ASIDE = "damaged"


class ResultsError(Exception):
    """Saved results that cannot be used as they are; the message says which file and what to do."""


class NewerFormatError(ResultsError):
    """Results that a newer dlexp wrote."""


def check_format(path: Path, form: int, known: int) -> None:
    """Raises NewerFormatError where a file is of a later format than the latest known one."""
    if form > known:
        raise NewerFormatError(
            f"{path} is of format {form}, which a newer dlexp wrote; this one reads formats up to {known}: update "
            "dlexp or choose another --out"
        )


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


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a damaged file to `folder/damaged` and returns where it is now."""
    target = folder / SET_ASIDE / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    return target
