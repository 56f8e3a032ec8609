"""The vocabulary of experiments: measures, effects and their judgement, lines and panels, the lesson's titles.

    from dlexp.study import at_best, by, judge, lines, side_by_side, text

An experiment measures with `measures`, compares with `effects`, judges with `claims`, and draws with `lines` and
`panels`. `statistics` and `style` are what these are made of.
"""

from dlexp.study.claims import Claim, judge
from dlexp.study.effects import Effect, each
from dlexp.study.lines import by, lines
from dlexp.study.measures import (
    Among,
    Measure,
    at_best,
    decades,
    highest_good,
    inside_minus_outside,
    last,
    measure,
    pick,
    share,
    spread_over,
    stopped,
    train_minus_test,
    with_metric,
)
from dlexp.study.panels import Panel, good_bands, heat, intervals, overlaid, side_by_side
from dlexp.study.sources import text

FRESH_SEEDS = range(16, 24)  # the rules of the claims were tried on the seeds 0 to 15

__all__ = [
    "FRESH_SEEDS",
    "Among",
    "Claim",
    "Effect",
    "Measure",
    "Panel",
    "at_best",
    "by",
    "decades",
    "each",
    "good_bands",
    "heat",
    "highest_good",
    "inside_minus_outside",
    "intervals",
    "judge",
    "last",
    "lines",
    "measure",
    "overlaid",
    "pick",
    "share",
    "side_by_side",
    "spread_over",
    "stopped",
    "text",
    "train_minus_test",
    "with_metric",
]
