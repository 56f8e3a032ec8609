"""Convolutions with windows of three rows in two thirds of the multiplications.

Two rows of outputs come from four rows of inputs, d0 to d3, and the three of the kernel, g0 to g2, by four products:

    m0 = (d0 - d2) g0    m1 = (d1 + d2) (g0 + g1 + g2) / 2    m2 = (d2 - d1) (g0 - g1 + g2) / 2    m3 = (d1 - d3) g2

and are m0 + m1 + m2 and m1 - m2 - m3. What a window sees of a row lies side by side, so each is a product of matrices.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, https://arxiv.org/abs/1509.09308,
F(2, 3) in section 4.1. Against `batch_last` of `dlexp.models.lowerings`, networks train 1.1 (images of 8 x 8) and 1.4
times (28 x 28) as fast, measured by `experiments.engine.throughput`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

_LEAST_PLACES = 12  # of a row of the window times channels: with less the products are not what takes the time

Four = tuple[jax.Array, ...]


def suits(kernel_shape: tuple[int, ...], stride: int) -> bool:
    """Returns whether a kernel of this shape, `[*window, in, out]`, can be applied so and gains by it."""
    if len(kernel_shape) != 4 or stride != 1:
        return False
    num_rows, num_columns, num_inputs, _ = kernel_shape
    return num_rows == 3 and num_columns * num_inputs >= _LEAST_PLACES


def convolve(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the cross-correlation of `[in, row, column, batch]` with `[3, columns, in, out]`, without more padding.

    It has no forward-mode derivative.

    Returns:
      `[out, row, column, batch]`, two rows and `columns - 1` columns less.
    """
    num_rows = padded.shape[1]
    rows = jnp.pad(jnp.moveaxis(padded, 1, 0), [(0, num_rows % 2), *[(0, 0)] * 3])
    outputs = _convolve_rows(rows, _of_kernel(kernel), kernel.shape[1])
    return jnp.moveaxis(outputs[: num_rows - 2], 0, 1)


def _of_kernel(kernel: jax.Array) -> Four:
    """Each `[place, out]`, places as a row of the window sees them."""
    g0, g1, g2 = kernel.reshape(3, -1, kernel.shape[-1])
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


def _of_rows(beside: jax.Array, pair: jax.Array) -> Four:
    """For two rows of outputs; each row is taken by itself, so that XLA adds long rows of numbers."""
    d0, d1, d2, d3 = (_row(beside, 2 * pair + place) for place in range(4))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _row(rows: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(rows, place, keepdims=False)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_rows(rows: jax.Array, kernels: Four, num_columns: int) -> jax.Array:
    """`[row, in, column, example]` to `[row - 2, out, column, example]`, the number of rows is even.

    The derivative is written out: so the products have the order of axes that is fast on a CPU, and each row of it is
    made once, while numbers are in its caches.
    """
    return _convolve_rows_forward(rows, kernels, num_columns)[0]


def _convolve_rows_forward(rows: jax.Array, kernels: Four, num_columns: int) -> tuple[jax.Array, tuple]:
    extent = rows.shape[2] - num_columns + 1
    beside = jnp.concatenate([rows[:, :, place : place + extent] for place in range(num_columns)], axis=1)
    beside = beside.reshape(*beside.shape[:2], -1)

    def two(pair: jax.Array) -> jax.Array:
        m0, m1, m2, m3 = (kernel.T @ seen for kernel, seen in zip(kernels, _of_rows(beside, pair), strict=True))
        return jnp.stack([m0 + m1 + m2, m1 - m2 - m3])

    outputs = jax.lax.map(two, jnp.arange((len(rows) - 2) // 2))
    return outputs.reshape(len(rows) - 2, -1, extent, rows.shape[-1]), (beside, kernels)


def _convolve_rows_backward(num_columns: int, kept: tuple, grads: jax.Array) -> tuple[jax.Array, Four]:
    (beside, kernels), num_examples = kept, grads.shape[-1]
    grads = grads.reshape(*grads.shape[:2], -1)
    num_inputs, most = beside.shape[1] // num_columns, (num_columns - 1) * num_examples

    def narrow(seen: jax.Array) -> jax.Array:
        """Adds what several places of the window saw: `[place x in, ...]` to `[in, ...]`."""
        befores = range(0, most + 1, num_examples)
        parts = zip(seen.reshape(num_columns, num_inputs, -1), befores, strict=True)
        padded = [jnp.pad(part, [(0, 0), (before, most - before)]) for part, before in parts]
        return sum(padded[1:], padded[0])

    def two(carry: tuple, pair: jax.Array) -> tuple[tuple, jax.Array]:
        row, next_row, by_kernels = carry
        y0, y1 = _row(grads, 2 * pair), _row(grads, 2 * pair + 1)
        by_products = (y0, y0 + y1, y0 - y1, -y1)
        s0, s1, s2, s3 = (kernel @ each for kernel, each in zip(kernels, by_products, strict=True))
        by_kernels = tuple(
            total + jax.lax.dot_general(seen, each, (((1,), (1,)), ((), ())))
            for total, each, seen in zip(by_kernels, by_products, _of_rows(beside, pair), strict=True)
        )
        now = row + narrow(s0), next_row + narrow(s1 - s2 + s3)
        return (narrow(s1 + s2 - s0), narrow(-s3), by_kernels), jnp.stack(now)

    nothing = jnp.zeros((num_inputs, beside.shape[2] + most), beside.dtype)
    no_kernels = tuple(jnp.zeros_like(kernel) for kernel in kernels)
    (*last, by_kernels), rows = jax.lax.scan(two, (nothing, nothing, no_kernels), jnp.arange(len(grads) // 2))
    by_rows = jnp.concatenate([rows.reshape(-1, *nothing.shape), jnp.stack(last)])
    return by_rows.reshape(len(by_rows), num_inputs, -1, num_examples), by_kernels


_convolve_rows.defvjp(_convolve_rows_forward, _convolve_rows_backward)
