"""A batch taken part by part, so that a network's layers stay in a CPU's caches.

Of networks that treat each example by itself only: the parts then give what the whole gives, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlexp.ops import choices
from dlexp.ops.compiler import platform
from dlexp.types import PyTree

_MANY = 2**15  # numbers in a batch, from which on its layers leave a CPU's caches
_SLICES = range(64, 31, -1)  # examples evaluated at once


def value_and_grad(loss: Callable[..., PyTree], *, is_separable: bool) -> Callable[..., PyTree]:
    """Returns `jax.value_and_grad` of a mean over a batch, `(params, inputs, *others) -> ((value, aux), grads)`.

    On a CPU, a large batch may be taken in quarters, by the choice `batch`.

    Args:
      loss: `(params, inputs, *others) -> (value, aux)`, means over the examples of a batch; every argument but the
        parameters is a pytree with the examples on the first axis.
      is_separable: whether each example goes its own way, so that the batch may be taken in parts.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def whole_or_in_quarters(params: PyTree, inputs: PyTree, *others: PyTree) -> PyTree:
        if is_separable and _is_large(inputs) and choices.choose("batch", ("whole", "quarters")) == "quarters":
            return _in_quarters(gradient)(params, inputs, *others)
        return gradient(params, inputs, *others)

    return whole_or_in_quarters


def _is_large(inputs: PyTree) -> bool:
    leaves = jax.tree.leaves(inputs)
    return platform() == "cpu" and sum(leaf.size for leaf in leaves) >= _MANY and len(leaves[0]) % 4 == 0


def _in_quarters(gradient: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The gradient of the mean over a batch as the mean over its quarters, one after another.

    Measured on a CPU: networks on images of 28 x 28 train 1.06 times as fast; of 8 x 8, timed in turn, 0.99 times.
    """

    def mean(params: PyTree, *batch: PyTree) -> PyTree:
        quarters = jax.tree.map(lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:]), batch)

        def add(total: PyTree, quarter: tuple[PyTree, ...]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *quarter)), None

        one = jax.eval_shape(gradient, params, *jax.tree.map(lambda leaf: leaf[0], quarters))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
        total, _ = jax.lax.scan(add, zeros, quarters)
        return jax.tree.map(lambda leaf: leaf / 4, total)

    return mean


def in_slices(function: Callable[[PyTree], PyTree], inputs: PyTree) -> PyTree:
    """Returns `function(inputs)`, on a CPU for some examples at a time.

    Measured: 1,000 images are evaluated in 0.4 of the time.

    Args:
      function: of examples on the first axis, each by itself, to outputs on the first axis.
      inputs: array or pytree of arrays, with the examples on the first axis.
    """
    num_examples = len(jax.tree.leaves(inputs)[0])
    size = _slice_size(num_examples)
    if size == num_examples:
        return function(inputs)
    slices = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), inputs)
    outputs = jax.lax.map(function, slices)
    return jax.tree.map(lambda leaf: leaf.reshape(num_examples, *leaf.shape[2:]), outputs)


def _slice_size(num_examples: int) -> int:
    """The largest divisor that is a batch of usual size; all of them off the CPU, or where there is none."""
    if platform() != "cpu":
        return num_examples
    return next((size for size in _SLICES if num_examples % size == 0), num_examples)
