"""Ways to compute the same numbers that a network leaves open, for whoever compiles it to choose from.

A function under tracing asks `choose("convolution", (...))` and goes on with the answer: the first option where
nobody chose. Options differ in speed and in rounding, in nothing else. One choice is no network's, but the engine's:
whether the runs of a call share a `seed`; functions may ask what it is. `check_choice` refuses a parameter that is none
of its options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

OWN, SHARED = "own", "shared"  # options of "seed": whether every run of a call has a seed of its own, or all have one

_made: ContextVar[Mapping[str, str] | None] = ContextVar("made", default=None)
_asked: ContextVar[dict[str, tuple[str, ...]] | None] = ContextVar("asked", default=None)


def choose(name: str, options: Sequence[str]) -> str:
    """Returns the option chosen for a name, the first where none is.

    >>> with made({"convolution": "native"}):
    ...     choose("convolution", ("patches", "native"))
    'native'
    >>> choose("convolution", ("patches", "native"))
    'patches'

    Raises:
      ValueError: where what was chosen is no option.
    """
    asked = _asked.get()
    if asked is not None:
        asked[name] = tuple(option for option in asked.get(name, options) if option in options)
    option = (_made.get() or {}).get(name, options[0])
    if option not in options:
        raise ValueError(f"{name} can be {', '.join(options)} here, not {option!r}")
    return option


def is_seed_shared() -> bool:
    """Whether all runs of a call have one seed, by the choice of whoever compiles."""
    return (_made.get() or {}).get("seed") == SHARED


@contextmanager
def made(choices: Mapping[str, str]) -> Iterator[None]:
    """A context in which these choices are made; what is traced in it keeps them."""
    token = _made.set(choices)
    try:
        yield
    finally:
        _made.reset(token)


@contextmanager
def asked() -> Iterator[dict[str, tuple[str, ...]]]:
    """A context that notes every choice asked for in it: name -> options that all who asked have in common."""
    names: dict[str, tuple[str, ...]] = {}
    token = _asked.set(names)
    try:
        yield names
    finally:
        _asked.reset(token)


def check_choice(caller: str, parameter: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError, in the caller's name, unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{caller}: {parameter} must be one of {', '.join(choices)}, got {value!r}")
