"""Layers that Linen lacks in a form that can be vmapped over hyperparameters, such as dropout at a traced rate.

They are equations; how their products are computed is the affair of `dlexp.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlexp import ops
from dlexp.checks import check_choice
from dlexp.types import Key

NORMALIZATIONS = ("none", "batch", "layer")
DROPOUTS = ("none", "inverted", "classic")


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of that name in `jax.nn` (relu, tanh, sigmoid, gelu, ...); `identity` is linear.

    Raises:
      ValueError: where there is none.
    """
    if name == "relu":
        return ops.relu
    function = getattr(jax.nn, name, None)
    if not callable(function) or name.startswith("_"):
        raise ValueError(f"no activation named {name!r}; use the name of a function in jax.nn, such as 'relu'")
    return function


def normalize(inputs: jax.Array, normalization: str, train: bool, axis: int = -1) -> jax.Array:
    """Returns the inputs normalized over the batch, over the features, or as they are; used inside a compact method.

    The features lie on `axis`. The variance is the mean square of the distances from the mean: inputs far from zero
    (4096 +- 1) leave with deviation 1.
    Source: Ioffe and Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros and Hinton,
    "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.
    """
    check_choice("normalize", "normalization", normalization, NORMALIZATIONS)
    if normalization == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis=axis, use_fast_variance=False)(inputs)
    if normalization == "layer":
        return nn.LayerNorm(reduction_axes=axis, feature_axes=axis, use_fast_variance=False)(inputs)
    return inputs


def dropout(
    inputs: jax.Array,
    rate: jax.Array,
    key: Key,
    *,
    train: bool,
    convention: str = "inverted",
    axis: int = -1,
) -> jax.Array:
    """Returns the inputs with each unit dropped with probability `rate` in training.

    The features lie on `axis`, -1 or 0; a key drops the same units of the same examples in either order.

    `inverted` divides what is kept by `1 - rate` in training and does nothing at inference; `classic` leaves
    training as it is and multiplies by `1 - rate` at inference. The rate may be traced, below 1.
    Source: Srivastava et al., "Dropout", 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    check_choice("dropout", "convention", convention, DROPOUTS)
    if convention == "none":
        return inputs
    if not train:
        return inputs if convention == "inverted" else inputs * (1.0 - rate)
    shape = inputs.shape[::-1] if axis == 0 else inputs.shape
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    kept = kept.T if axis == 0 else kept
    scaled = inputs / (1.0 - rate) if convention == "inverted" else inputs
    return jnp.where(kept, scaled, 0.0)


class Dense(nn.Module):
    """A dense layer: `[..., in]` to `[..., width]`; with the features on axis 0, `[in, batch]` to `[width, batch]`.

    Attributes:
      width: outputs.
      axis: of the features, -1 or 0.
      first: whether its inputs are the data (see `dlexp.ops.dense`).
      use_bias: whether a bias is added.
    """

    width: int
    axis: int = -1
    first: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the outputs before the activation."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs.shape[self.axis], self.width))
        outputs = ops.dense(inputs, kernel, axis=self.axis, first=self.first)
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return outputs + (bias[:, None] if self.axis == 0 else bias)


class Conv(nn.Module):
    """A convolution with a bias: `[batch, *space, in]` to `[batch, *space, channels]` (see `dlexp.ops.convolve`).

    With the channels on axis 0, `[in, *space, batch]` to `[channels, *space, batch]`.
    """

    channels: int
    window: tuple[int, ...]
    stride: int
    padding: int
    lowering: str
    axis: int = -1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the convolved inputs."""
        kernel_shape = (*self.window, inputs.shape[self.axis], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        outputs = ops.convolve(
            inputs, kernel, stride=self.stride, padding=self.padding, lowering=self.lowering, axis=self.axis
        )
        return outputs + (bias.reshape(-1, *[1] * (outputs.ndim - 1)) if self.axis == 0 else bias)


def max_pool(inputs: jax.Array, size: int) -> jax.Array:
    """Returns the maximum over blocks of `size` in every axis but the first and the last; rests are cut."""
    if size == 1:
        return inputs
    extents = [extent // size for extent in inputs.shape[1:-1]]
    cut = inputs[(slice(None), *(slice(extent * size) for extent in extents))]
    blocks = cut.reshape(len(cut), *(n for extent in extents for n in (extent, size)), cut.shape[-1])
    return ops.block_max(blocks, tuple(range(2, 2 * len(extents) + 1, 2)))


def num_params(variables: dict) -> int:
    """Returns how many numbers the collection `params` holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
