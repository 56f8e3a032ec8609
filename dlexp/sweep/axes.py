"""Axes: the values of one, read from a command line, spaced evenly, checked, and as texts that tell them apart."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

RESERVED = frozenset(["run_id", "seed", "status", "nonfinite_at", "num_steps", "eval_steps", "sweep"])
RESERVED |= frozenset(["place", "step", "mean", "low", "high", "num_seeds", "num_failed"])
MAX_VALUES, MAX_SEEDS = 10**6, 10**7  # of one axis, whose values are held in memory
_LARGEST = sys.float_info.max


def parse_axis(text: str) -> tuple[str, str]:
    """Returns name and values of `NAME=VALUES`.

    Raises:
      ValueError: on anything else.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ValueError(f"{text!r} is no axis; write NAME=VALUE,VALUE,... or NAME=geom:LOW:HIGH:COUNT")
    return name.strip(), values.strip()


def parse_values(text: str, like: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the values that a text names, of the type of those in `like`.

    >>> parse_values("32,64", like=(16,)), parse_values("geom:0.01:1:3", like=(0.5,))
    ((32, 64), (0.01, 0.1, 1.0))

    Raises:
      ValueError: where the text is not of the form or the type.
    """
    kinds = {type(value) for value in like}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else str
    if text.startswith("geom:"):
        try:
            low, high, num = text.removeprefix("geom:").split(":")
            values = geomspace(float(low), float(high), int(num))
        except ValueError as error:
            raise ValueError(
                f"{text!r} is no geom:LOW:HIGH:COUNT with 0 < LOW, 0 < HIGH, COUNT from 1 to {MAX_VALUES:,}"
            ) from error
        return tuple(map(round, values)) if kind is int else values
    convert: Callable[[str], Any] = _parse_bool if kind is bool else kind
    try:
        return tuple(convert(entry.strip()) for entry in text.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r} must be values of type {kind.__name__}, separated by commas") from error


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def geomspace(low: float, high: float, num: int) -> tuple[float, ...]:
    """Returns `num` numbers from low to high, each the same multiple of the last, to 9 significant digits.

    >>> geomspace(0.001, 1.0, 4)
    (0.001, 0.01, 0.1, 1.0)

    Raises:
      ValueError: unless 0 < low, 0 < high and num is at least 1 (and at most a million).
    """
    if not (0 < low < math.inf and 0 < high < math.inf and 1 <= num <= MAX_VALUES):
        raise ValueError(
            f"geomspace: needs low > 0, high > 0 and num from 1 to {MAX_VALUES:,}, got {low:g}, {high:g}, {num}"
        )
    ratio = math.log(high / low) / max(num - 1, 1)
    return tuple(float(number_text(low * math.exp(ratio * index))) for index in range(num))


def values_of(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Returns the values of one axis as Python's own numbers and strings.

    Raises:
      TypeError: where they are not a list of values.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"grid: axis {name} takes a list of values, got {values!r}; write ({values!r},) for one")
    return tuple(map(plain, values))


def plain(value: Any) -> Any:
    """Python's own number or string for one of NumPy's: ids and manifests know no others."""
    return value.item() if isinstance(value, np.generic) else value


def number_text(value: float) -> str:
    """Returns a number to nine significant digits: numbers of equal texts are one value of an axis."""
    return format(float(value) + 0.0, ".9g")  # + 0.0: minus zero is zero


def typed_text(value: Any) -> tuple[str, str]:
    """Returns type and text of a static value: 8, 8.0 and "8" are three values."""
    return type(value).__name__, number_text(value) if isinstance(value, float) else str(value)


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds that a count (0, 1, ...) or a list of seeds means.

    Raises:
      TypeError: on what is neither.
      ValueError: on none, repeated ones or ones that are not in [0, 2^32).
    """
    seeds = plain(seeds)
    if not isinstance(seeds, (int, Iterable)) or isinstance(seeds, (bool, str)):
        raise TypeError(f"grid: seeds must be a count (an integer) or a list of integers, got {seeds!r}")
    if isinstance(seeds, int) and seeds > MAX_SEEDS:
        raise ValueError(f"grid: seeds must be at most {MAX_SEEDS:,}, got {seeds:,}")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(map(plain, seeds))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"grid: seeds must be a count of at least 1 or different integers, got {seeds}")
    if not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in chosen):
        raise ValueError(f"grid: seeds must be integers from 0 to 2^32 - 1, got {seeds}")
    return chosen


def check(name: str, values: tuple[Any, ...], *, swept: bool) -> None:
    """Raises unless these are the values of an axis: at least one, of a type that can be saved, each once.

    Raises:
      ValueError: on an axis that is empty, repeats a value or has a reserved name, or on a number out of range.
      TypeError: on a value of another type.
    """
    if name in RESERVED or "/" in name:
        raise ValueError(f"grid: an axis cannot be named {name!r}; the name is taken for results")
    if not values:
        raise ValueError(f"grid: axis {name} is empty; give it at least one value")
    for value in values:
        _check_value(name, value, swept)
    seen = set[Any]()
    for value in values:
        text = number_text(value) if swept else typed_text(value)
        if text in seen:
            raise ValueError(f"grid: axis {name} repeats a value: {value} (numbers are told apart by 9 digits)")
        seen.add(text)


def _check_value(name: str, value: Any, swept: bool) -> None:
    if swept and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"grid: swept axis {name} takes numbers, got {value!r}; put it in config if it is a choice")
    if swept and not abs(value) <= _LARGEST:
        raise ValueError(f"grid: axis {name} takes finite numbers, got {_shortened(value)}")
    if not swept and not isinstance(value, (str, int, float, bool)):
        raise TypeError(f"grid: axis {name} takes strings, numbers or booleans, got {value!r}")
    if not swept and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"grid: axis {name} takes integers from -2^63 to 2^63 - 1, got {_shortened(value)}")


def _shortened(value: float) -> str:
    """An integer may have more digits than Python prints."""
    return repr(value) if isinstance(value, float) or abs(value) < 10**40 else "an integer of more than 40 digits"
