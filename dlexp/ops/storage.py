"""How a run's matrices are stored in memory while its steps are made.

A loop over steps calls `enter` on its carry before it, `leave` after it, and makes its steps with `body(step)`. What a
step sees and returns is unchanged; only the order of the numbers in memory differs. Two kinds of matrices gain on a
CPU:

1. Kernels with few columns are stored column by column, so that vector instructions run along the long axis: Adam's
   update of a layer with ten outputs then takes a seventh of the time.
2. Where the runs of a call share a seed, and so their batches, the kernels of first layers are stored transposed. Those
   of all runs then form one tall matrix, which is multiplied with the batch at once (`dlexp.ops.dense`).

A network marks the parameters of its first layer as a `FirstLayer`; the optimizer's numbers for them carry the mark
with them, because Optax keeps the structure of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from dlexp.ops import choices
from dlexp.ops.compiler import platform
from dlexp.types import PyTree

VECTOR = 16  # float32 numbers in the longest of a CPU's vectors


class FirstLayer(dict[str, PyTree]):
    """The parameters of the layer that multiplies the data: a dictionary, of a type of its own to be recognised by."""


def _flatten(layer: FirstLayer) -> tuple[tuple[tuple[Any, PyTree], ...], tuple[str, ...]]:
    names = tuple(sorted(layer))
    return tuple((jax.tree_util.DictKey(name), layer[name]) for name in names), names


def _unflatten(names: tuple[str, ...], values: Iterable[PyTree]) -> FirstLayer:
    return FirstLayer(zip(names, values, strict=True))


jax.tree_util.register_pytree_with_keys(FirstLayer, _flatten, _unflatten)


def enter(carry: PyTree) -> PyTree:
    """Returns the carry of a loop over steps as the loop stores it."""
    return first_kernels_transposed(carry)


def leave(carry: PyTree) -> PyTree:
    """Returns the carry as it was before `enter`."""
    return first_kernels_transposed(carry)


def body(step: Callable[[jax.Array, PyTree], PyTree]) -> Callable[[jax.Array, PyTree], PyTree]:
    """Returns the body of a loop that makes steps `(index, carry) -> carry`, between `enter` and `leave`."""
    return lambda index, carry: enter(_with_narrow_turned(step(index, leave(carry))))


def first_kernels_transposed(tree: PyTree) -> PyTree:
    """Returns the tree with the matrices of each `FirstLayer` transposed, where runs share a batch on a CPU.

    Applied twice, it gives the tree back. XLA cancels a pair of transposes, so an elementwise update between them works
    on the stored array without a copy (`dlexp.ops.updates`); a constraint on the layout alone costs one copy a step.
    Large perceptrons train 1.09 times as fast, as measured.
    """
    if not is_batch_shared():
        return tree

    def transposed(node: PyTree) -> PyTree:
        if not isinstance(node, FirstLayer):
            return node
        return jax.tree.map(lambda leaf: leaf.T if _is_matrix(leaf) else leaf, node)

    return jax.tree.map(transposed, tree, is_leaf=_is_first_layer)


def _with_narrow_turned(tree: PyTree) -> PyTree:
    """The tree with matrices of few columns stored column by column, but those that are stored transposed already."""

    def turned(leaf: jax.Array) -> jax.Array:
        if not has_few_columns(leaf):
            return leaf
        *others, rows, columns = range(leaf.ndim)
        return with_layout_constraint(leaf, Layout((*others, columns, rows)))

    def but_first_kernels(node: PyTree) -> PyTree:
        if not isinstance(node, FirstLayer):
            return turned(node)
        return jax.tree.map(lambda leaf: leaf if is_batch_shared() and _is_matrix(leaf) else turned(leaf), node)

    return jax.tree.map(but_first_kernels, tree, is_leaf=_is_first_layer)


def is_batch_shared() -> bool:
    """Returns whether runs share a seed, and so their batches, on a CPU: it is faster there with the batch last."""
    return platform() == "cpu" and choices.is_seed_shared()


def has_few_columns(leaf: jax.Array) -> bool:
    """Returns whether a matrix's rows are shorter than a vector of a CPU and its columns are whole vectors; on a CPU.

    Of an array of more axes, the last two count.
    """
    if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) or platform() != "cpu":
        return False
    num_rows, num_columns = leaf.shape[-2:]
    return num_columns < VECTOR and num_rows % VECTOR == 0


def _is_first_layer(node: PyTree) -> bool:
    return isinstance(node, FirstLayer)


def _is_matrix(leaf: jax.Array) -> bool:
    return leaf.ndim == 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
