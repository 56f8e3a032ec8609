"""From a Linen module to the `Model` contract."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from dlexp.models import initializers
from dlexp.models.calling import arguments_of
from dlexp.types import Hyper, Key, Model, PyTree, Range


def from_linen(module: nn.Module, hyper: Mapping[str, Range] | None = None, *, initializer: str | None = None) -> Model:
    """Returns the module as a Model.

    A module is called as people write it: `module(inputs)`, with `train=` (or `training=`, `deterministic=`, `hyper=`,
    `key=`) where its `__call__` has a parameter of that name, or as `module(inputs, hyper, key, train)` where it has
    four without a default. Its `make_rng` and layers such as `nn.Dropout` draw from the step's key.

    Args:
      module: an instance of a `flax.linen.Module`.
      hyper: the swept values it reads.
      initializer: draw its variables by this name with swept `init_scale` and `bias_scale` (see
        `dlexp.models.initializers`); None leaves initialization to the module's own initializers.

    Raises:
      ValueError: where no initializer has that name, or `__call__` takes what is not known here; when it is traced,
        where a swept rate is given to `nn.Dropout`.
      TypeError: where it is no instance of a module.
    """
    if isinstance(module, type) or not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        got = f"the class {kind}; write {kind}(...)" if isinstance(module, type) else f"a {kind}"
        raise TypeError(f"from_linen: module must be an instance of a flax.linen.Module, got {got}")
    if initializer is not None:
        initializers.check(initializer, "from_linen")
    pass_arguments = arguments_of("from_linen", inspect.signature(type(module).__call__), has_self=True, hyper=hyper)

    def init(key: Key, values: Hyper, inputs: jax.Array) -> PyTree:
        def own(key: Key) -> PyTree:
            return _explained(module.init, key, *pass_arguments(inputs, values, key, False))

        if initializer is None:
            return own(key)
        return initializers.draw(key, jax.eval_shape(own, key), values, initializer)

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        travelling = [name for name in variables if name != "params"] if train else []
        positional, named = pass_arguments(inputs, values, key, train)
        drawing = {"rngs": {"params": key, "dropout": key}, "mutable": travelling}  # others than dropout take params'
        outputs, changed = _explained(module.apply, variables, positional, named, **drawing)
        return outputs, {**variables, **_plain(changed)}

    drawn = initializers.HYPER if initializer is not None else {}
    return Model(init, apply, {**drawn, **(hyper or {})})


def _explained(function: Callable, first: Any, positional: tuple, named: Mapping[str, Any], **options: Any) -> Any:
    """Calls Flax; where its dropout meets a swept rate, says what takes one."""
    try:
        return function(first, *positional, **named, **options)
    except jax.errors.TracerBoolConversionError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename.endswith("linen/stochastic.py") for frame in frames):
            raise
    raise ValueError(
        "from_linen: nn.Dropout takes no swept rate, only a fixed number; write models.dropout(inputs, hyper['rate'], "
        "key, train=train), with __call__(self, inputs, hyper, key, train)"
    )


def _plain(collections: Any) -> dict[str, Any]:
    return dict(collections.items())
