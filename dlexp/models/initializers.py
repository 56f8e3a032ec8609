"""Initial weights by name, as functions of standard normal numbers.

All parameters of a network come from one draw: the random-number code is then compiled once a network, not once
a parameter, which is most of what initialization costs on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlexp.types import Hyper, Key, PyTree, Range

NAMES = ("zeros", "constant", "normal", "glorot", "he", "lecun", "orthogonal")
HYPER = {"init_scale": Range(0.0, default=1.0), "bias_scale": Range(0.0, default=0.0)}
STACKED = "stacked_layers"  # parameters below this name carry a leading axis [layer]


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

    `kernel` `[*window, in, out]` by the initializer times the swept `init_scale`; `bias` normal with standard
    deviation `bias_scale`, but zero in a normalization; `scale` and `var` one; `mean` zero. Leaves below
    `stacked_layers` have a leading axis `[layer]`.
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
        values.append(_leaf(name, STACKED in names, piece, hyper, initializer))
    return jax.tree_util.tree_unflatten(treedef, values)


def _leaf(name: str, stacked: bool, normals: jax.Array, hyper: Hyper, initializer: str) -> jax.Array:
    simple: dict[str, Callable[[], jax.Array]] = {
        "bias": lambda: hyper["bias_scale"] * normals,
        "scale": lambda: jnp.ones_like(normals),
        "var": lambda: jnp.ones_like(normals),
        "mean": lambda: jnp.zeros_like(normals),
    }
    if name in simple:
        return simple[name]()
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
