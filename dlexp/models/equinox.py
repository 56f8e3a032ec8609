"""From an Equinox module to the `Model` contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dlexp.models.calling import arguments_of
from dlexp.types import Hyper, Key, Model, PyTree, Range


def from_equinox(make_module: Callable[[Key], Any], hyper: Mapping[str, Range] | None = None) -> Model:
    """Returns an Equinox module, which maps one example, as a Model of batches.

    Floating-point arrays are its parameters. Layers such as `equinox.nn.Dropout` are set to training or inference;
    `__call__` may have the parameters that `from_linen` knows, `key` (one for each example) among them.

    Args:
      make_module: `key -> module`, such as `lambda key: eqx.nn.MLP(64, 10, 32, 2, key=key)`.
      hyper: the swept values it reads.

    Raises:
      ModuleNotFoundError: where Equinox is not installed.
      TypeError: where `make_module` makes no module.
      ValueError: where `__call__` takes what is not known here.
    """
    try:
        import equinox as eqx
    except ModuleNotFoundError as error:
        message = "from_equinox needs Equinox: pip install 'dlexp[equinox]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    if isinstance(make_module, eqx.Module) or not callable(make_module):
        raise TypeError("from_equinox: give it a function of the key, `lambda key: eqx.nn.MLP(..., key=key)`")
    abstract = eqx.filter_eval_shape(make_module, jax.eval_shape(lambda: jax.random.key(0)))
    if not isinstance(abstract, eqx.Module):
        raise TypeError("from_equinox: make_module must return an instance of eqx.Module")
    pass_arguments = arguments_of(
        "from_equinox", inspect.signature(type(abstract).__call__), has_self=True, hyper=hyper
    )
    static = eqx.partition(abstract, lambda leaf: hasattr(leaf, "dtype"))[1]

    def init(key: Key, values: Hyper, inputs: jax.Array) -> PyTree:
        arrays = eqx.filter(make_module(key), eqx.is_array)
        params, rest = eqx.partition(arrays, eqx.is_inexact_array)
        return {"params": params, "rest": rest}

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        module = eqx.combine(variables["params"], variables["rest"], static)
        module = eqx.nn.inference_mode(module, value=not train)

        def one(example: jax.Array, key: Key) -> jax.Array:
            positional, named = pass_arguments(example, values, key, train)
            return module(*positional, **named)

        return jax.vmap(one)(inputs, jax.random.split(key, len(inputs))), variables

    return Model(init, apply, dict(hyper or {}))
