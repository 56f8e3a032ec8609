"""The standard learner: a model, a loss and an optimizer on a data set with three splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlexp import losses, ops
from dlexp.data import Dataset, Split
from dlexp.optim import Optimizer
from dlexp.types import Hyper, Key, Learner, Metrics, Model, PyTree, Range

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class State(NamedTuple):
    """One run between two steps: weights, what else the model carries (batch statistics), optimizer state."""

    params: PyTree
    rest: PyTree
    opt_state: PyTree


class Drawn(NamedTuple):
    """What chance decides in one step: the rows of the batch (None for all, in order), and a key for the model."""

    rows: jax.Array | None
    model_key: Key


def supervised(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    data: Dataset,
    *,
    batch_size: int | None,
    num_train_evaluated: int = 1000,
    sweep_num_train: bool = False,
    metrics: Callable[[jax.Array, jax.Array], Metrics] | None = None,
) -> Learner:
    """Returns the learner that minimises the mean loss of random batches.

    A batch is drawn with replacement, by the seed and the step alone, so runs of one seed see the same batches at
    every hyperparameter value. Metrics: `batch/loss` from the steps; `SPLIT/loss` of each split, and
    `SPLIT/accuracy` where the labels are integers.

    Args:
      model: the network.
      loss: `(outputs, labels) -> [batch]`, one value per example.
      optimizer: what the gradients go through.
      data: the splits; `train` is required.
      batch_size: examples a step; None is the whole training set, in order.
      num_train_evaluated: how many of the first training rows `train/...` is measured on.
      sweep_num_train: whether the size of the training set is swept, as `num_train`: its first rows are drawn from
        and evaluated on, the others are not there. Default all of them.
      metrics: `(outputs, labels) -> {name: [batch]}`, more of them, averaged over each split.

    Raises:
      ValueError: where a swept name means two things, or the batch is larger than the training set.
    """
    num_train = len(data.train.inputs)
    if batch_size is not None and not 1 <= batch_size <= num_train:
        raise ValueError(
            f"supervised: batch_size must be in [1, {num_train}] (the training set) or None for all of it, "
            f"got {batch_size}"
        )
    shared = model.hyper.keys() & optimizer.hyper.keys()
    if sweep_num_train and batch_size is None:
        raise ValueError("supervised: sweep_num_train needs a batch_size; the whole set has a fixed shape")
    if shared:
        raise ValueError(f"supervised: model and optimizer both read {sorted(shared)}; rename one of them")

    def init(key: Key, hyper: Hyper, data: Dataset) -> State:
        variables = model.init(key, hyper, data.train.inputs[:1])
        params, rest = _split_params(variables)
        return State(params, rest, optimizer.make_tx(hyper).init(params))

    def update(drawn: Drawn, hyper: Hyper, data: Dataset, state: State) -> tuple[State, Metrics]:
        inputs, labels = data.train if drawn.rows is None else (array[drawn.rows] for array in data.train)

        def batch_loss(params: PyTree, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
            variables = {"params": params, **state.rest}
            outputs, variables = model.apply(variables, hyper, inputs, key=drawn.model_key, train=True)
            return loss(outputs, labels).mean(), _split_params(variables)[1]

        gradient = ops.value_and_grad(batch_loss, is_separable=model.is_separable)
        (value, rest), grads = gradient(state.params, inputs, labels)
        updates, opt_state = optimizer.make_tx(hyper).update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), rest, opt_state), {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: Dataset, state: State) -> Metrics:
        measured: dict[str, jax.Array] = {}
        for name, split in data._asdict().items():
            if split is None:
                continue
            if name == "train":
                split = Split(*(array[:num_train_evaluated] for array in split))
            outputs = _outputs(model, state, key, hyper, split.inputs)
            values = _example_metrics(loss, metrics, outputs, split.labels)
            there = _there(len(split.inputs), hyper.get("num_train") if name == "train" else None)
            measured |= {f"{name}/{metric}": jnp.mean(value, where=there) for metric, value in values.items()}
        return measured

    swept = {**model.hyper, **optimizer.hyper}
    if sweep_num_train:
        swept["num_train"] = Range(1, num_train, default=num_train, integer=True)
    return Learner(data, swept, init, update, evaluate, _draw_of(batch_size))


def _draw_of(batch_size: int | None) -> Callable[[Key, Hyper, Dataset], Drawn]:
    def draw(key: Key, hyper: Hyper, data: Dataset) -> Drawn:
        batch_key, model_key = jax.random.split(key)
        if batch_size is None:
            return Drawn(None, model_key)
        num_train = hyper.get("num_train", len(data.train.inputs))
        return Drawn(jax.random.randint(batch_key, (batch_size,), 0, num_train), model_key)

    return draw


def _outputs(model: Model, state: State, key: Key, hyper: Hyper, inputs: jax.Array) -> jax.Array:
    variables = {"params": state.params, **state.rest}

    def outputs_of(inputs: jax.Array) -> jax.Array:
        return model.apply(variables, hyper, inputs, key=key, train=False)[0]

    return ops.in_slices(outputs_of, inputs) if model.is_separable else outputs_of(inputs)


def _split_params(variables: PyTree) -> tuple[PyTree, dict[str, Any]]:
    rest = dict(variables)
    return rest.pop("params"), rest


def _there(num_rows: int, num_train: jax.Array | None) -> jax.Array | None:
    """Which rows the training set has, None for all."""
    return None if num_train is None else jnp.arange(num_rows) < num_train


def _example_metrics(loss: Loss, metrics: Any, outputs: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    values = {"loss": loss(outputs, labels)}
    if jnp.issubdtype(labels.dtype, jnp.integer):
        values["accuracy"] = losses.accuracy(outputs, labels)
    return values | dict(metrics(outputs, labels) if metrics else {})
