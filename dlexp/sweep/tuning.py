"""The layout of a group's programs, chosen by timing several where that pays.

A group is timed only if its training would take long even in the default layout. Then, a fraction of a second a layout:

1. Time the default layout.
2. For each open choice of the networks and optimizers, time its other options.
3. Where a compiled loop is twice as slow as the best layout, time one call a step.
4. Time double and half the width, as long as that helps.
5. Time the layouts that nearly won once more.

The layouts of a round take turns with the best so far, and the fastest turn of each counts, because other work on the
machine slows whole seconds. A round is made only where it is expected to take less than a tenth of the training that is
left. The default layout stays unless another is 3% faster. The winner is kept for this machine and these programs.

Where most runs share their seed with so many others that they fill half a call, the calls of a layout may have one seed
each (`Layout.shares_seed`). Such calls are as narrow as fills all calls of a seed equally; batches and dropout masks
are drawn once for a call, and on a CPU the first layers of perceptrons are one product. Measured on a CPU: a small
perceptron trains 1.14 times as fast, a larger one 1.15 times. What a run computes is the same in either layout, because
what chance decides in it depends on its seed alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dlexp.sweep import machine, pace, programs
from dlexp.sweep.layouts import MEMORY_SHARE, Layout, slow_flops, with_equal_calls
from dlexp.sweep.pace import Measured, Pace
from dlexp.sweep.plan import Group, Plan

WORTH_SECONDS = 20.0  # a training that takes less, by the estimate or as timed, is not worth timing layouts
MAX_SHARE = 0.1  # a round of timings may take a tenth of the training that is left
SLOW_LOOP_RATIO = 2.0  # a loop that takes twice as long as the fastest layout: one call a step may be better
RETIME_RATIO = 1.15  # layouts within 15% of the fastest are timed once more
RETRY_RATIO = 1.3  # an option within 30% of the fastest of its width is tried again at the best width
LEAST_GAIN = 1.03  # another layout must be 3% faster than the default: less is noise
CHUNK_SECONDS = 0.004  # a chunk takes so long beside its steps and evaluations, if it was not measured
TIMED_SECONDS = 0.15  # one timing takes about so long
TURNS, MAX_TURNS = 3, 10  # turns of a round; of the last round, where the training is long

Rounds = Generator[list[Layout], dict[Layout, float], None]


def tuned(
    plan: Plan,
    devices: list[jax.Device],
    num_missing: Sequence[int],
    *,
    fixed: Collection[int] = (),
    tell: Callable[[str], None] = lambda sentence: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Plan:
    """Returns the plan with the layouts that are fastest here.

    Args:
      plan: what will be trained.
      devices: on which.
      num_missing: runs of each group that are still to be trained.
      fixed: places of groups that keep their layout.
      tell: is told what is measured, and what came of it.
      stopping: says whether the user wants to stop, asked before each timing.

    Raises:
      KeyboardInterrupt: where the user does.
    """
    groups = list(plan.groups)
    for index, group in enumerate(groups):
        is_chosen = group.measured is not None and group.measured.is_chosen
        if index not in fixed and not is_chosen and _may_be_worth_it(group, num_missing[index], devices):
            with contextlib.suppress(jax.errors.JaxRuntimeError, MemoryError):  # the engine narrows what does not fit
                groups[index] = _tuned(plan, group, num_missing[index], Bench(plan, group, devices, stopping), tell)
    return plan._replace(groups=tuple(groups))


def rounds(group: Group, fitted: Callable[[Layout], Layout]) -> Rounds:
    """Yields the layouts of each round, and is sent what all layouts timed so far take: layout -> seconds of training.

    Args:
      group: whose layouts are searched.
      fitted: fits a layout to the group's runs before it is timed.
    """
    seconds, num_timed = (yield [group.layout]), 0

    def untried(layouts: Iterable[Layout]) -> list[Layout]:
        return [layout for layout in dict.fromkeys(map(fitted, layouts)) if layout not in seconds]

    while len(seconds) > num_timed:
        num_timed = len(seconds)
        for name in sorted(group.choices):
            if others := untried(_others(name, group.choices[name], seconds)):
                seconds = yield others
            if slow := [layout._replace(stepwise=True) for layout in seconds if _loop_is_slow(layout, seconds)]:
                seconds = yield slow
        while others := untried(_twice_and_half(seconds)):
            seconds = yield others


def _others(name: str, options: Sequence[str], seconds: Mapping[Layout, float]) -> list[Layout]:
    """The best so far with each other option of a choice that was never tried, or came close at another width."""
    best = _best(seconds)

    def option_of(layout: Layout) -> str:
        return dict(layout.choices).get(name, options[0])

    def is_close(layout: Layout) -> bool:
        return seconds[layout] < RETRY_RATIO * min(seconds[other] for other in seconds if other.width == layout.width)

    def is_promising(option: str) -> bool:
        tried = [layout for layout in seconds if option_of(layout) == option]
        return option != option_of(best) and (not tried or any(map(is_close, tried)))

    return [_with_option(best, name, option, options[0]) for option in filter(is_promising, options)]


def _with_option(layout: Layout, name: str, option: str, usual: str) -> Layout:
    """With the usual option unsaid, so that equal layouts have equal names."""
    said = dict(layout.choices) | {name: option}
    return layout._replace(choices=tuple(sorted(pair for pair in said.items() if pair != (name, usual))))


def _twice_and_half(seconds: Mapping[Layout, float]) -> list[Layout]:
    """The best so far at other widths."""
    best = _best(seconds)
    return [best._replace(width=width) for width in (2 * best.width, best.width // 2) if width]


def _best(seconds: Mapping[Layout, float]) -> Layout:
    return min(seconds, key=lambda layout: seconds[layout])


def _loop_is_slow(layout: Layout, seconds: Mapping[Layout, float]) -> bool:
    best = _best(seconds)
    is_new = layout.width == best.width and layout._replace(stepwise=True) not in seconds
    return not layout.stepwise and is_new and seconds[layout] > SLOW_LOOP_RATIO * seconds[best]


def _may_be_worth_it(group: Group, num_missing: int, devices: list[jax.Device]) -> bool:
    """By its FLOPs, before anything is compiled; or by the pace at which it was trained here before."""
    if group.learner.update is None or not num_missing or group.measure is not None:
        return False
    slow = slow_flops(devices[0].platform) * len(devices)
    num_chunks = num_missing / (group.width * len(devices))
    return num_missing * group.flops / slow + num_chunks * CHUNK_SECONDS > WORTH_SECONDS


def _tuned(plan: Plan, group: Group, num_missing: int, bench: Bench, tell: Callable[[str], None]) -> Group:
    seconds, rates = dict[Layout, float](), dict[str, float]()
    search = rounds(group, lambda layout: with_equal_calls(layout, group.seeds_with_num_runs, plan.num_devices))
    layouts, spent = next(search), 0.0
    while True:
        began = time.perf_counter()
        for layout, rate in _beside_the_best(bench, layouts, seconds, rates).items():
            rates[str(layout)] = rate
            seconds[layout] = _training_seconds(plan, group, num_missing, layout, rate)
        for layout in layouts:
            seconds.setdefault(layout, float("inf"))
        if not rates:
            return group  # not even the default fits; the engine narrows it
        if len(seconds) == 1:
            spent, least = time.perf_counter() - began, seconds[group.layout]
            if least < WORTH_SECONDS:
                return group
            tell(f"{group.family}: about {least:.0f} s of training; timing other layouts of its programs")
        try:
            layouts = search.send(seconds)
        except StopIteration:
            break
        if len(layouts) * spent > MAX_SHARE * min(seconds.values()) * machine.num_cores():
            break
    for layout, rate in _timed_again(bench, seconds).items():
        rates[str(layout)] = rate
        seconds[layout] = _training_seconds(plan, group, num_missing, layout, rate)
    best = _best(seconds)
    if seconds[group.layout] < LEAST_GAIN * seconds[best]:
        best = group.layout
    tell(f"{group.family}: {best}, about {seconds[best]:.0f} s")
    measured = Measured(best, _expected_pace(plan, group, best, rates[str(best)]), is_chosen=True, rates=rates)
    pace.remember(group.program_hash, measured)
    return group._replace(layout=best, measured=measured)


def _beside_the_best(
    bench: Bench, layouts: list[Layout], seconds: Mapping[Layout, float], rates: Mapping[str, float]
) -> dict[Layout, float]:
    """The rates of layouts as they compare with the best so far, if any, which is timed again in turn with them."""
    if not seconds:
        return _in_turn(bench, layouts)
    best = _best(seconds)
    found = _in_turn(bench, [best, *layouts])
    now = found.pop(best, 0.0)
    return {layout: rate * (rates[str(best)] / now if now else 1.0) for layout, rate in found.items()}


def _timed_again(bench: Bench, seconds: Mapping[Layout, float]) -> dict[Layout, float]:
    """The rates of those that nearly won, and of the default."""
    least = min(seconds.values())
    near = [layout for place, layout in enumerate(seconds) if place == 0 or seconds[layout] < RETIME_RATIO * least]
    return _in_turn(bench, near, MAX_SHARE * least)


def _in_turn(bench: Bench, layouts: list[Layout], seconds: float = 0.0) -> dict[Layout, float]:
    """The highest rate of each, in three turns of all; in up to ten that begin within so many seconds."""
    fastest, began = dict[Layout, float](), time.perf_counter()
    for turn in range(MAX_TURNS):
        if turn >= TURNS and time.perf_counter() - began > seconds:
            break
        for layout, rate in bench.rates(layouts).items():
            fastest[layout] = max(rate, fastest.get(layout, 0.0))
    return fastest


def _training_seconds(plan: Plan, group: Group, num_runs: int, layout: Layout, rate: float) -> float:
    """What so many runs take, padding counted, and what each chunk takes beside its steps."""
    rows, num_chunks = layout.width * plan.num_devices, plan.num_chunks(group.with_layout(layout), num_runs)
    beside = group.measured.pace.start if group.measured else CHUNK_SECONDS
    return num_chunks * (beside + rows * plan.sweep.num_steps / rate)


def _expected_pace(plan: Plan, group: Group, layout: Layout, rate: float) -> Pace:
    """A step as it was timed; an evaluation by its FLOPs, until one was timed in a training."""
    step = layout.width * plan.num_devices / rate
    step_flops = (group.flops - (plan.sweep.num_evals + 1) * group.evaluation_flops) / plan.sweep.num_steps
    return Pace(CHUNK_SECONDS, step, step * group.evaluation_flops / step_flops)


class Bench:
    """Times the training of one group in many layouts, from one initial state."""

    def __init__(
        self, plan: Plan, group: Group, devices: list[jax.Device], stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Compiles the initialization of the group's own layout; its weights are everyone's."""
        self._plan, self._group, self._devices, self._stopping = plan, group, devices, stopping
        self._mesh = machine.mesh(devices)
        self._over_runs = NamedSharding(self._mesh, PartitionSpec("run"))
        self._data = jax.device_put(group.learner.data, NamedSharding(self._mesh, PartitionSpec()))
        initialize = programs.lower(group, self._mesh)[0].compile()
        self._carry = initialize(*self._seeds_and_hyper(group), self._data)
        self._leaves = programs.to_host(self._carry)
        self._bytes: dict[int, float] = {}
        self._compiled: dict[Layout, Callable] = {}

    def rates(self, layouts: Sequence[Layout], seconds: float = TIMED_SECONDS) -> dict[Layout, float]:
        """Returns steps of runs a second on all devices; a layout that does not fit into memory is left out.

        Each is timed about so many seconds.

        Raises:
          KeyboardInterrupt: where the user wants to stop.
        """
        self._compile([layout for layout in layouts if layout not in self._compiled and self._fits(layout)])
        found = {}
        for layout in layouts:
            if self._stopping():
                raise KeyboardInterrupt
            if layout in self._compiled:
                with contextlib.suppress(jax.errors.JaxRuntimeError, MemoryError):  # then it is not the fastest
                    found[layout] = self._rate(self._group.with_layout(layout), self._compiled[layout], seconds)
        return found

    def _compile(self, layouts: Sequence[Layout]) -> None:
        """Compiles layouts side by side."""
        lowered = [programs.lower(self._group.with_layout(layout), self._mesh)[1] for layout in layouts]
        with ThreadPoolExecutor(machine.num_cores()) as pool:
            compiled = list(pool.map(lambda each: each.compile(), lowered))
        self._compiled |= dict(zip(layouts, compiled, strict=True))
        for layout, program in zip(layouts, compiled, strict=True):
            if memory := program.memory_analysis():
                self._bytes[layout.width] = memory.temp_size_in_bytes + memory.argument_size_in_bytes

    def _fits(self, layout: Layout) -> bool:
        """By a line through the bytes of the widths compiled so far."""
        if not self._bytes:
            return True
        widths = sorted(self._bytes)
        low, high = self._bytes[widths[0]], self._bytes[widths[-1]]
        slope = (high - low) / (widths[-1] - widths[0]) if len(widths) > 1 else high / widths[0]
        expected = high + slope * (layout.width - widths[-1])
        return expected < MEMORY_SHARE * machine.device_memory(self._devices)

    def _rate(self, group: Group, program: Callable, seconds: float) -> float:
        steps = programs.steps(group, program)
        rows = group.width * self._mesh.size
        places = np.arange(rows) % len(self._leaves[0])
        carry = programs.to_devices([leaf[places] for leaf in self._leaves], self._carry)
        arguments = (*self._seeds_and_hyper(group), self._data)
        at, num_steps = 0, 1
        while True:
            began = time.perf_counter()
            carry = steps(*arguments, carry, at, at + num_steps)
            jax.block_until_ready(carry)
            at, spent = at + num_steps, time.perf_counter() - began
            if at > 1 and spent > seconds / 2:  # the first step warms it up
                return rows * num_steps / spent
            num_steps = max(1, min(10 * num_steps, int(num_steps * seconds / spent)))

    def _seeds_and_hyper(self, group: Group) -> Any:
        runs = [run for _, run in islice(self._plan.runs(group), group.width * self._mesh.size)]
        return programs.arguments(group, runs, self._over_runs)
