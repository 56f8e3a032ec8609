"""The product of a batch with a kernel, in the order of axes and with the derivatives that are fast on a CPU.

`dense(inputs, kernel)` is `inputs @ kernel`. Its features may lie on the first axis instead of the last; then it is
`kernel.T @ inputs`, with the batch last. That is faster where the runs of a call share their batches (`feature_axis`).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from dlexp.ops.compiler import platform
from dlexp.ops.storage import has_few_columns, is_batch_shared


def dense(inputs: jax.Array, kernel: jax.Array, *, axis: int = -1, first: bool = False) -> jax.Array:
    """Returns the product of inputs `[..., in]` with a kernel `[in, out]`, `[..., out]`.

    Args:
      inputs: with features on the last axis; or `[in, batch]`, if `axis` is 0, to `[out, batch]`.
      kernel: `[in, out]`.
      axis: of the features, -1 or 0.
      first: whether the inputs are the data: a kernel that is stored transposed while steps are made (see
        `dlexp.ops.storage.FirstLayer`).
    """
    if axis == 0:
        return _first_product_batch_last(inputs, kernel) if first else _product_batch_last(inputs, kernel)
    if inputs.ndim == 2 and platform() == "cpu":
        return _product(inputs, kernel)
    return inputs @ kernel


def feature_axis() -> int:
    """Returns the axis on which a training network's features are best: 0 where runs share their batches, else -1."""
    return 0 if is_batch_shared() else -1


def to_feature_axis(inputs: jax.Array, axis: int) -> jax.Array:
    """Returns inputs `[batch, feature]` with the features on this axis."""
    return inputs.T if axis == 0 else inputs


def from_feature_axis(outputs: jax.Array, axis: int) -> jax.Array:
    """Returns the outputs `[batch, feature]` of a network that has its features on this axis."""
    return jax.lax.optimization_barrier(outputs).T if axis == 0 else outputs


@jax.custom_jvp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`inputs @ kernel`. The kernel's gradient would contract the first axis of both factors.

    That is the slowest of a CPU's four matrix products. With few outputs it is cheap to take the transpose of the
    result, otherwise that of the inputs; the barriers keep XLA from undoing it. Measured: small perceptrons train 1.07
    times as fast. A kernel with few columns is multiplied as it is stored (`dlexp.ops.storage`): 1.09 times.
    """
    return _turned_product(inputs, kernel) if has_few_columns(kernel) else inputs @ kernel


def _turned_product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`inputs @ kernel` as the transpose of a product of their transposes."""
    turned = jax.lax.optimization_barrier(kernel.T)
    outputs = jax.lax.dot_general(turned, inputs, (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(outputs).T


def _product_derivative(primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> Any:
    (inputs, kernel), (by_inputs, by_kernel) = primals, tangents
    terms = []
    if not isinstance(by_inputs, SymbolicZero):
        terms.append(by_inputs @ kernel)
    if not isinstance(by_kernel, SymbolicZero):
        terms.append(_product_by_kernel(inputs, by_kernel))
    return _product(inputs, kernel), sum(terms[1:], terms[0])


def _product_by_kernel(inputs: jax.Array, by_kernel: jax.Array) -> jax.Array:
    """`inputs @ by_kernel`, written in the form whose transpose, the kernel's gradient, is fast for this shape."""
    num_inputs, num_outputs = by_kernel.shape
    if has_few_columns(by_kernel):
        return _turned_product(inputs, by_kernel)
    if num_outputs < num_inputs and num_outputs <= 64:
        return inputs @ jax.lax.optimization_barrier(by_kernel.T).T
    if num_inputs <= 128:
        turned = jax.lax.optimization_barrier(inputs.T)
        return jax.lax.dot_general(turned, by_kernel, (((0,), (0,)), ((), ())))
    return inputs @ by_kernel


_product.defjvp(_product_derivative, symbolic_zeros=True)


def _first_product_batch_last(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`kernel.T @ inputs`, `[in, batch]` to `[out, batch]`, of the data; the kernel is stored transposed in training.

    Where runs see one batch, the first layer's kernels of all of them are one tall matrix, and so are their
    derivatives: the batch is laid out for the product once, not once a run. Measured: small perceptrons train 1.14
    times as fast, larger ones 1.15 times.
    """
    return kernel.T @ inputs


@jax.custom_jvp
def _product_batch_last(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`kernel.T @ inputs`, `[in, batch]` to `[out, batch]`; kernels with few columns are multiplied as stored."""
    return jax.lax.dot_general(jax.lax.optimization_barrier(kernel.T), inputs, (((1,), (0,)), ((), ())))


def _product_batch_last_derivative(primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> Any:
    (inputs, kernel), (by_inputs, by_kernel) = primals, tangents
    terms = []
    if not isinstance(by_inputs, SymbolicZero):
        terms.append(_contract_first(kernel, by_inputs))
    if not isinstance(by_kernel, SymbolicZero):
        is_turned = has_few_columns(kernel)
        terms.append(_product_batch_last(inputs, by_kernel) if is_turned else _contract_first(by_kernel, inputs))
    return _product_batch_last(inputs, kernel), sum(terms[1:], terms[0])


def _contract_first(one: jax.Array, other: jax.Array) -> jax.Array:
    """`one.T @ other`, whose derivatives are products of matrices as they are stored."""
    return jax.lax.dot_general(one, other, (((0,), (0,)), ((), ())))


_product_batch_last.defjvp(_product_batch_last_derivative, symbolic_zeros=True)
