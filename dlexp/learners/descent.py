"""The learner that minimises any function: of parameters, swept values, chance and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlexp.learners import batches, checks
from dlexp.optim import Optimizer
from dlexp.types import Hyper, Key, Learner, Metrics, PyTree, Range

Loss = Callable[[Key, Hyper, PyTree, PyTree], jax.Array]  # (key, hyper, data, params) -> one number


class DescentState(NamedTuple):
    """One run between two steps.

    Attributes:
      params: what is fitted.
      opt_state: the optimizer's.
      problem: what the seed drew before the first step; () where nothing is drawn.
      step: how many steps were made, int32.
    """

    params: PyTree
    opt_state: PyTree
    problem: PyTree
    step: jax.Array


class Step(NamedTuple):
    """One step: the loss before it, the gradient there, and what was added to the parameters."""

    loss: jax.Array
    grads: PyTree
    updates: PyTree


def descent(
    init: Callable[[Key, Hyper, PyTree], PyTree],
    loss: Loss,
    optimizer: Optimizer,
    *,
    data: PyTree = (),
    batch_size: int | None = None,
    problem: Callable[[Key, Hyper, PyTree], PyTree] | None = None,
    hyper: Mapping[str, Range] | None = None,
    evaluate: Callable[[Key, Hyper, PyTree, DescentState], Metrics] | None = None,
    measure_step: Callable[[Hyper, Step], Metrics] | None = None,
) -> Learner:
    """Returns the learner whose parameters minimise a function.

    Metrics: `batch/loss` from the steps and `train/loss`, unless `measure_step` and `evaluate` say otherwise.

    Args:
      init: `(key, hyper, data) -> params`.
      loss: `(key, hyper, data, params) -> number`; the key is the step's own.
      optimizer: what the gradients go through.
      data: pytree of arrays, the same for all runs; () where there are none.
      batch_size: rows of every array in `data` that `loss` sees in a step, drawn with replacement by the seed and the
        step alone; None is all data. `init` and `evaluate` see all data.
      problem: `(key, hyper, data) -> problem`, drawn once a run, by its seed; `init`, `loss` and `evaluate` then get it
        in place of `data`.
      hyper: what may be swept beside the optimizer's numbers.
      evaluate: `(key, hyper, data, state) -> metrics`, with a `DescentState`.
      measure_step: `(hyper, step) -> metrics`, averaged over the steps between two evaluations.

    Raises:
      ValueError: where a swept name means two things, the batch does not fit the data, data are not finite, or the loss
        is not one number.
      TypeError: where the data are no arrays.
    """
    hyper = hyper or {}
    checks.check_names("descent", hyper, optimizer.hyper)
    checks.check_numbers("descent", {"data": data})
    batches.check_batch_size("descent", batch_size, data)
    if problem is not None and batch_size is not None:
        raise ValueError("descent: batches are drawn from data, not from a problem; leave one of the two out")

    def value_of(params: PyTree, key: Key, hyper: Hyper, batch: PyTree) -> jax.Array:
        return one_number("descent", loss(key, hyper, batch, params))

    def task(data: PyTree, state: DescentState) -> PyTree:
        return data if problem is None else state.problem

    def begin(key: Key, hyper: Hyper, data: PyTree) -> DescentState:
        drawn = () if problem is None else problem(key, hyper, data)
        params = init(key, hyper, data) if problem is None else init(jax.random.fold_in(key, 1), hyper, drawn)
        return DescentState(params, optimizer.make_tx(hyper).init(params), drawn, jnp.zeros((), jnp.int32))

    def update(drawn: batches.Batch, hyper: Hyper, data: PyTree, state: DescentState) -> tuple[DescentState, Metrics]:
        value, grads = jax.value_and_grad(value_of)(state.params, drawn.key, hyper, drawn.of(task(data, state)))
        updates, opt_state = optimizer.make_tx(hyper).update(grads, state.opt_state, state.params)
        step = Step(value, grads, updates)
        metrics = {"batch/loss": value} if measure_step is None else measure_step(hyper, step)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics

    def measure(key: Key, hyper: Hyper, data: PyTree, state: DescentState) -> Metrics:
        if evaluate is None:
            return {"train/loss": loss(key, hyper, task(data, state), state.params)}
        return evaluate(key, hyper, task(data, state), state)

    return Learner(data, {**hyper, **optimizer.hyper}, begin, update, measure, batches.draw_batches(batch_size))


def one_number(caller: str, value: jax.Array) -> jax.Array:
    """Returns the value; raises ValueError, in the caller's name, where it is not one number."""
    if jnp.shape(value):
        raise ValueError(f"{caller}: the loss must be one number, got shape {jnp.shape(value)}; take its mean")
    return value
