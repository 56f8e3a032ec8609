"""What a traced function costs, read from its jaxpr: floating-point operations through its loops, and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np


class Cost(NamedTuple):
    """Estimates of one call.

    Attributes:
      flops: two per multiply-add of matrix products and convolutions, one per number any other operation makes.
      temporary_bytes: every intermediate value together, an upper bound on what is alive at once.
    """

    flops: float
    temporary_bytes: float


def traced(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what `function(*args)` does, as a jaxpr; args may be shapes (`jax.ShapeDtypeStruct`)."""
    # A function of its own for every call: JAX remembers what it traced, and choices may be others by now.
    return jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr


def of(jaxpr: Any) -> Cost:
    """Returns the cost of what was traced.

    A scan counts once per iteration, a branch at its most expensive, a loop of unknown length once.
    """
    return _jaxpr_cost(jaxpr)


def num_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays (or shapes) in a pytree; a key counts as two 32-bit words."""
    return sum(math.prod(leaf.shape) * _item_size(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _item_size(dtype: Any) -> int:
    return np.dtype(dtype).itemsize if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else 8


def _jaxpr_cost(jaxpr: Any) -> Cost:
    costs = [_equation_cost(equation) for equation in jaxpr.eqns]
    return Cost(sum(cost.flops for cost in costs), sum(cost.temporary_bytes for cost in costs))


def _equation_cost(equation: Any) -> Cost:
    inner = [_jaxpr_cost(jaxpr) for jaxpr in _inner_jaxprs(equation.params)]
    written = float(num_bytes([variable.aval for variable in equation.outvars]))
    name = equation.primitive.name
    if name == "scan":
        length = equation.params["length"]
        return Cost(length * inner[0].flops, inner[0].temporary_bytes + written)
    if name == "cond":
        return Cost(max(c.flops for c in inner), max(c.temporary_bytes for c in inner) + written)
    if inner:
        return Cost(sum(c.flops for c in inner), sum(c.temporary_bytes for c in inner) + written)
    made = sum(math.prod(variable.aval.shape) for variable in equation.outvars)
    return Cost(made * _multiply_adds(name, equation), written)


def _multiply_adds(name: str, equation: Any) -> float:
    """Floating-point operations per number made."""
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(kernel) / kernel[out_axis]
    return 0.0 if name in _FREE else 1.0


_FREE = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "dynamic_slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "slice",
        "squeeze",
        "transpose",
        "random_bits",
        "random_wrap",
        "random_unwrap",
        "random_fold_in",
        "random_seed",
        "random_split",
    ]
)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(entry, "eqns"):
                yield entry
            elif hasattr(entry, "jaxpr"):
                yield entry.jaxpr
