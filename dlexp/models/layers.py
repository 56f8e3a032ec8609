"""Layers that Linen has not in the form a vmapped grid needs: traced dropout rates, convolution as a matmul."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from dlexp import xla
from dlexp.choices import check_choice
from dlexp.models.lowerings import BATCH_LAST, convolve, convolve_batch_last
from dlexp.types import Key

NORMALIZATIONS = ("none", "batch", "layer")
DROPOUTS = ("none", "inverted", "classic")


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of that name in `jax.nn` (relu, tanh, sigmoid, gelu, ...); `identity` is linear.

    Raises:
      ValueError: where there is none.
    """
    if name == "relu" and jax.default_backend() == "cpu":
        return _relu
    function = getattr(jax.nn, name, None)
    if not callable(function) or name.startswith("_"):
        raise ValueError(f"no activation named {name!r}; use the name of a function in jax.nn, such as 'relu'")
    return function


@jax.custom_jvp
def _relu(inputs: jax.Array) -> jax.Array:
    """`jax.nn.relu`, whose derivative reads the outputs, so that the inputs need not be written to memory.

    The barrier keeps XLA from reading the inputs all the same. Measured on a CPU: small perceptrons train 1.04 times as
    fast.
    """
    return jnp.maximum(inputs, 0)


@_relu.defjvp
def _relu_derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    outputs = _relu(*primals)
    return outputs, jnp.where(jax.lax.optimization_barrier(outputs) > 0, tangents[0], 0)


def normalize(inputs: jax.Array, normalization: str, train: bool, axis: int = -1) -> jax.Array:
    """Returns the inputs normalized over the batch, over the features, or as they are; used inside a compact method.

    The features lie on `axis`.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros and Hinton,
    "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.
    """
    check_choice("normalize", "normalization", normalization, NORMALIZATIONS)
    if normalization == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis=axis)(inputs)
    if normalization == "layer":
        return nn.LayerNorm(reduction_axes=axis, feature_axes=axis)(inputs)
    return inputs


def dropout(
    inputs: jax.Array,
    rate: jax.Array,
    key: Key,
    *,
    train: bool,
    convention: str = "inverted",
    batch_last: bool = False,
) -> jax.Array:
    """Returns the inputs with each unit dropped with probability `rate` in training; the same ones, batch last or not.

    `inverted` divides what is kept by `1 - rate` in training and does nothing at inference; `classic` leaves
    training as it is and multiplies by `1 - rate` at inference. The rate may be traced, below 1.
    Source: Srivastava et al., "Dropout", 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    check_choice("dropout", "convention", convention, DROPOUTS)
    if convention == "none":
        return inputs
    if not train:
        return inputs if convention == "inverted" else inputs * (1.0 - rate)
    shape = inputs.shape[::-1] if batch_last else inputs.shape
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    kept = kept.T if batch_last else kept
    scaled = inputs / (1.0 - rate) if convention == "inverted" else inputs
    return jnp.where(kept, scaled, 0.0)


class Dense(nn.Module):
    """A dense layer with a bias, whose derivatives are multiplied in the order that is fast on a CPU.

    `[batch, in]` to `[batch, width]`; with the batch last, `[in, batch]` to `[width, batch]`.
    """

    width: int
    batch_last: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the outputs before the activation."""
        kernel_shape = (inputs.shape[0 if self.batch_last else -1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        if self.batch_last:
            product = _first_product_batch_last if xla.FIRST in self.path else _product_batch_last
            return product(inputs, kernel) + bias[:, None]
        if inputs.ndim == 2 and jax.default_backend() == "cpu":
            return _product(inputs, kernel) + bias
        return inputs @ kernel + bias


@jax.custom_jvp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`inputs @ kernel`. Its transpose by the kernel would be a product of two matrices that both are summed over rows.

    That is the slow one of a CPU's four. With few outputs it is cheap to take the transpose of the result, otherwise
    that of the inputs; the barriers keep XLA from taking them back. Measured: small perceptrons train 1.07 times as
    fast. A narrow kernel is multiplied as it lies in training (`xla.laid`), with outputs as rows: 1.09 times.
    """
    return _turned_product(inputs, kernel) if xla.is_narrow(kernel) else inputs @ kernel


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
        num_inputs, num_outputs = kernel.shape
        if xla.is_narrow(kernel):
            terms.append(_turned_product(inputs, by_kernel))
        elif num_outputs < num_inputs and num_outputs <= 64:
            terms.append(inputs @ jax.lax.optimization_barrier(by_kernel.T).T)
        elif num_inputs <= 128:
            turned = jax.lax.optimization_barrier(inputs.T)
            terms.append(jax.lax.dot_general(turned, by_kernel, (((0,), (0,)), ((), ()))))
        else:
            terms.append(inputs @ by_kernel)
    return _product(inputs, kernel), sum(terms[1:], terms[0])


_product.defjvp(_product_derivative, symbolic_zeros=True)


def _first_product_batch_last(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`kernel.T @ inputs`, `[in, batch]` to `[out, batch]`, of the data; in training the kernel is `xla.exchanged`.

    Where runs see one batch, the first layer's kernels of all of them are one tall matrix, and so are their
    derivatives: the batch is laid out for the product once, not once a run. Measured: small perceptrons train 1.14
    times as fast, larger ones 1.15 times.
    """
    return kernel.T @ inputs


@jax.custom_jvp
def _product_batch_last(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`kernel.T @ inputs`, `[in, batch]` to `[out, batch]`; narrow kernels lie as they are multiplied (`xla.laid`)."""
    return jax.lax.dot_general(jax.lax.optimization_barrier(kernel.T), inputs, (((1,), (0,)), ((), ())))


def _product_batch_last_derivative(primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> Any:
    (inputs, kernel), (by_inputs, by_kernel) = primals, tangents
    terms = []
    if not isinstance(by_inputs, SymbolicZero):
        terms.append(_contract_first(kernel, by_inputs))
    if not isinstance(by_kernel, SymbolicZero):
        lies_turned = xla.is_narrow(kernel)
        terms.append(_product_batch_last(inputs, by_kernel) if lies_turned else _contract_first(by_kernel, inputs))
    return _product_batch_last(inputs, kernel), sum(terms[1:], terms[0])


def _contract_first(one: jax.Array, other: jax.Array) -> jax.Array:
    """`one.T @ other`, whose derivatives are products of matrices as they lie."""
    return jax.lax.dot_general(one, other, (((0,), (0,)), ((), ())))


_product_batch_last.defjvp(_product_batch_last_derivative, symbolic_zeros=True)


class Conv(nn.Module):
    """Convolution with a bias: `[batch, *space, in]` to `[batch, *space, channels]` (see `convolve`).

    Where the lowering has the batch last (`BATCH_LAST`), so have inputs and outputs: `[in, *space, batch]` to
    `[channels, *space, batch]`.
    """

    channels: int
    window: tuple[int, ...]
    stride: int
    padding: int
    lowering: str

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the convolved inputs."""
        is_last = self.lowering in BATCH_LAST
        kernel_shape = (*self.window, inputs.shape[0 if is_last else -1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        if is_last:
            outputs = convolve_batch_last(inputs, kernel, self.stride, self.padding, self.lowering)
            return outputs + bias.reshape(-1, *[1] * (outputs.ndim - 1))
        return convolve(inputs, kernel, stride=self.stride, padding=self.padding, lowering=self.lowering) + bias


def max_pool(inputs: jax.Array, size: int) -> jax.Array:
    """Returns the maximum over blocks of `size` in every axis but the first and the last; rests are cut."""
    if size == 1:
        return inputs
    extents = [extent // size for extent in inputs.shape[1:-1]]
    cut = inputs[(slice(None), *(slice(extent * size) for extent in extents))]
    blocks = cut.reshape(len(cut), *(n for extent in extents for n in (extent, size)), cut.shape[-1])
    return _block_max(blocks, tuple(range(2, 2 * len(extents) + 1, 2)))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _block_max(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The maximum over axes, whose derivative is shared by the places that have it, as it is in JAX.

    There they are counted by a sum over the axes, which on a CPU is written to memory at full size and read again.
    Measured: networks on images of 28 x 28 train 1.06 times as fast.
    """
    return blocks.max(axis=axes)


@_block_max.defjvp
def _block_max_derivative(
    axes: tuple[int, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (blocks,), (tangent,) = primals, tangents
    largest = _block_max(blocks, axes)
    has_it = blocks == jnp.expand_dims(largest, axes)
    in_front = jnp.moveaxis(has_it, axes, range(len(axes))).reshape(-1, *largest.shape)
    num_places = sum(place.astype(blocks.dtype) for place in in_front)
    return largest, jnp.where(has_it, tangent, 0.0).sum(axis=axes) / num_places


def num_params(variables: dict) -> int:
    """Returns how many numbers the collection `params` holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
