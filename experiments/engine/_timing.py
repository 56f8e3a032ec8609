"""What everyone in `experiments.engine.throughput` has in common: a network, and how its training is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

EVERY = 100  # steps between two evaluations


class Network(NamedTuple):
    """Convolutions, dense layers, 10 outputs.

    Attributes:
      inputs: numbers of one example.
      input_shape: `(*space, channels)`, empty where there is no convolution.
      conv_layers: each with channels, kernel, stride, padding and pool (`dlexp.models.ConvLayer`).
      widths: of the dense hidden layers.
      activation: relu or tanh.
    """

    inputs: int
    input_shape: tuple[int, ...] = ()
    conv_layers: tuple[Any, ...] = ()
    widths: tuple[int, ...] = ()
    activation: str = "relu"


class Contender(NamedTuple):
    """A way to train, ready to be timed.

    Attributes:
      num_runs: networks trained at once.
      steps: sets so many steps of each going.
      evaluate: sets the evaluation of 1,000 rows going.
      wait: until all is done.
    """

    num_runs: int
    steps: Callable[[int], None]
    evaluate: Callable[[], None]
    wait: Callable[[], None] = lambda: None


def pace(contender: Contender, seconds: float) -> float:
    """Returns steps of runs a second, evaluations every 100 steps counted; a slow way makes fewer steps in between.

    It takes about so many seconds, a step and an evaluation at least.
    """
    step = _seconds_of(lambda: contender.steps(1), contender)
    num_steps = EVERY if 2 * step * EVERY < seconds else max(1, int(seconds / max(step, 1e-9) / 2))
    if num_steps < EVERY:
        made = _seconds_of(lambda: contender.steps(num_steps), contender)
        evaluated = _seconds_of(contender.evaluate, contender)
        return contender.num_runs * EVERY / (EVERY * made / num_steps + evaluated)
    rounds, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        contender.steps(EVERY)
        contender.evaluate()
        rounds += 1
        if rounds % 8 == 0:
            contender.wait()
    contender.wait()
    return contender.num_runs * EVERY * rounds / (time.perf_counter() - began)


def _seconds_of(call: Callable[[], None], contender: Contender) -> float:
    began = time.perf_counter()
    call()
    contender.wait()
    return time.perf_counter() - began
