"""From a claim and its measurements to a verdict, by one stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dlexp.results import strictjson
from dlexp.results.table import NotMeasuredError
from dlexp.study import statistics
from dlexp.study.effects import Effect, Values, as_labels

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


def judge(
    claim: str,
    source: str,
    effect: Effect,
    *,
    least: float | None = None,
    most: float | None = None,
    within: float | None = None,
) -> Claim:
    """Returns the claim with its verdict, and with a rule made from the effect's words and the bound.

    One condition is judged by its 95% interval over seeds. Several are judged one by one: equal verdicts are the
    verdict, different ones are mixed, each shown; effect and interval are then those of the condition that speaks
    most against the claim. A condition that this grid has not measured, or that has fewer than two seeds, is left
    out; without any other the claim is undecided, with no effect.

    Args:
      claim: the statement, in our own words.
      source: who says so: `study.text(...)`, or a paper's authors, title, year and link.
      effect: one number a seed under each condition.
      least: the effect must be above it.
      most: the effect must be below it.
      within: the effect must lie between minus this and this.

    Raises:
      ValueError: unless exactly one bound is given, and on a value that is not finite.
    """
    bound = _bound(least, most, within)
    intervals, num_seeds, missing = {}, {}, ["not measured in this grid"]
    for labels, values in effect.conditions.items():
        condition = ", ".join(as_labels(labels))
        measured = _measured(values, missing)
        if not np.isfinite(measured).all():
            raise ValueError(f"judge: {condition!r} has values that are not finite; count failed runs as a value")
        if len(measured) > 1:
            intervals[condition], num_seeds[condition] = statistics.t_interval(measured), len(measured)
        elif len(measured):
            missing.append("one seed has no interval")
    rule = f"{effect.words}, by seed; {bound.words}"
    if not intervals:
        nothing: Any = {"effect": None, "interval": None, "num_seeds": 0, "condition": missing[-1]}
        return Claim(claim, source, rule, UNDECIDED, **nothing)
    verdicts = {name: bound.verdict((each.low, each.high)) for name, each in intervals.items()}
    hardest = max(intervals, key=lambda name: bound.against(intervals[name].mean))
    shown = "; ".join(f"{name}: {verdicts[name]} ({_shown(each)})" for name, each in intervals.items())
    return Claim(
        claim=claim,
        source=source,
        rule=rule,
        verdict=verdicts[hardest] if len(set(verdicts.values())) == 1 else MIXED,
        effect=_rounded(intervals[hardest].mean),
        interval=(_rounded(intervals[hardest].low), _rounded(intervals[hardest].high)),
        num_seeds=min(num_seeds.values()),
        condition=hardest if len(intervals) == 1 else shown,
    )


class Bound(NamedTuple):
    """What an effect must keep to.

    Attributes:
      low: the effect must be above it.
      high: the effect must be below it.
      words: the same in words.
    """

    low: float
    high: float
    words: str

    def verdict(self, interval: Sequence[float]) -> str:
        """Returns supported where the whole interval keeps to it, refuted where all of it lies beyond, else undecided.

        >>> [Bound(0.5, np.inf, "").verdict(each) for each in ((1.0, 3.0), (-1.0, 0.2), (0.0, 3.0))]
        ['supported', 'refuted', 'undecided']
        """
        low, high = interval
        if low > self.low and high < self.high:
            return SUPPORTED
        return REFUTED if high < self.low or low > self.high else UNDECIDED

    def against(self, mean: float) -> float:
        """Returns how much a mean speaks against the claim: how far it lies beyond the nearer bound."""
        return max(self.low - mean, mean - self.high)


def _bound(least: float | None, most: float | None, within: float | None) -> Bound:
    if sum(each is not None for each in (least, most, within)) != 1:
        raise ValueError("judge: needs exactly one of least=, most= and within=")
    if least is not None:
        return Bound(least, np.inf, f"at least {least:.6g}")
    if most is not None:
        return Bound(-np.inf, most, f"at most {most:.6g}")
    assert within is not None
    if within <= 0:
        raise ValueError(f"judge: within must be above 0, got {within}")
    return Bound(-within, within, f"within {within:.6g} of 0")


def to_json(claims: Sequence[Claim]) -> str:
    """Returns the text of `claims.json`."""
    return strictjson.dumps([claim._asdict() for claim in claims], indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Claim]:
    """Returns the claims of `to_json`'s text."""
    entries = strictjson.loads(text)
    return [Claim(**{**entry, "interval": entry["interval"] and tuple(entry["interval"])}) for entry in entries]


def _measured(values: Callable[[], Values], missing: list[str]) -> np.ndarray:
    """The values; none, and the reason, where the grid lacks them."""
    try:
        return np.asarray(values(), float)
    except NotMeasuredError as error:
        missing.append(f"not measured in this grid: {error}")
        return np.empty(0)


def _shown(interval: statistics.Interval) -> str:
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
