"""Effects: what is measured of a claim, one number a seed under each condition, with the words that say what it is.

Effects are subtracted and divided like numbers. Nothing is computed before an effect is judged or drawn, so that a
grid without some of the points still says what it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """One number a seed under each condition.

    Attributes:
      measured: what the numbers are, in words.
      conditions: what tells a condition from the others -> function that returns its values `[seed]`. A condition of
        several axes has a label for each, in a tuple; the only condition may have none.
      fixed: what all conditions share: name -> words. Two effects that are compared name what differs between them.
    """

    measured: str
    conditions: Mapping[Labels | str, Callable[[], Values]]
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
        if twice := self.conditions.keys() & other.conditions.keys():
            raise ValueError(f"both effects have the conditions {sorted(map(str, twice))}; name them apart")
        words = self.measured if self.measured == other.measured else f"{self.measured} or {other.measured}"
        return Effect(words, {**self.conditions, **other.conditions}, _shared(self, other))

    def called(self, name: str) -> Effect:
        """Returns the effect under a name, which says what differs from another where its axes do not."""
        return Effect(self.measured, self.conditions, {**self.fixed, "called": name})

    def __abs__(self) -> Effect:
        """Returns the sizes of the values."""
        return self._mapped(np.abs, "size of ({})")

    def off(self, expected: float) -> Effect:
        """Returns the relative distance of the values from an expected number: `|value / expected - 1|`."""
        words = f"relative distance of ({{}}) from {expected:.6g}"
        return self._mapped(lambda values: np.abs(values / expected - 1), words)

    def _mapped(self, function: Callable[[np.ndarray], np.ndarray], words: str) -> Effect:
        def changed(values: Callable[[], Values]) -> np.ndarray:
            return function(np.asarray(values(), float))

        conditions = {label: partial(changed, values) for label, values in self.conditions.items()}
        return Effect(words.format(self.measured), conditions, self.fixed)


def each(label: str, cases: Iterable, values: Callable[..., Values]) -> dict[Labels | str, Callable[[], Values]]:
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

    pairs: dict[Labels | str, Callable[[], Values]] = {}
    pairs.update({label: partial(paired, *both) for label, both in _matched(left, right).items()})
    return Effect(_difference(left, right, sign), pairs, _shared(left, right))


def _matched(left: Effect, right: Effect) -> dict[Labels, tuple[Callable[[], Values], Callable[[], Values]]]:
    """Pairs of conditions: equal labels, or all of one side's labels among the other's; one alone goes with all."""
    alone = 1 in (len(left.conditions), len(right.conditions))
    pairs: dict[Labels, tuple[Callable[[], Values], Callable[[], Values]]] = {}
    met: set[tuple[str, Labels | str]] = set()
    for (one, values), (other, others) in product(left.conditions.items(), right.conditions.items()):
        mine, yours = as_labels(one), as_labels(other)
        if alone or set(mine) <= set(yours) or set(yours) <= set(mine):
            from_left = (len(left.conditions), len(mine)) >= (len(right.conditions), len(yours))
            pairs[mine if from_left else yours] = (values, others)
            met |= {("left", one), ("right", other)}
    if len(met) < len(left.conditions) + len(right.conditions):
        raise ValueError(
            f"the conditions {_listed(left)} and {_listed(right)} cannot be paired; name the same ones on both sides, "
            "or one alone on one side"
        )
    return pairs


def as_labels(key: Labels | str) -> Labels:
    """Returns a condition's labels as a tuple."""
    return key if isinstance(key, tuple) else (key,) if key else ()


def _listed(effect: Effect) -> str:
    return "; ".join(", ".join(as_labels(key)) for key in effect.conditions)


def _difference(left: Effect, right: Effect, sign: str) -> str:
    shared = _shared(left, right)
    one, other = ([words for name, words in side.fixed.items() if name not in shared] for side in (left, right))
    if left.measured == right.measured and (one or other):
        return f"{left.measured}, {' and '.join(one) or 'each'} {sign} {' and '.join(other) or 'each'}"
    sides = [
        f"{side.measured} ({', '.join(own)})" if own else side.measured for side, own in ((left, one), (right, other))
    ]
    return f" {sign} ".join(sides)


def _shared(left: Effect, right: Effect) -> dict[str, str]:
    return {name: words for name, words in left.fixed.items() if right.fixed.get(name) == words}
