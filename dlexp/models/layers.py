"""Layers that Linen has not in the form a vmapped grid needs: traced dropout rates, convolution as a matmul."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlexp.choices import choose
from dlexp.types import Key

NORMALIZATIONS = ("none", "batch", "layer")
DROPOUTS = ("none", "inverted", "classic")
LOWERINGS = ("patches", "rows", "shifted", "native")
_PATCH_BYTES = 4 * 2**20  # of patches at once
ONE_AXIS_LOWERINGS = ("patches", "shifted", "native")  # a window of one axis has no rows


def check_choice(caller: str, parameter: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError, in the caller's name, unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{caller}: {parameter} must be one of {', '.join(choices)}, got {value!r}")


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of that name in `jax.nn` (relu, tanh, sigmoid, gelu, ...); `identity` is linear.

    Raises:
      ValueError: where there is none.
    """
    function = getattr(jax.nn, name, None)
    if not callable(function) or name.startswith("_"):
        raise ValueError(f"no activation named {name!r}; use the name of a function in jax.nn, such as 'relu'")
    return function


def normalize(inputs: jax.Array, normalization: str, train: bool) -> jax.Array:
    """Returns the inputs normalized over the batch, over the features, or as they are; used inside a compact method.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros and Hinton,
    "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.
    """
    check_choice("normalize", "normalization", normalization, NORMALIZATIONS)
    if normalization == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(inputs)
    return nn.LayerNorm()(inputs) if normalization == "layer" else inputs


def dropout(inputs: jax.Array, rate: jax.Array, key: Key, *, train: bool, convention: str) -> jax.Array:
    """Returns the inputs with each unit dropped with probability `rate` in training.

    `inverted` divides what is kept by `1 - rate` in training and does nothing at inference; `classic` leaves
    training as it is and multiplies by `1 - rate` at inference. The rate may be traced, below 1.
    Source: Srivastava et al., "Dropout", 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    check_choice("dropout", "convention", convention, DROPOUTS)
    if convention == "none":
        return inputs
    if not train:
        return inputs if convention == "inverted" else inputs * (1.0 - rate)
    kept = jax.random.bernoulli(key, 1.0 - rate, inputs.shape)
    scaled = inputs / (1.0 - rate) if convention == "inverted" else inputs
    return jnp.where(kept, scaled, 0.0)


def convolve(
    inputs: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, lowering: str | None = None
) -> jax.Array:
    """Returns the cross-correlation over all spatial axes, zero padded.

    Args:
      inputs: `[batch, *space, in]`.
      kernel: `[*window, in, out]`.
      stride: step in every spatial axis.
      padding: zeros added on both sides of every spatial axis.
      lowering: `patches` (what each place of the window sees, side by side, and one matmul), `rows` (one matmul for
        each row of the window), `shifted` (one for each place) or `native` (XLA's convolution), equal up to rounding;
        None leaves the choice, named `convolution`, to whoever compiles. Inside a loop on the CPU, or vmapped over
        kernels, the native form is many times slower; one call a step on the CPU, it can be the fastest.

    Returns:
      `[batch, *space, out]`, each extent `(space + 2 padding - window) // stride + 1`.
    """
    if lowering is None:
        lowering = choose("convolution", LOWERINGS if kernel.ndim > 3 else ONE_AXIS_LOWERINGS)
    check_choice("convolve", "lowering", lowering, LOWERINGS)
    if lowering == "native":
        return _convolve_native(inputs, kernel, stride, padding)

    def some(inputs: jax.Array) -> jax.Array:
        return _convolve_patches(inputs, kernel, stride, padding, lowering)

    num_slices = _num_slices(inputs, kernel, stride, padding)
    if num_slices == 1:
        return some(inputs)
    outputs = jax.lax.map(some, inputs.reshape(num_slices, -1, *inputs.shape[1:]))
    return outputs.reshape(len(inputs), *outputs.shape[2:])


def _num_slices(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> int:
    """In how many slices of the batch the patches stay in a CPU's caches; 1 elsewhere, or where it has no such divisor.

    Measured: 1,000 images of 8 x 8 are evaluated in a third of the time, 64 of 28 x 28 trained 1.2 times as fast.
    """
    if jax.default_backend() != "cpu":
        return 1
    extents = [
        (size + 2 * padding - width) // stride + 1
        for size, width in zip(inputs.shape[1:-1], kernel.shape, strict=False)
    ]
    num_bytes = len(inputs) * math.prod(extents) * math.prod(kernel.shape[:-1]) * inputs.dtype.itemsize
    least = max(1, -(-num_bytes // _PATCH_BYTES))
    return next((n for n in range(least, min(4 * least, len(inputs)) + 1) if len(inputs) % n == 0), 1)


def _convolve_patches(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, lowering: str) -> jax.Array:
    window = kernel.shape[:-2]
    num_shifted = {"patches": 0, "rows": 1, "shifted": len(window)}[lowering]
    slices = _slices(inputs, window, stride, padding)
    # One matmul for each place in the first `num_shifted` axes of the window; the other axes lie side by side.
    num_pieces = math.prod(window[:num_shifted])
    size = len(slices) // num_pieces
    pieces = [jnp.concatenate(slices[start : start + size], axis=-1) for start in range(0, len(slices), size)]
    kernels = kernel.reshape(num_pieces, -1, kernel.shape[-1])
    return sum((piece @ part for piece, part in zip(pieces[1:], kernels[1:], strict=True)), pieces[0] @ kernels[0])


def _slices(inputs: jax.Array, window: tuple[int, ...], stride: int, padding: int) -> list[jax.Array]:
    """What each place of the window sees, `[batch, *space, in]`, in the order of a kernel's entries."""
    padded = jnp.pad(inputs, [(0, 0), *[(padding, padding)] * len(window), (0, 0)])
    extents = [(size - width) // stride + 1 for size, width in zip(padded.shape[1:-1], window, strict=True)]
    return [
        padded[
            (slice(None), *(slice(o, o + (e - 1) * stride + 1, stride) for o, e in zip(offset, extents, strict=True)))
        ]
        for offset in product(*map(range, window))
    ]


def _convolve_native(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    num_space = kernel.ndim - 2
    space = "HW"[:num_space]
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(stride,) * num_space,
        padding=((padding, padding),) * num_space,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


class Conv(nn.Module):
    """Convolution with a bias: `[batch, *space, in]` to `[batch, *space, channels]` (see `convolve`)."""

    channels: int
    window: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    lowering: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the convolved inputs."""
        shape = (*self.window, inputs.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        outputs = convolve(inputs, kernel, stride=self.stride, padding=self.padding, lowering=self.lowering)
        return outputs + bias


def max_pool(inputs: jax.Array, size: int) -> jax.Array:
    """Returns the maximum over blocks of `size` in every spatial axis of `[batch, *space, channel]`; rests are cut."""
    if size == 1:
        return inputs
    extents = [extent // size for extent in inputs.shape[1:-1]]
    cut = inputs[(slice(None), *(slice(extent * size) for extent in extents))]
    blocks = cut.reshape(len(cut), *(n for extent in extents for n in (extent, size)), cut.shape[-1])
    return blocks.max(axis=tuple(range(2, 2 * len(extents) + 1, 2)))


def num_params(variables: dict) -> int:
    """Returns how many numbers the collection `params` holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
