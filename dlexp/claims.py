"""From a claim and its measurements to a verdict, by one stated rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from dlexp import analysis
from dlexp.results import strictjson
from dlexp.results.table import NotMeasuredError

Values = Sequence[float] | np.ndarray

SUPPORTED, REFUTED, MIXED, UNDECIDED = "supported", "refuted", "mixed", "undecided"


class Claim(NamedTuple):
    """A statement and what was measured of it.

    Attributes:
      claim: the statement, in our own words.
      source: who says so: lesson text (title, section) or paper (title, year, link).
      rule: what is measured and the smallest effect that matters, written down before the sweep.
      verdict: supported, refuted, mixed or undecided.
      effect: mean of the measured effect over seeds, in the rule's unit; None where it was not measured.
      interval: its 95% interval.
      num_seeds: how many seeds.
      condition: under what the effect was measured; several where the verdict is mixed.
    """

    claim: str
    source: str
    rule: str
    verdict: str
    effect: float | None
    interval: tuple[float, float] | None
    num_seeds: int
    condition: str


def verdict_of(interval: Sequence[float], smallest: float) -> str:
    """Returns supported where the whole interval lies above `smallest`, refuted where it lies below, else undecided.

    >>> verdict_of((1.0, 3.0), 0.5), verdict_of((-1.0, 0.2), 0.5), verdict_of((0.0, 3.0), 0.5)
    ('supported', 'refuted', 'undecided')
    """
    low, high = interval
    if low > smallest:
        return SUPPORTED
    return REFUTED if high < smallest else UNDECIDED


def judge(
    claim: str,
    *,
    source: str,
    rule: str,
    effects: Mapping[str, Values | Callable[[], Values]],
    smallest: float = 0.0,
) -> Claim:
    """Returns the claim with its verdict.

    One condition is judged by its interval over seeds. Several are judged one by one: equal verdicts are the
    verdict, different ones are mixed, each shown; effect and interval are then those of the condition with the
    smallest mean, which speaks most against the claim.

    Args:
      claim: the statement.
      source: who says so.
      rule: what is measured, and the smallest effect that matters, in words.
      effects: condition -> one value a seed, paired where two things are compared; larger speaks for the claim. A
        function is called for them; where it meets a sweep or a value that the grid does not have
        (`NotMeasuredError`), its condition is not measured.
      smallest: the effect that must be exceeded.

    A condition with fewer than two seeds is not measured; without any other the claim is undecided, with no effect.

    Raises:
      ValueError: on a value that is not finite.
    """
    intervals, num_seeds, most = {}, {}, 0
    for condition, effect in effects.items():
        values = _measured(effect)
        if not np.isfinite(np.asarray(values, float)).all():
            raise ValueError(f"judge: {condition!r} has values that are not finite; count failed runs as a value")
        most = max(most, len(values))
        if len(values) > 1:
            intervals[condition], num_seeds[condition] = analysis.t_interval(values), len(values)
    if not intervals:
        why = "one seed has no interval" if most else "not measured in this grid"
        return Claim(claim, source, rule, UNDECIDED, None, None, most, why)
    verdicts = {name: verdict_of((each.low, each.high), smallest) for name, each in intervals.items()}
    hardest = min(intervals, key=lambda name: intervals[name].mean)
    agreed = len(set(verdicts.values())) == 1
    shown = "; ".join(f"{name}: {verdicts[name]} ({_shown(each)})" for name, each in intervals.items())
    return Claim(
        claim=claim,
        source=source,
        rule=rule,
        verdict=verdicts[hardest] if agreed else MIXED,
        effect=_rounded(intervals[hardest].mean),
        interval=(_rounded(intervals[hardest].low), _rounded(intervals[hardest].high)),
        num_seeds=min(num_seeds.values()),
        condition=hardest if len(intervals) == 1 else shown,
    )


def each(label: str, cases: Iterable, effect: Callable[..., Values]) -> dict[str, Callable[[], Values]]:
    """Returns one condition a case for `judge`: its name and a function that measures it.

    >>> {name: value() for name, value in each("{} layers", (2, 10), lambda layers: [layers]).items()}
    {'2 layers': [2], '10 layers': [10]}

    Args:
      label: the conditions' names, with a field for each of a case's values.
      cases: values, or tuples of them.
      effect: from a case's values to one value a seed.
    """
    tuples = [case if isinstance(case, tuple) else (case,) for case in cases]
    return {label.format(*case): partial(effect, *case) for case in tuples}


def to_json(claims: Sequence[Claim]) -> str:
    """Returns the text of `claims.json`."""
    return strictjson.dumps([claim._asdict() for claim in claims], indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Claim]:
    """Returns the claims of `to_json`'s text."""
    entries = strictjson.loads(text)
    return [Claim(**{**entry, "interval": entry["interval"] and tuple(entry["interval"])}) for entry in entries]


def _measured(effect: Values | Callable[[], Values]) -> Values:
    if not callable(effect):
        return effect
    try:
        return effect()
    except NotMeasuredError:
        return []


def _shown(interval: analysis.Interval) -> str:
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
