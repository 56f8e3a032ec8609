"""Convolutions, equal up to rounding, in several forms (lowerings), each the fastest for some shapes and platforms.

`convolve` is the cross-correlation; `choose_lowering` says which form the plan of a sweep has chosen. Two forms have
the batch on the last axis, and a network that is computed in them keeps it there from layer to layer (`feature_axis`).
"""

from __future__ import annotations

import math
from itertools import product

import jax
import jax.numpy as jnp

from dlexp.checks import check_choice
from dlexp.ops import winograd
from dlexp.ops.choices import choose
from dlexp.ops.compiler import platform

LOWERINGS = ("winograd", "batch_last", "patches", "rows", "shifted", "native")
BATCH_LAST = ("winograd", "batch_last")
_PATCH_BYTES = 4 * 2**20  # of patches at once


def convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    lowering: str | None = None,
    axis: int = -1,
) -> jax.Array:
    """Returns the cross-correlation over all spatial axes, zero padded.

    Args:
      inputs: `[batch, *space, in]`; or `[in, *space, batch]`, if `axis` is 0.
      kernel: `[*window, in, out]`.
      stride: step in every spatial axis.
      padding: zeros added on both sides of every spatial axis.
      lowering: `patches` (what each place of the window sees, side by side, and one matmul), `batch_last` (the same
        with the axes of batch and channels exchanged, so that numbers are copied and multiplied in long rows),
        `winograd` (the same with a quarter of the multiplications where the window is 3 x 3 and its stride is 1, see
        `dlexp.ops.winograd`), `rows` (one matmul for each row of the window), `shifted` (one for each place)
        or `native` (XLA's convolution), equal up to rounding; None leaves the choice to the plan (`choose_lowering`).
        Those of `BATCH_LAST` have no forward-mode derivative, `winograd` no second one. Inside a loop on the CPU, or
        vmapped over kernels, the native form is many times slower; one call a step on the CPU, it can be fast.
      axis: of the channels, -1 or 0.

    Returns:
      `[batch, *space, out]`, or `[out, *space, batch]`, each extent `(space + 2 padding - window) // stride + 1`.
    """
    lowering = lowering or choose_lowering(kernel.ndim - 2)
    check_choice("convolve", "lowering", lowering, LOWERINGS)
    is_exchanged = axis != feature_axis(lowering)
    inputs = jnp.swapaxes(inputs, 0, -1) if is_exchanged else inputs
    if lowering == "native":
        outputs = _convolve_native(inputs, kernel, stride, padding)
    elif lowering in BATCH_LAST:
        outputs = _convolve_batch_last(inputs, kernel, stride, padding, lowering)
    else:
        outputs = _convolve_in_slices(inputs, kernel, stride, padding, lowering)
    return jnp.swapaxes(outputs, 0, -1) if is_exchanged else outputs


def choose_lowering(num_space: int) -> str:
    """Returns the lowering that the plan has chosen (`convolution`), the one that is mostly fastest if it has not.

    Args:
      num_space: axes of the window; where it is one, it has no rows. Winograd's is for CPUs alone: elsewhere numbers
        may be rounded more coarsely (`--precision`), which it does not bear.
    """
    options = [lowering for lowering in LOWERINGS if num_space > 1 or lowering not in ("winograd", "rows")]
    if platform() != "cpu":
        options = [*(option for option in options if option not in BATCH_LAST), "batch_last"]
    return choose("convolution", tuple(options))


def feature_axis(lowering: str) -> int:
    """Returns the axis on which a lowering has the channels: 0 where it has the batch last, else -1."""
    return 0 if lowering in BATCH_LAST else -1


def _convolve_in_slices(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, lowering: str) -> jax.Array:
    def some(inputs: jax.Array) -> jax.Array:
        return _convolve_patches(inputs, kernel, stride, padding, lowering)

    window = kernel.shape[:-2]
    extents = _extents(inputs.shape[1:-1], window, stride, padding)
    num_slices = _num_slices(_patch_bytes(inputs, window, extents), len(inputs))
    if num_slices == 1:
        return some(inputs)
    outputs = jax.lax.map(jax.checkpoint(some), inputs.reshape(num_slices, -1, *inputs.shape[1:]))
    return outputs.reshape(len(inputs), *outputs.shape[2:])


def _convolve_batch_last(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, lowering: str) -> jax.Array:
    """`[in, *space, batch]` to `[out, *space, batch]`, in a lowering of `BATCH_LAST`.

    Where all patches are too many for a CPU's caches, it goes row by row, and computes them again for the derivative.
    Against `patches`, networks train 1.3 (images of 8 x 8), 1.4 (28 x 28) and 1.5 times (signals) as fast, measured by
    `experiments.engine.throughput`.
    """
    window = kernel.shape[:-2]
    if lowering == "winograd" and winograd.suits(kernel.shape, stride):
        return winograd.convolve(inputs, kernel, padding)
    extents = _extents(inputs.shape[1:-1], window, stride, padding)
    padded = _padded(inputs, len(window), padding)
    if _fits_caches(_patch_bytes(inputs, window, extents)):
        columns = jnp.concatenate(_slices(padded, window, stride))
        outputs = _from_columns(columns.reshape(len(columns), -1), kernel.reshape(len(columns), -1))
        return outputs.reshape(-1, *columns.shape[1:])
    # What the rows of a window see is one above the other already.
    beside = jnp.concatenate(_slices(padded, window[1:], stride, first_axis=2))
    by_place = jnp.moveaxis(kernel, 0, -2).reshape(-1, kernel.shape[-1])

    def row(place: jax.Array) -> jax.Array:
        seen = jax.lax.dynamic_slice_in_dim(beside, place * stride, window[0], axis=1)
        return _from_columns(seen.reshape(len(by_place), -1), by_place)

    rows = jax.lax.map(jax.checkpoint(row), jnp.arange(extents[0]))
    return jnp.moveaxis(rows, 0, 1).reshape(-1, *extents, inputs.shape[-1])


@jax.custom_vjp
def _from_columns(columns: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[place, column]`, `[place, out]` to `[out, column]`; derivatives are multiplied in the same order of axes."""
    return kernel.T @ columns


def _from_columns_forward(columns: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _from_columns(columns, kernel), (columns, kernel)


def _from_columns_backward(kept: tuple[jax.Array, jax.Array], grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    columns, kernel = kept
    # `columns @ grads.T`, but XLA would transpose first, at the time of another product.
    return kernel @ grads, jax.lax.dot_general(columns, grads, (((1,), (1,)), ((), ())))


_from_columns.defvjp(_from_columns_forward, _from_columns_backward)


def _extents(sizes: tuple[int, ...], window: tuple[int, ...], stride: int, padding: int = 0) -> list[int]:
    """Of the output in space."""
    return [(size + 2 * padding - width) // stride + 1 for size, width in zip(sizes, window, strict=True)]


def _patch_bytes(inputs: jax.Array, window: tuple[int, ...], extents: list[int]) -> int:
    """Of what every place of the window sees everywhere."""
    in_space = math.prod(inputs.shape[1:-1])
    return inputs.size // in_space * math.prod(extents) * math.prod(window) * inputs.dtype.itemsize


def _fits_caches(num_bytes: int) -> bool:
    return platform() != "cpu" or num_bytes <= _PATCH_BYTES


def _num_slices(num_bytes: int, size: int) -> int:
    """In how many equal slices of an axis the patches fit into a CPU's caches; 1 where there is no such divisor.

    Measured: 1,000 images of 8 x 8 are evaluated in a third of the time, 64 of 28 x 28 trained 1.4 times as fast.
    """
    if _fits_caches(num_bytes):
        return 1
    least = -(-num_bytes // _PATCH_BYTES)
    return next((n for n in range(least, min(4 * least, size) + 1) if size % n == 0), 1)


def _convolve_patches(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, lowering: str) -> jax.Array:
    window = kernel.shape[:-2]
    num_shifted = {"patches": 0, "rows": 1, "shifted": len(window)}[lowering]
    slices = _slices(_padded(inputs, len(window), padding), window, stride)
    # One matmul for each place in the first `num_shifted` axes of the window; the other axes lie side by side.
    num_pieces = math.prod(window[:num_shifted])
    size = len(slices) // num_pieces
    pieces = [jnp.concatenate(slices[start : start + size], axis=-1) for start in range(0, len(slices), size)]
    kernels = kernel.reshape(num_pieces, -1, kernel.shape[-1])
    return sum((piece @ part for piece, part in zip(pieces[1:], kernels[1:], strict=True)), pieces[0] @ kernels[0])


def _padded(inputs: jax.Array, num_space: int, padding: int) -> jax.Array:
    return jnp.pad(inputs, [(0, 0), *[(padding, padding)] * num_space, (0, 0)])


def _slices(padded: jax.Array, window: tuple[int, ...], stride: int, first_axis: int = 1) -> list[jax.Array]:
    """What each place of the window sees, in the order of a kernel's entries; the axes stay as they are."""
    extents = _extents(padded.shape[first_axis:-1], window, stride)
    before = (slice(None),) * first_axis
    return [
        padded[(*before, *(slice(o, o + (e - 1) * stride + 1, stride) for o, e in zip(offset, extents, strict=True)))]
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
