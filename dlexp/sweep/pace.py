"""How fast programs were on this machine, and in which layout: one file a program in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dlexp.sweep import machine
from dlexp.sweep.layouts import Layout


class Pace(NamedTuple):
    """Seconds of one chunk's parts: to start it, for a step, for an evaluation."""

    start: float
    step: float
    evaluation: float

    def seconds(self, num_steps: int, num_evals: int) -> float:
        """Returns the seconds of a whole chunk."""
        return self.start + num_steps * self.step + num_evals * self.evaluation


class Measured(NamedTuple):
    """What is known of a program.

    Attributes:
      layout: in which it was measured.
      pace: of its chunks.
      is_chosen: whether the layout won against others, and is to be taken again.
      rates: layout, as text -> steps of runs a second on all devices, of every layout that was tried.
    """

    layout: Layout
    pace: Pace
    is_chosen: bool = False
    rates: Mapping[str, float] = {}


def name_of(traced: Sequence[Any], devices: list[jax.Device]) -> str:
    """Returns a name of jaxprs, or of what else makes programs, on these devices, at these versions and precision."""
    config: Any = jax.config
    where = (jax.__version__, devices[0].device_kind, len(devices), config.jax_default_matmul_precision)
    text = re.sub(r"0x[0-9a-f]+", "", "\n".join(map(str, (*where, *traced))))  # addresses of functions
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recall(program: str) -> Measured | None:
    """Returns what is known of a program on this machine; None where nothing is."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads((_folder() / f"{program}.json").read_text())
        return Measured(
            Layout.from_json(saved["layout"]), Pace(**saved["pace"]), bool(saved["is_chosen"]), dict(saved["rates"])
        )
    return None


def remember(program: str, measured: Measured) -> None:
    """Keeps what was measured of a program; where the folder cannot be written, nothing is kept."""
    content = {**measured._asdict(), "layout": measured.layout._asdict(), "pace": measured.pace._asdict()}
    with contextlib.suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_folder(), suffix=".tmp", delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, _folder() / f"{program}.json")


def _folder() -> Path:
    return machine.cache_folder() / "pace"
