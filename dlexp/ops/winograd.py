"""Convolutions with windows of 3 x 3 in a quarter of the multiplications.

Outputs are made in tiles of 4 x 4, each from the 6 x 6 inputs that it sees. Along one axis its outputs are

    OUTPUT ((KERNEL kernel) (INPUT inputs))

with the matrices below and the vectors multiplied number by number, six times in place of twelve. Along both axes the
matrices are applied twice, and of the 36 places, in place of 144, each is a product of matrices, channels by tiles.
Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, https://arxiv.org/abs/1509.09308,
F(4 x 4, 3 x 3) in section 4.3; matrices for any points, which are Toom's and Cook's, and their rounding in Barabasz et
al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018,
https://arxiv.org/abs/1803.10986. Against `batch_last` of `dlexp.ops.convolution`, networks train 1.5 (images of 8 x 8)
and 1.3 times (28 x 28) as fast, measured by `experiments.engine.throughput`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

_TILE = 4  # outputs of a tile along an axis
_SEEN = 6  # inputs that it sees
_OVERLAP = _SEEN - _TILE  # of them, seen by the next tile too
_MOST_COLUMNS = 512  # tiles times examples times runs at once: all that is made of them stays in a CPU's caches
_LEAST_INPUTS = 8  # channels: with less the products are not what takes the time

Matrix = Sequence[Sequence[float]]


def _matrices_of(points: Sequence[float]) -> tuple[Matrix, Matrix, Matrix]:
    """INPUT, KERNEL and OUTPUT of products of polynomials that are evaluated at these points and infinity."""
    but_one = [[other for other in points if other != point] for point in points]
    of_inputs = [*([*np.poly(others)[::-1], 0.0] for others in but_one), list(np.poly(points)[::-1])]
    of_kernel = [
        [point**power / math.prod(point - other for other in others) for power in range(3)]
        for point, others in zip(points, but_one, strict=True)
    ]
    to_outputs = [[*(point**power for point in points), float(power == _TILE - 1)] for power in range(_TILE)]
    return of_inputs, [*of_kernel, [0.0, 0.0, 1.0]], to_outputs


# With 0, 5/8, -5/8, 3/2 and -3/2 rounding errors are half as large, but all of it takes 1.1 times as long.
_INPUT, _KERNEL, _OUTPUT = _matrices_of((0, 1, -1, 2, -2))


def suits(kernel_shape: tuple[int, ...], stride: int) -> bool:
    """Returns whether a kernel of this shape, `[*window, in, out]`, can be applied so and gains by it."""
    return kernel_shape[:-2] == (3, 3) and stride == 1 and kernel_shape[-2] >= _LEAST_INPUTS


def convolve(inputs: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Returns the cross-correlation over rows and columns. It has neither forward-mode nor second derivatives.

    Rounding errors are some ten times those of a plain product, in float32 some millionths of the largest output.

    Args:
      inputs: `[in, row, column, example]`.
      kernel: `[3, 3, in, out]`.
      padding: zeros added on all sides.

    Returns:
      `[out, row, column, example]`.
    """
    extents = [extent + 2 * padding - 2 for extent in inputs.shape[1:3]]
    num_tiles = [-(-extent // _TILE) for extent in extents]
    after = [padding + _TILE * (num + 1) - extent - 2 for num, extent in zip(num_tiles, extents, strict=True)]
    padded = jnp.pad(inputs, [(0, 0), (padding, after[0]), (padding, after[1]), (0, 0)])
    return _convolve_tiles(padded, _of_kernel(kernel))[:, : extents[0], : extents[1]]


def _of_kernel(kernel: jax.Array) -> jax.Array:
    """`[place of a tile's rows, of its columns, run, in, out]`, of one run."""
    by_column = jnp.stack(_combined(_KERNEL, [kernel[:, column] for column in range(3)]), 1)
    return jnp.stack(_combined(_KERNEL, list(by_column)))[:, :, None]


@jax.custom_vjp
def _convolve_tiles(inputs: jax.Array, kernels: jax.Array) -> jax.Array:
    """`[run x in, row, column, example]` to `[run x out, ...]`, all in whole tiles, of inputs one more on both axes.

    The derivative is written out: so the products have the order of axes that is fast on a CPU. Most of the work is
    moving numbers, which XLA does well part by part of a `stack` and along axes that no reshape has split: therefore
    `_split`, and no array is made to be transposed. `vmap` left to itself would put runs in front of places and
    transpose all; they are like channels to everything but products.
    """
    return _outputs(inputs, kernels)


def _convolve_tiles_forward(inputs: jax.Array, kernels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _outputs(inputs, kernels), (inputs, kernels)


def _convolve_tiles_backward(kept: tuple[jax.Array, jax.Array], grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _derivatives(*kept, grads)


_convolve_tiles.defvjp(_convolve_tiles_forward, _convolve_tiles_backward)


@custom_vmap
def _outputs(inputs: jax.Array, kernels: jax.Array) -> jax.Array:
    num_examples, num_runs, rows = inputs.shape[-1], kernels.shape[2], _split(inputs)
    num_bands, size = _bands(rows, num_examples, num_runs)

    def band(index: jax.Array) -> jax.Array:
        parts = []
        for seen, kernel in zip(_seen(rows, index, size), kernels, strict=True):
            by_place = _by_column(seen, num_examples)
            products = _products(kernel, _matrices(by_place, num_runs), 2, 2)
            by_place = products.reshape(_SEEN, -1, *by_place.shape[2:])
            parts.append(jnp.stack(_combined(_OUTPUT, list(by_place)), 2))
        return jnp.stack([jnp.moveaxis(row, 0, 1) for row in _combined(_OUTPUT, parts)], 1)

    outputs = jax.lax.map(band, jnp.arange(num_bands))
    return _joined(outputs.reshape(-1, *outputs.shape[2:]), num_examples)


@custom_vmap
def _derivatives(inputs: jax.Array, kernels: jax.Array, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    num_examples, num_runs, rows, grads = inputs.shape[-1], kernels.shape[2], _split(inputs), _split(grads)
    num_bands, size = _bands(rows, num_examples, num_runs)

    def band(carry: tuple[list[jax.Array], list[jax.Array]], index: jax.Array) -> tuple[tuple, jax.Array]:
        before, by_kernels = carry
        by_outputs = _combined(_transposed(_OUTPUT), _rows(grads, index, size, _TILE))
        by_seen, sums = [], []
        for seen, by_output, kernel, total in zip(
            _seen(rows, index, size), by_outputs, kernels, by_kernels, strict=True
        ):
            by_column = jnp.moveaxis(by_output.reshape(*by_output.shape[:2], _TILE, -1), 0, 1)
            columns = [by_column[:, :, column] for column in range(_TILE)]
            by_place = jnp.stack(_combined(_transposed(_OUTPUT), columns))
            by_products = _matrices(by_place, num_runs)
            sums.append(total + _products(_matrices(_by_column(seen, num_examples), num_runs), by_products, 3, 3))
            by_place = _products(kernel, by_products, 3, 2).reshape(_SEEN, -1, *by_place.shape[2:])
            by_seen.append(_to_columns(list(by_place), num_examples))
        by_rows = _combined(_transposed(_INPUT), by_seen)
        now = [*map(_later, by_rows, by_rows[_TILE:], before), *by_rows[_OVERLAP:_TILE]]
        return ([row[-1:] for row in by_rows[_TILE:]], sums), jnp.stack(now, 1)

    nothing = [jnp.zeros((1, *rows.shape[2:]), rows.dtype)] * _OVERLAP, list(jnp.zeros_like(kernels))
    (last, by_kernels), by_rows = jax.lax.scan(band, nothing, jnp.arange(num_bands))
    after = jnp.pad(jnp.stack(last, 1), [(0, 0), (0, _TILE - _OVERLAP), *[(0, 0)] * 3])
    by_rows = jnp.concatenate([by_rows.reshape(-1, *by_rows.shape[2:]), after])
    return _joined(by_rows, num_examples), jnp.stack(by_kernels)


@_outputs.def_vmap
def _outputs_of_runs(num_runs: int, in_batched: Sequence[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
    inputs, kernels = _of_all_runs(num_runs, in_batched, arrays)
    return _runs_apart(_outputs(_as_channels(inputs), _as_inner(kernels)), num_runs), True


@_derivatives.def_vmap
def _derivatives_of_runs(
    num_runs: int, in_batched: Sequence[bool], *arrays: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
    inputs, kernels, grads = _of_all_runs(num_runs, in_batched, arrays)
    by_inputs, by_kernels = _derivatives(_as_channels(inputs), _as_inner(kernels), _as_channels(grads))
    by_kernels = by_kernels.reshape(*by_kernels.shape[:2], num_runs, -1, *by_kernels.shape[3:])
    return (_runs_apart(by_inputs, num_runs), jnp.moveaxis(by_kernels, 2, 0)), (True, True)


def _of_all_runs(num_runs: int, in_batched: Sequence[bool], arrays: Sequence[jax.Array]) -> list[jax.Array]:
    pairs = zip(arrays, in_batched, strict=True)
    return [array if is_batched else jnp.broadcast_to(array, (num_runs, *array.shape)) for array, is_batched in pairs]


def _as_channels(images: jax.Array) -> jax.Array:
    return images.reshape(-1, *images.shape[2:])


def _runs_apart(images: jax.Array, num_runs: int) -> jax.Array:
    return images.reshape(num_runs, -1, *images.shape[1:])


def _as_inner(kernels: jax.Array) -> jax.Array:
    """`[run, place, place, inner run, in, out]` to one axis of runs in the place of the inner."""
    kernels = jnp.moveaxis(kernels, 0, 2)
    return kernels.reshape(*kernels.shape[:2], -1, *kernels.shape[4:])


def _combined(matrix: Matrix, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a matrix with a vector of arrays; nothing is multiplied by zero or one."""

    def total(factors: Sequence[float]) -> jax.Array:
        used = [(factor, part) for factor, part in zip(factors, parts, strict=True) if factor]
        terms = [part if factor == 1 else float(factor) * part for factor, part in used]
        return sum(terms[1:], terms[0])

    return [total(factors) for factors in matrix]


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _matrices(by_place: jax.Array, num_runs: int) -> jax.Array:
    """`[place, run x channel, tile row, tile x example]` to `[place, run, channel, column]`."""
    return by_place.reshape(_SEEN, num_runs, by_place.shape[1] // num_runs, -1)


def _products(one: jax.Array, other: jax.Array, one_axis: int, other_axis: int) -> jax.Array:
    """Those of the matrices of two arrays `[place, run, ., .]`, summed over these axes."""
    return jax.lax.dot_general(one, other, (((one_axis,), (other_axis,)), ((0, 1), (0, 1))))


def _split(whole: jax.Array) -> jax.Array:
    """`[channel, row, column, example]` to `[tile row, 4, channel, 4, tile x example]`."""
    rows = jnp.moveaxis(whole, 1, 0)
    by_column = jnp.stack([rows[:, :, column::_TILE] for column in range(_TILE)], 2)
    return by_column.reshape(-1, _TILE, *by_column.shape[1:3], by_column.shape[3] * by_column.shape[4])


def _joined(parts: jax.Array, num_examples: int) -> jax.Array:
    """The inverse of `_split`."""
    tiles = parts.reshape(*parts.shape[:4], -1, num_examples)
    num_rows, num_columns = _TILE * len(parts), _TILE * tiles.shape[4]
    return jnp.transpose(tiles, (2, 0, 1, 4, 3, 5)).reshape(-1, num_rows, num_columns, num_examples)


def _bands(rows: jax.Array, num_examples: int, num_runs: int) -> tuple[int, int]:
    """How many bands of how many rows of tiles are taken, one after the other."""
    num_rows, num_columns = len(rows) - 1, num_runs * (rows.shape[-1] - num_examples)
    sizes = (size for size in range(num_rows, 1, -1) if num_rows % size == 0 and size * num_columns <= _MOST_COLUMNS)
    size = next(sizes, 1)
    return num_rows // size, size


def _rows(parts: jax.Array, index: jax.Array, size: int, num: int) -> list[jax.Array]:
    """The first rows of all tiles of a band, those of the next tiles among them: `[tile row, channel, whatever]`."""
    flat = parts.reshape(*parts.shape[:3], -1)
    places = [divmod(place, _TILE) for place in range(num)]
    return [jax.lax.dynamic_slice_in_dim(flat[:, row], index * size + later, size) for later, row in places]


def _seen(rows: jax.Array, index: jax.Array, size: int) -> list[jax.Array]:
    """What the tiles of a band see, combined along rows, six of `[tile row, in, 4, tile x example]`."""
    combined = _combined(_INPUT, _rows(rows, index, size, _SEEN))
    return [each.reshape(*each.shape[:2], *rows.shape[3:]) for each in combined]


def _by_column(seen: jax.Array, num_examples: int) -> jax.Array:
    """`[tile row, in, 4, tile x example]` to `[place, in, tile row, tile x example]`, combined along columns."""
    columns, length = jnp.moveaxis(seen, 0, 1), seen.shape[-1] - num_examples
    starts = [divmod(place, _TILE) for place in range(_SEEN)]
    places = [columns[:, :, column, later * num_examples :][..., :length] for later, column in starts]
    return jnp.stack(_combined(_INPUT, places))


def _to_columns(by_place: Sequence[jax.Array], num_examples: int) -> jax.Array:
    """The transpose of `_by_column`."""
    places = [jnp.moveaxis(each, 1, 0) for each in _combined(_transposed(_INPUT), by_place)]
    firsts = [jnp.pad(each, [(0, 0), (0, 0), (0, num_examples)]) for each in places[:_TILE]]
    nexts = [jnp.pad(each, [(0, 0), (0, 0), (num_examples, 0)]) for each in places[_TILE:]]
    sums = [one + other for one, other in zip(firsts, nexts, strict=False)]
    return jnp.stack([*sums, *firsts[_OVERLAP:]], 2)


def _later(row: jax.Array, next_row: jax.Array, before: jax.Array) -> jax.Array:
    """A row of tiles with what the tiles before them add to it, those of the band and the last of the band before."""
    rest = [(0, 0)] * (row.ndim - 1)
    return row + jnp.pad(next_row[:-1], [(1, 0), *rest]) + jnp.pad(before, [(0, len(row) - 1), *rest])
