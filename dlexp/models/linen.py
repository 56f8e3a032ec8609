"""From a Linen module to the `Model` contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from dlexp.models import initializers
from dlexp.types import Hyper, Key, Model, PyTree, Range


def from_linen(module: nn.Module, hyper: Mapping[str, Range] | None = None, *, initializer: str | None = None) -> Model:
    """Returns the module as a Model.

    Args:
      module: called as `module(inputs, hyper, key, train)`, `key` for its randomness in training.
      hyper: the swept values it reads.
      initializer: draw its variables by this name with swept `init_scale` and `bias_scale` (see
        `dlexp.models.initializers`); None leaves initialization to the module's own initializers.

    Raises:
      ValueError: where no initializer has that name.
    """
    if isinstance(module, type) or not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        raise TypeError(
            f"from_linen: module must be an instance of a flax.linen.Module, got "
            f"{f'the class {kind}; write {kind}(...)' if isinstance(module, type) else f'a {kind}'}"
        )
    if initializer is not None:
        initializers.check(initializer, "from_linen")

    def init(key: Key, values: Hyper, inputs: jax.Array) -> PyTree:
        def own(key: Key) -> PyTree:
            return module.init(key, inputs, values, key, False)

        if initializer is None:
            return own(key)
        return initializers.draw(key, jax.eval_shape(own, key), values, initializer)

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        travelling = [name for name in variables if name != "params"] if train else []
        outputs, changed = module.apply(variables, inputs, values, key, train, mutable=travelling)
        return outputs, {**variables, **_plain(changed)}

    drawn = initializers.HYPER if initializer is not None else {}
    return Model(init, apply, {**drawn, **(hyper or {})})


def _plain(collections: Any) -> dict[str, Any]:
    return dict(collections.items())
