"""Initial weights by name, as functions of standard normal numbers.

All parameters of a network come from one draw: the random-number code is then compiled once a network, not once
a parameter, which is most of what initialization costs on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dlexp.types import Hyper, Key, PyTree, Range

NAMES = ("zeros", "constant", "normal", "glorot", "he", "lecun", "orthogonal")
HYPER = {"init_scale": Range(0.0, default=1.0), "bias_scale": Range(0.0, default=0.0)}
_BY_FANS = ("normal", "glorot", "he", "lecun")
STACKED = "stacked_layers"  # parameters below this name carry a leading axis [layer]
_PROJECTIONS = {"query", "key", "value"}  # of attention: their kernels are [in, heads, head_dim]


def standard_deviation(name: str, fan_in: int, fan_out: int) -> float:
    """Returns the standard deviation of a weight at `init_scale` 1.

    Sources: lecun 1/fan_in (LeCun et al., "Efficient BackProp", 1998); glorot 2/(fan_in + fan_out) (Glorot and
    Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, equation 12);
    he 2/fan_in (He et al., "Delving Deep into Rectifiers", 2015, equation 10, https://arxiv.org/abs/1502.01852).

    >>> standard_deviation("he", 50, 10)
    0.2
    """
    variances = {"normal": 1.0, "glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}
    return math.sqrt(variances[name])


def check(name: str, caller: str) -> None:
    """Raises ValueError, in the caller's name, unless `name` is an initializer."""
    if name not in NAMES:
        raise ValueError(f"{caller}: no initializer named {name!r}; there are {', '.join(NAMES)}")


def draw(key: Key, shapes: PyTree, hyper: Hyper, initializer: str) -> PyTree:
    """Returns variables of the given shapes, each leaf by its name.

    `kernel` by the initializer times the swept `init_scale`: `[*window, in, out]`; in attention `[in, heads, head_dim]`
    for query, key and value, `[heads, head_dim, out]` for `out`. `embedding` `[token, width]` likewise: each output of
    a look-up is one number of the table, so its fan-in is 1. `bias` normal with standard deviation `bias_scale`, but
    zero in a normalization; `scale` and `var` one; `mean` zero. Any other name is taken for a kernel. Leaves below
    `stacked_layers` have a leading axis `[layer]`.

    Raises:
      ValueError: where a parameter of another name has no axes of inputs and outputs.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    normals = jax.random.normal(key, (sum(math.prod(leaf.shape) for _, leaf in leaves),), float)
    values, start = [], 0
    normalizations = {path[:-1] for path, _ in leaves if path[-1].key == "scale"}
    for path, leaf in leaves:
        names = [entry.key for entry in path]
        piece = normals[start : start + math.prod(leaf.shape)].reshape(leaf.shape)
        start += math.prod(leaf.shape)
        name = "mean" if names[-1] == "bias" and path[:-1] in normalizations else names[-1]
        if name == "kernel" and _siblings(leaves, path) >= _PROJECTIONS:
            name = names[-2]
        values.append(_leaf(name, STACKED in names, piece, hyper, initializer))
    return jax.tree_util.tree_unflatten(treedef, values)


def _siblings(leaves: list[tuple[Any, Any]], path: tuple[Any, ...]) -> set[str]:
    """Names of the modules beside the one that the parameter belongs to."""
    depth = len(path) - 2
    if depth < 0:
        return set()
    return {other[depth].key for other, _ in leaves if len(other) > depth and other[:depth] == path[:depth]}


def _leaf(name: str, stacked: bool, normals: jax.Array, hyper: Hyper, initializer: str) -> jax.Array:
    simple: dict[str, Callable[[], jax.Array]] = {
        "bias": lambda: hyper["bias_scale"] * normals,
        "scale": lambda: jnp.ones_like(normals),
        "var": lambda: jnp.ones_like(normals),
        "mean": lambda: jnp.zeros_like(normals),
    }
    if name in simple:
        return simple[name]()
    own_shape = normals.shape[1:] if stacked else normals.shape
    if len(own_shape) < 2:
        raise ValueError(
            f"initializers: no rule for the parameter {name!r} of shape {own_shape}; name it kernel, bias or scale, or "
            "leave initializer=None to the module's own"
        )
    if name == "embedding" and initializer in _BY_FANS:
        return hyper["init_scale"] * standard_deviation(initializer, 1, own_shape[-1]) * normals
    if name in ("out", *_PROJECTIONS):
        num_in = own_shape[0] if name in _PROJECTIONS else math.prod(own_shape[:-1])
        matrix = normals.reshape(*normals.shape[: int(stacked)], num_in, -1)
        return (hyper["init_scale"] * kernel(initializer, matrix, stacked=stacked)).reshape(normals.shape)
    return hyper["init_scale"] * kernel(initializer, normals, stacked=stacked)


def kernel(initializer: str, normals: jax.Array, *, stacked: bool = False) -> jax.Array:
    """Returns initial weights `[*window, in, out]` at `init_scale` 1 from as many standard normal numbers.

    Args:
      initializer: one of `NAMES`.
      normals: of the shape of the weights.
      stacked: whether there is a leading axis `[layer]`.
    """
    *window, num_in, num_out = normals.shape[1:] if stacked else normals.shape
    receptive = math.prod(window)
    if initializer == "zeros":
        return jnp.zeros_like(normals)
    if initializer == "constant":
        return jnp.ones_like(normals)
    if initializer == "orthogonal":
        matrices = normals.reshape(-1, receptive * num_in, num_out)
        # One after another: jax 0.10 hangs on a batched QR inside shard_map over several CPU devices.
        return jax.lax.map(_orthogonal, matrices).reshape(normals.shape)
    return standard_deviation(initializer, receptive * num_in, receptive * num_out) * normals


def _orthogonal(normals: jax.Array) -> jax.Array:
    """Returns a uniformly random matrix with orthonormal columns (or rows, where it is wide).

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", 2014, https://arxiv.org/abs/1312.6120.
    """
    rows, columns = normals.shape
    q, r = jnp.linalg.qr(normals if rows >= columns else normals.T)
    q = q * jnp.sign(jnp.diagonal(r))
    return q if rows >= columns else q.T
