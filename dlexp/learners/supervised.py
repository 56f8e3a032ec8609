"""The standard learner: a model, a loss and an optimizer on a data set with three splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlexp import losses, ops, parts
from dlexp.data import Dataset
from dlexp.learners import checks
from dlexp.learners.batches import Batch, check_batch_size
from dlexp.optim import Optimizer
from dlexp.types import Hyper, Key, Learner, Metrics, Model, PyTree, Range

Loss = Callable[[Any, Any], jax.Array]  # (outputs, labels) -> one value per example, or more of them


class State(NamedTuple):
    """One run between two steps: weights, what else the model carries (batch statistics), optimizer state."""

    params: PyTree
    rest: PyTree
    opt_state: PyTree


def supervised(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    data: Dataset,
    *,
    batch_size: int | None,
    num_train_evaluated: int = 1000,
    sweep_num_train: bool = False,
    metrics: Mapping[str, Loss] | None = None,
) -> Learner:
    """Returns the learner that minimises the mean loss of random batches.

    Inputs and labels are arrays, or pytrees of arrays (a graph's nodes and edges, a sequence and its length), whose
    first axis counts the examples. A batch is drawn with replacement, by the seed and the step alone, so runs of one
    seed see the same batches at every hyperparameter value. Metrics: `batch/loss` from the steps; `SPLIT/loss` and
    `SPLIT/NAME` of each split, each the mean over the split.

    Args:
      model: the network.
      loss: `(outputs, labels) -> [batch]` or `[batch, ...]`, at least one value per example.
      optimizer: what the gradients go through.
      data: the splits; `train` is required.
      batch_size: examples a step; None is the whole training set, in order.
      num_train_evaluated: how many of the first training rows `train/...` is measured on.
      sweep_num_train: whether the size of the training set is swept, as `num_train`: its first rows are drawn from
        and evaluated on, the others are not there. Default all of them.
      metrics: name -> `(outputs, labels) -> [batch]` or `[batch, ...]`, measured beside the loss. Default: accuracy
        where the labels are classes (`losses.are_classes`), else nothing.

    Raises:
      ValueError: where a swept name means two things; the batch is larger than the training set; a split is empty or
        holds other numbers of inputs and labels, labels that are no class of the outputs, or numbers that are not
        finite in the precision of the program; or the loss does not fit the outputs.
      TypeError: where model, optimizer or data are something else, or the data are no arrays.
    """
    parts.check("supervised", model=model, optimizer=optimizer, data=data)
    checks.check_dataset("supervised", data)
    num_train = checks.num_examples(data.train)
    check_batch_size("supervised", batch_size, data.train)
    _check_numbers(batch_size, num_train_evaluated, sweep_num_train)
    checks.check_names("supervised", model.hyper, optimizer.hyper)
    measures = {"loss": loss, **(metrics or {})}
    checks.check_outputs("supervised", model, measures, data)

    def init(key: Key, hyper: Hyper, data: Dataset) -> State:
        variables = model.init(key, hyper, _first_rows(data.train.inputs, 1))
        params, rest = _split_params(variables)
        return State(params, rest, optimizer.make_tx(hyper).init(params))

    def update(drawn: Batch, hyper: Hyper, data: Dataset, state: State) -> tuple[State, Metrics]:
        inputs, labels = drawn.of(data.train)

        def batch_loss(params: PyTree, inputs: PyTree, labels: PyTree) -> tuple[jax.Array, PyTree]:
            variables = {"params": params, **state.rest}
            outputs, variables = model.apply(variables, hyper, inputs, key=drawn.key, train=True)
            return loss(outputs, labels).mean(), _split_params(variables)[1]

        gradient = ops.value_and_grad(batch_loss, is_separable=model.is_separable)
        (value, rest), grads = gradient(state.params, inputs, labels)
        updates, opt_state = optimizer.make_tx(hyper).update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), rest, opt_state), {"batch/loss": value}

    swept = {**model.hyper, **optimizer.hyper}
    if sweep_num_train:
        swept["num_train"] = Range(1, num_train, default=num_train, integer=True)
    evaluate = _evaluation_of(model, measures, metrics is None, num_train_evaluated)
    return Learner(data, swept, init, update, evaluate, _draw_of(batch_size))


def _check_numbers(batch_size: int | None, num_train_evaluated: int, sweep_num_train: bool) -> None:
    if num_train_evaluated < 1:
        raise ValueError(f"supervised: num_train_evaluated must be at least 1, got {num_train_evaluated}")
    if sweep_num_train and batch_size is None:
        raise ValueError("supervised: sweep_num_train needs a batch_size; the whole set has a fixed shape")


def _evaluation_of(
    model: Model, measures: Mapping[str, Loss], with_accuracy: bool, num_train_evaluated: int
) -> Callable[[Key, Hyper, Dataset, State], Metrics]:
    def evaluate(key: Key, hyper: Hyper, data: Dataset, state: State) -> Metrics:
        variables = {"params": state.params, **state.rest}

        def outputs_of(inputs: PyTree) -> PyTree:
            return model.apply(variables, hyper, inputs, key=key, train=False)[0]

        measured: dict[str, jax.Array] = {}
        for name, split in data._asdict().items():
            if split is None:
                continue
            num_train = hyper.get("num_train") if name == "train" else None
            inputs, labels = _first_rows(split, num_train_evaluated) if name == "train" else split
            outputs = ops.in_slices(outputs_of, inputs) if model.is_separable else outputs_of(inputs)
            chosen = _with_accuracy(measures, with_accuracy, outputs, labels)
            values = {metric: measure(outputs, labels) for metric, measure in chosen.items()}
            measured |= {f"{name}/{metric}": _mean_over_first(value, num_train) for metric, value in values.items()}
        return measured

    return evaluate


def _draw_of(batch_size: int | None) -> Callable[[Key, Hyper, Dataset], Batch]:
    def draw(key: Key, hyper: Hyper, data: Dataset) -> Batch:
        batch_key, model_key = jax.random.split(key)
        if batch_size is None:
            return Batch(None, model_key)
        num_train = hyper.get("num_train", checks.num_examples(data.train))
        return Batch(jax.random.randint(batch_key, (batch_size,), 0, num_train), model_key)

    return draw


def _split_params(variables: PyTree) -> tuple[PyTree, dict[str, Any]]:
    rest = dict(variables)
    return rest.pop("params"), rest


def _first_rows(tree: PyTree, num_rows: int) -> PyTree:
    return jax.tree.map(lambda array: array[:num_rows], tree)


def _mean_over_first(values: jax.Array, num_rows: jax.Array | None) -> jax.Array:
    """The mean of values `[example, ...]` over the first rows; None for all."""
    if num_rows is None:
        return jnp.mean(values)
    is_counted = jnp.arange(len(values)) < num_rows
    return jnp.mean(values, where=is_counted.reshape(-1, *[1] * (values.ndim - 1)))


def _with_accuracy(measures: Mapping[str, Loss], is_wanted: bool, outputs: Any, labels: Any) -> Mapping[str, Loss]:
    if is_wanted and losses.are_classes(outputs, labels):
        return {**measures, "accuracy": losses.accuracy}
    return measures
