"""Which code is the user's own, and where in it an error arose."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path
from typing import NamedTuple

import dlexp

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_INSTALLED.add(Path(dlexp.__file__).parent.resolve())


class Line(NamedTuple):
    """A line of the user's code, as `str(line)` names it in a sentence.

    Attributes:
      file: name of the file, without its folder.
      number: of the line.
      function: that it stands in.
      text: of the line; empty where it cannot be read.
    """

    file: str
    number: int
    function: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}, in {self.function}{f': `{self.text}`' if self.text else ''}"


def is_own_file(file: str) -> bool:
    """Whether the user wrote it: no part of Python, of an installed package, or of dlexp."""
    if not file or file.startswith(("<frozen", "<__array")):
        return False
    path = Path(file).resolve()
    is_installed = any(path.is_relative_to(root) for root in _INSTALLED)
    return not is_installed and not {"site-packages", "dist-packages"} & set(path.parts)


def own_line(error: BaseException) -> Line | None:
    """Returns the innermost line of the user's own code that an error passed through, None where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own_file(frame.filename)]
    if not frames:
        return None
    last = frames[-1]
    text = last.line or linecache.getline(last.filename, last.lineno or 0).strip()
    return Line(Path(last.filename).name, last.lineno or 0, last.name, text)
