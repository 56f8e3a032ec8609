"""Options that give equal numbers at different speeds, and the option that is chosen for each.

A function that can compute its result in several ways calls `choose("convolution", ("patches", "native"))` while it is
traced, and takes the way that it is told: the first option where nobody has chosen. The options differ in speed and in
rounding, in nothing else. The plan of a sweep lists the choices of a program with `recording_choices`, and compiles it
with `with_choices`. One choice belongs to the engine and to no network: `seed`, whether all runs of a call have one
seed.

What is chosen is held in context variables. This is the one global state of the package, and only this room reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

OWN, SHARED = "own", "shared"  # options of "seed": whether every run of a call has a seed of its own, or all have one

_chosen: ContextVar[Mapping[str, str] | None] = ContextVar("chosen", default=None)
_recorded: ContextVar[dict[str, tuple[str, ...]] | None] = ContextVar("recorded", default=None)


def choose(name: str, options: Sequence[str]) -> str:
    """Returns the option chosen for a name, the first where none is.

    >>> with with_choices({"convolution": "native"}):
    ...     choose("convolution", ("patches", "native"))
    'native'
    >>> choose("convolution", ("patches", "native"))
    'patches'

    Raises:
      ValueError: where what was chosen is no option.
    """
    recorded = _recorded.get()
    if recorded is not None:
        recorded[name] = tuple(option for option in recorded.get(name, options) if option in options)
    option = (_chosen.get() or {}).get(name, options[0])
    if option not in options:
        raise ValueError(f"{name} can be {', '.join(options)} here, not {option!r}")
    return option


def is_seed_shared() -> bool:
    """Returns whether all runs of a call have one seed, as the plan has chosen."""
    return (_chosen.get() or {}).get("seed") == SHARED


@contextmanager
def with_choices(choices: Mapping[str, str]) -> Iterator[None]:
    """A context in which these options are chosen: what is traced in it is computed in their ways."""
    token = _chosen.set(choices)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def recording_choices() -> Iterator[dict[str, tuple[str, ...]]]:
    """A context that records every choice made in it: name -> the options that all who chose have in common."""
    names: dict[str, tuple[str, ...]] = {}
    token = _recorded.set(names)
    try:
        yield names
    finally:
        _recorded.reset(token)
