"""From a Flax NNX module to the `Model` contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dlexp.models.calling import arguments_of
from dlexp.types import Hyper, Key, Model, PyTree, Range


def from_nnx(make_module: Callable[[Any], Any], hyper: Mapping[str, Range] | None = None) -> Model:
    """Returns an NNX module as a Model.

    The module is set to `train()` or `eval()` before each call; its `__call__` may have the parameters that
    `from_linen` knows. Its random layers draw from the step's key. Batch statistics and other variables travel along.

    Args:
      make_module: `nnx.Rngs -> module`, such as `lambda rngs: MyModule(10, rngs=rngs)`.
      hyper: the swept values it reads.

    Raises:
      TypeError: where `make_module` makes no module.
      ValueError: where `__call__` takes what is not known here.
    """
    from flax import nnx

    if isinstance(make_module, nnx.Module) or not callable(make_module):
        raise TypeError("from_nnx: give it a function of the random numbers, `lambda rngs: MyModule(..., rngs=rngs)`")
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise TypeError("from_nnx: make_module must return an instance of nnx.Module")
    kinds: Any = (nnx.Param, nnx.RngState, ...)
    split: Any = nnx.split
    graph, params_like, random_like, rest_like = split(abstract, *kinds)
    pass_arguments = arguments_of("from_nnx", inspect.signature(type(abstract).__call__), has_self=True, hyper=hyper)

    def init(key: Key, values: Hyper, inputs: jax.Array) -> PyTree:
        _, params, _, rest = split(make_module(nnx.Rngs(key)), *kinds)
        return {"params": nnx.to_pure_dict(params), "rest": nnx.to_pure_dict(rest)}

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        states = (params_like, variables["params"]), (random_like, _random(nnx, random_like, key))
        filled = [_filled(nnx, *pair) for pair in (*states, (rest_like, variables["rest"]))]
        module = nnx.merge(graph, *filled)
        module.train() if train else module.eval()
        positional, named = pass_arguments(inputs, values, key, train)
        outputs = module(*positional, **named)
        rest = nnx.to_pure_dict(split(module, *kinds)[3])
        return outputs, {**variables, "rest": rest} if train else variables

    return Model(init, apply, dict(hyper or {}))


def _filled(nnx: Any, like: Any, values: PyTree) -> Any:
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def _random(nnx: Any, like: Any, key: Key) -> PyTree:
    """For each stream of random numbers a key of its own, and a count from 0."""
    leaves, treedef = jax.tree.flatten(nnx.to_pure_dict(like))

    def drawn(place: int, leaf: Any) -> jax.Array:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(key, place) if is_key else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.unflatten(treedef, [drawn(*pair) for pair in enumerate(leaves)])
