"""Data checked once, on the host, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dlexp import losses
from dlexp.data import Dataset, Split
from dlexp.types import Model, PyTree, Range


def num_examples(split: Split) -> int:
    """Returns how many examples a split has."""
    return len(jax.tree.leaves(split.inputs)[0])


def check_dataset(caller: str, data: Dataset) -> None:
    """Raises, in the caller's name, unless every split can be learned from.

    Raises:
      ValueError: where a split is empty, has other numbers of inputs and labels, or a number that a compiled program
        cannot hold: NaN, infinite, or too large for float32 or int32 unless JAX computes in double precision.
      TypeError: where inputs or labels are no arrays of numbers.
    """
    if data.train is None:
        raise ValueError(f"{caller}: the data set has no training split")
    for name, split in data._asdict().items():
        if split is not None:
            _check_lengths(caller, name, split)
            check_numbers(caller, {f"{name} {part}": tree for part, tree in split._asdict().items()})


def check_numbers(caller: str, trees: Mapping[str, PyTree]) -> None:
    """Raises, in the caller's name, unless all leaves of the named trees are numbers that a program can hold.

    Raises:
      ValueError: at the first that is not finite in the precision of the program; names the leaf, row and value.
      TypeError: where a leaf is no array of numbers.
    """
    for tree_name, tree in trees.items():
        for name, array in _leaves(caller, tree_name, tree):
            held = jax.dtypes.canonicalize_dtype(array.dtype)
            if jax.numpy.issubdtype(held, np.inexact):
                largest = float(jax.numpy.finfo(held).max)
                is_wrong = ~(np.abs(array) <= largest)
            elif held.kind in "iu":
                limits = np.iinfo(held)
                is_wrong = (array < limits.min) | (array > limits.max) if held != array.dtype else np.zeros(1, bool)
            else:
                continue
            if is_wrong.any():
                row, value = _first(array, is_wrong)
                raise ValueError(f"{caller}: {name} must be finite in {held.name}, but {row} holds {value}; mend it")


def check_names(caller: str, *swept: Mapping[str, Range]) -> None:
    """Raises ValueError, in the caller's name, where two of the parts of a learner read a value of the same name."""
    names = [name for each in swept for name in each]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{caller}: two of its parts both read {twice}; rename one of them (`optim.renamed`)")


def check_outputs(
    caller: str, model: Model, measures: Mapping[str, Callable[[Any, Any], jax.Array]], data: Dataset
) -> None:
    """Raises ValueError, in the caller's name, unless the labels of each split fit the model's outputs.

    Nothing is computed: the shapes of the outputs are.

    Args:
      caller: the function that was called.
      model: the network.
      measures: name -> `(outputs, labels) -> [batch, ...]`; `loss` is one of them.
      data: the splits, as `check_dataset` lets them pass.
    """
    for name, split in data._asdict().items():
        if split is None:
            continue
        shapes = _shapes(split)
        outputs = _output_shapes(model, _shapes(data.train).inputs, shapes.inputs)
        takes_classes = measures["loss"] is losses.softmax_cross_entropy
        if takes_classes or losses.are_classes(outputs, shapes.labels):
            _check_classes(caller, name, np.asarray(split.labels), outputs.shape[-1])
        for measure_name, measure in measures.items():
            _check_measure(caller, f"{name}: {measure_name}", measure, outputs, shapes.labels)


def _check_lengths(caller: str, name: str, split: Split) -> None:
    sizes = {}
    for part, tree in split._asdict().items():
        leaves = list(_leaves(caller, f"{name} {part}", tree))
        if not leaves:
            raise ValueError(f"{caller}: {name} {part} hold no array")
        for leaf_name, array in leaves:
            if not array.ndim:
                raise ValueError(f"{caller}: {leaf_name} must have an axis of examples, got one number")
            sizes[leaf_name] = len(array)
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{size} {leaf_name}" for leaf_name, size in sizes.items())
        raise ValueError(f"{caller}: a split needs as many labels as inputs, got {lengths}")
    if not next(iter(sizes.values())):
        raise ValueError(f"{caller}: {name} is empty; give it an example, or leave the split out (None)")


def _leaves(caller: str, name: str, tree: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf_name = name + jax.tree_util.keystr(path)
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            raise TypeError(f"{caller}: {leaf_name} must be arrays, got {type(leaf).__name__}; wrap it in np.asarray")
        if not jax.numpy.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool:
            raise TypeError(
                f"{caller}: {leaf_name} must be numbers, got an array of {leaf.dtype}; encode it as numbers"
            )
        yield leaf_name, np.asarray(leaf)


def _first(array: np.ndarray, is_wrong: np.ndarray) -> tuple[str, Any]:
    """Where the first wrong value is, in words, and the value."""
    place = tuple(int(index) for index in np.argwhere(is_wrong)[0])
    row = f"row {place[0]}" if len(place) == 1 else f"row {place[0]} at {list(place[1:])}"
    return row, array[place]


def _check_classes(caller: str, name: str, labels: np.ndarray, num_classes: int) -> None:
    expected = f"classes 0 to {num_classes - 1}, as the model has {num_classes} outputs"
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{caller}: {name} labels must be integers ({expected}), got {labels.dtype}; cast them to int32"
        )
    is_wrong = (labels < 0) | (labels >= num_classes)
    if is_wrong.any():
        row, value = _first(labels, is_wrong)
        raise ValueError(
            f"{caller}: {name} labels must be {expected}, but they are {labels.min()} to {labels.max()} and {row} "
            f"holds {value}; count classes from 0, set num_outputs, or make targets of a regression float"
        )


def _shapes(split: Split) -> Split:
    """The split's shapes as the program sees them, of at most two examples."""

    def shape(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct((min(len(array), 2), *array.shape[1:]), dtype)

    return jax.tree.map(shape, split)


def _output_shapes(model: Model, train_inputs: PyTree, inputs: PyTree) -> Any:
    def outputs(key: jax.Array, hyper: Any, train_inputs: PyTree, inputs: PyTree) -> Any:
        variables = model.init(key, hyper, jax.tree.map(lambda array: array[:1], train_inputs))
        return model.apply(variables, hyper, inputs, key=key, train=False)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    hyper = {name: _shape_of(legal) for name, legal in model.hyper.items()}
    return jax.eval_shape(outputs, key, hyper, train_inputs, inputs)


def _shape_of(legal: Range) -> jax.ShapeDtypeStruct:
    dtype = np.int32 if legal.integer else jax.dtypes.canonicalize_dtype(float)
    return jax.ShapeDtypeStruct((), dtype)


def _check_measure(caller: str, name: str, measure: Callable[[Any, Any], jax.Array], outputs: Any, labels: Any) -> None:
    num = jax.tree.leaves(outputs)[0].shape[0]
    described = f"outputs {_described(outputs)} and labels {_described(labels)}"
    try:
        values = jax.eval_shape(measure, outputs, labels)
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{caller}: {name} does not fit {described} of {num} examples: {reason}") from error
    if values.shape[:1] != (num,):
        raise ValueError(
            f"{caller}: {name} must give at least one value per example, [batch, ...], but from {described} of {num} "
            f"examples comes shape {values.shape}; leave the mean over examples to the learner"
        )


def _described(tree: PyTree) -> str:
    return ", ".join(f"{leaf.dtype.name}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree))
