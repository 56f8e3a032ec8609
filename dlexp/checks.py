"""Checks of arguments that several rooms make, with the sentence that they raise."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(caller: str, parameter: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError, in the caller's name, unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{caller}: {parameter} must be one of {', '.join(choices)}, got {value!r}")
