"""How fast programs were on this machine, and in which layout: kept in the user's cache folder, a file a program."""

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

from dlexp.ops import choices
from dlexp.sweep import machine


class Layout(NamedTuple):
    """How the programs of a group are made; it changes their speed and their rounding, nothing else.

    Attributes:
      width: runs vmapped on one device.
      stepwise: whether a call makes one step, instead of a loop of them.
      choices: `(name, option)` of what networks leave open (`dlexp.ops.choices`), in the order of names.
    """

    width: int
    stepwise: bool = False
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def shares_seed(self) -> bool:
        """Whether all runs of a call have one seed, so that what chance decides by it alone is drawn once."""
        return ("seed", choices.SHARED) in self.choices

    def __str__(self) -> str:
        chosen = [f"{name} {option}" for name, option in self.choices]
        return ", ".join([f"{self.width} at once", *chosen, *(["a call a step"] if self.stepwise else [])])

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Layout:
        """Returns what `_asdict` and JSON made of a layout."""
        return cls(
            int(saved["width"]), bool(saved["stepwise"]), tuple((name, option) for name, option in saved["choices"])
        )


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
