"""The layout of a group's programs: how many runs a call trains at once, and which way of computing each choice takes.

A layout changes the speed of programs and their rounding, nothing else. `default_layout` takes one from estimates,
before anything is compiled; where the training is long, `dlexp.sweep.tuning` times others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from dlexp.ops import compiler
from dlexp.ops.choices import SHARED

DEFAULT_WIDTH = {"cpu": 8, "gpu": 512, "tpu": 512}  # runs vmapped on one device unless measured otherwise
_WIDTH_ELSEWHERE = 64
_SLOW_FLOPS = {"cpu": 2e10}  # floating-point operations a second and device that small networks reach at least
_SLOW_FLOPS_ELSEWHERE = 1e12
MAX_WIDTH_OF_SMALL = 128  # widest call on a CPU, for networks so small that a step of 128 runs fits the caches
SMALL_BYTES = 8 * 2**20  # estimated intermediate values of a step of so many small networks, at most
CACHED_BYTES = 24 * 2**20  # estimated intermediate values of a step on a CPU, beyond which its caches no longer help
MIN_WIDE_CALLS = 4  # a group gets the width of small networks where it fills so many calls; the last may be part empty
MEMORY_SHARE = 0.5  # of a device's memory, that one call may take by estimate


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
        return ("seed", SHARED) in self.choices

    def __str__(self) -> str:
        chosen = [f"{name} {option}" for name, option in self.choices]
        return ", ".join([f"{self.width} at once", *chosen, *(["a call a step"] if self.stepwise else [])])

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Layout:
        """Returns what `_asdict` and JSON made of a layout."""
        return cls(
            int(saved["width"]), bool(saved["stepwise"]), tuple((name, option) for name, option in saved["choices"])
        )


class Needs(NamedTuple):
    """Estimated bytes that one run needs on a device.

    Attributes:
      held: while it is trained: its state twice, and what one call makes on the way.
      touched: by one step: its state, and what the step makes on the way.
    """

    held: float
    touched: float


def default_layout(
    platform: str, available: float, needs: Needs, num_runs: int, num_devices: int, choices: Collection[str]
) -> Layout:
    """Returns the layout of a group that was not timed.

    It has the usual width of the platform, halved until a call fits into memory and, on a CPU, a step fits about into
    the caches. On a CPU it is wider for small networks with many runs, because a chunk takes some milliseconds beside
    its steps, however many runs it has.

    Args:
      platform: cpu, gpu or tpu.
      available: bytes of a device that calls may take.
      needs: of one run.
      num_runs: of the group.
      num_devices: over which the runs of a call are spread.
      choices: names of what the networks and optimizers leave open.
    """

    def fits(width: int, cache: int) -> bool:
        return width * needs.held <= available and (platform != "cpu" or width * needs.touched <= cache)

    width = usual_width(platform)
    while width > 1 and not fits(width, CACHED_BYTES):
        width //= 2
    wide = width
    while platform == "cpu" and wide < MAX_WIDTH_OF_SMALL and fits(2 * wide, SMALL_BYTES):
        wide *= 2
    has_many = MIN_WIDE_CALLS * wide * num_devices <= num_runs
    return Layout(wide if has_many else width, choices=_default_choices(choices))


def usual_width(platform: str) -> int:
    """Returns how many runs are vmapped on one device of a platform, if nothing else is known."""
    return DEFAULT_WIDTH.get(platform, _WIDTH_ELSEWHERE)


def slow_flops(platform: str) -> float:
    """Returns the floating-point operations a second that small networks reach at least on a device of a platform."""
    return _SLOW_FLOPS.get(platform, _SLOW_FLOPS_ELSEWHERE)


def _default_choices(choices: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Where the first options are not the best: an update in one pass costs convolutions more than it gains."""
    return (("optimizer", compiler.PASSES),) if {"convolution", "optimizer"} <= set(choices) else ()


def can_share_seeds(seeds_with_num_runs: Mapping[int, int], num_rows: int) -> bool:
    """Returns whether most runs have a seed with so many runs that they fill at least half a call of `num_rows`.

    Args:
      seeds_with_num_runs: number of runs -> number of seeds that have that many.
      num_rows: runs of a call on all devices.
    """
    num_runs = sum(runs * seeds for runs, seeds in seeds_with_num_runs.items())
    num_sharing = sum(runs * seeds for runs, seeds in seeds_with_num_runs.items() if 2 * runs >= num_rows)
    return 2 * num_sharing > num_runs


def with_equal_calls(layout: Layout, seeds_with_num_runs: Mapping[int, int], num_devices: int) -> Layout:
    """Returns the layout, narrower where the runs of a call share a seed: then all calls of a seed are equally full."""
    if not layout.shares_seed:
        return layout
    most = max(seeds_with_num_runs)
    num_calls = -(-most // (layout.width * num_devices))
    return layout._replace(width=-(-most // (num_calls * num_devices)))
