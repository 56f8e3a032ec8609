"""Effects: what is measured of a claim, one number a seed under each condition, with the words that say what it is.

Effects are subtracted and divided like numbers. Nothing is computed before an effect is judged or drawn, so that a
grid without some of the points still says what it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Effect:
    """One number a seed under each condition.

    Attributes:
      measured: what the numbers are, in words.
      conditions: label of a condition -> function that returns its values `[seed]`. The label "" stands for one
        condition that needs no name.
      fixed: what all conditions share: name -> words. Two effects that are compared name what differs between them.
    """

    measured: str
    conditions: Mapping[str, Callable[[], Values]]
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What the numbers are, and what they share."""
        return self.measured + (f" ({', '.join(self.fixed.values())})" if self.fixed else "")

    def __sub__(self, other: Effect | float) -> Effect:
        """Returns the differences, seed by seed."""
        return _combined(self, other, np.subtract, "minus")

    def __rsub__(self, number: float) -> Effect:
        """Returns a number minus the values."""
        return self._mapped(lambda values: number - values, f"{number:g} minus ({{}})")

    def __truediv__(self, other: Effect | float) -> Effect:
        """Returns the ratios, seed by seed."""
        return _combined(self, other, np.divide, "over")

    def __or__(self, other: Effect) -> Effect:
        """Returns the conditions of both: one claim of several effects, all judged by one bound.

        Raises:
          ValueError: where both name a condition the same way.
        """
        twice = self.conditions.keys() & other.conditions.keys()
        if twice:
            raise ValueError(f"both effects have the conditions {sorted(twice)}; name them apart")
        same = self.words == other.words
        words = self.measured if same else f"{self.words} or {other.words}"
        return Effect(words, {**self.conditions, **other.conditions}, self.fixed if same else {})

    def __abs__(self) -> Effect:
        """Returns the sizes of the values."""
        return self._mapped(np.abs, "size of ({})")

    def off(self, expected: float) -> Effect:
        """Returns the relative distance of the values from an expected number: `|value / expected - 1|`."""
        words = f"relative distance of ({{}}) from {expected:.6g}"
        return self._mapped(lambda values: np.abs(values / expected - 1), words)

    def log(self, base: float) -> Effect:
        """Returns the logarithms of the values."""
        return self._mapped(lambda values: np.log(values) / np.log(base), f"log{base:g} of ({{}})")

    def _mapped(self, function: Callable[[np.ndarray], np.ndarray], words: str) -> Effect:
        def changed(values: Callable[[], Values]) -> np.ndarray:
            return function(np.asarray(values(), float))

        conditions = {label: partial(changed, values) for label, values in self.conditions.items()}
        return Effect(words.format(self.measured), conditions, self.fixed)


def each(label: str, cases: Iterable, values: Callable[..., Values]) -> dict[str, Callable[[], Values]]:
    """Returns one condition a case for an `Effect` that no measure makes.

    >>> {name: values() for name, values in each("{} layers", (2, 10), lambda layers: [layers]).items()}
    {'2 layers': [2], '10 layers': [10]}

    Args:
      label: the conditions' names, with a field for each of a case's values.
      cases: values, or tuples of them.
      values: from a case's values to one number a seed.
    """
    tuples = [case if isinstance(case, tuple) else (case,) for case in cases]
    return {label.format(*case): partial(values, *case) for case in tuples}


def _combined(left: Effect, right: Effect | float, operation: Callable[..., Any], sign: str) -> Effect:
    if not isinstance(right, Effect):
        number = float(right)
        return left._mapped(lambda values: operation(values, number), f"({{}}) {sign} {number:g}")

    def paired(first: Callable[[], Values], second: Callable[[], Values]) -> np.ndarray:
        one, other = np.asarray(first(), float), np.asarray(second(), float)
        if one.shape != other.shape:
            raise ValueError(
                f"{left.measured} has {len(one)} seeds, {right.measured} has {len(other)}; compare equal seeds"
            )
        return operation(one, other)

    pairs = {label: partial(paired, *both) for label, both in _matched(left, right).items()}
    return Effect(_difference(left, right, sign), pairs, _shared(left, right))


def _matched(left: Effect, right: Effect) -> dict[str, tuple[Callable[[], Values], Callable[[], Values]]]:
    """Conditions of equal label, or every one against the only one of the other side."""
    if len(right.conditions) == 1:
        (only,) = right.conditions.values()
        return {label: (values, only) for label, values in left.conditions.items()}
    if len(left.conditions) == 1:
        (only,) = left.conditions.values()
        return {label: (only, values) for label, values in right.conditions.items()}
    if left.conditions.keys() != right.conditions.keys():
        raise ValueError(
            f"the conditions {', '.join(left.conditions)} and {', '.join(right.conditions)} cannot be paired; name "
            "the same ones on both sides, or one alone on one side"
        )
    return {label: (values, right.conditions[label]) for label, values in left.conditions.items()}


def _difference(left: Effect, right: Effect, sign: str) -> str:
    shared = _shared(left, right)
    one, other = ([words for name, words in side.fixed.items() if name not in shared] for side in (left, right))
    if left.measured == right.measured and (one or other):
        return f"{left.measured}, {' and '.join(one) or 'else'} {sign} {' and '.join(other) or 'else'}"
    sides = [
        f"{side.measured} ({', '.join(own)})" if own else side.measured for side, own in ((left, one), (right, other))
    ]
    return f" {sign} ".join(sides)


def _shared(left: Effect, right: Effect) -> dict[str, str]:
    return {name: words for name, words in left.fixed.items() if right.fixed.get(name) == words}
