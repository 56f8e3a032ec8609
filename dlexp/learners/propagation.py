"""A learner that trains nothing: how signal and gradient pass through a deep network at initialization."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlexp.checks import check_choice
from dlexp.learners import checks
from dlexp.models import initializers, layers
from dlexp.types import Hyper, Key, Learner, Metrics, Range

_EPS = 1e-5  # in the normalization's variance


class _Weights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def propagation(
    inputs: np.ndarray,
    *,
    width: int,
    num_layers: int,
    activation: str,
    normalization: str = "none",
    residual: bool = False,
    initializer: str = "lecun",
) -> Learner:
    """Returns the learner that measures every layer of a random network, once, on one batch.

    Metrics, all `[layer]`: `layer/variance`, the mean square of the pre-activations; `layer/log_gradient`, the log
    squared norm of the gradient at the layer's pre-activations relative to the last layer's, of a random linear
    function of the last layer. The gradient is rescaled layer by layer, so 1000 layers do not underflow. Swept:
    `init_scale` (sigma_w where the initializer is lecun), `bias_scale` (sigma_b) and, with skips, `branch_scale`.

    Args:
      inputs: `[batch, num_features]`.
      width: units a layer.
      num_layers: hidden layers.
      activation: name of a function in `jax.nn`.
      normalization: none, or batch: over the batch, before the activation.
      residual: whether each layer but the first adds what it gives, times `branch_scale`, to its input.
      initializer: as in `models.mlp`.

    Raises:
      ValueError: on a choice that is none of these, or inputs of another shape or not finite.
    """
    check_choice("propagation", "normalization", normalization, ("none", "batch"))
    initializers.check(initializer, "propagation")
    if np.ndim(inputs) != 2:
        raise ValueError(f"propagation: inputs must be [batch, num_features], got shape {np.shape(inputs)}")
    checks.check_numbers("propagation", {"inputs": np.asarray(inputs)})
    activate = layers.activation_function(activation)

    def init(key: Key, hyper: Hyper, data: Any) -> dict[str, _Weights]:
        def drawn(key: Key, num: int, fan_in: int) -> _Weights:
            normals = jax.random.normal(key, (num, fan_in + 1, width))
            kernel = initializers.kernel(initializer, normals[:, :-1], stacked=True)
            return _Weights(hyper["init_scale"] * kernel, hyper["bias_scale"] * normals[:, -1])

        first_key, hidden_key = jax.random.split(key)
        return {"first": drawn(first_key, 1, data.shape[-1]), "hidden": drawn(hidden_key, num_layers - 1, width)}

    def layer(hyper: Hyper, weights: _Weights, before: jax.Array) -> jax.Array:
        """From one layer's pre-activations to the next's."""
        after = _activated(before) @ weights.kernel + weights.bias
        return before + hyper["branch_scale"] * after if residual else after

    def _activated(pre: jax.Array) -> jax.Array:
        if normalization == "batch":
            pre = (pre - pre.mean(axis=0)) * jax.lax.rsqrt(pre.var(axis=0) + _EPS)
        return activate(pre)

    def evaluate(key: Key, hyper: Hyper, data: Any, state: dict[str, _Weights]) -> Metrics:
        first, step = jax.tree.map(lambda leaf: leaf[0], state["first"]), partial(layer, hyper)
        start = data @ first.kernel + first.bias
        last, passed = jax.lax.scan(lambda h, w: (step(w, h), h), start, state["hidden"])
        squares = jnp.mean(jnp.concatenate([passed, last[None]]) ** 2, axis=(1, 2))
        logs = _log_gradients(step, state["hidden"], passed, jax.random.normal(key, last.shape))
        return {"layer/variance": squares, "layer/log_gradient": logs}

    swept = initializers.HYPER | ({"branch_scale": Range(0.0, default=1.0)} if residual else {})
    return Learner(np.asarray(inputs, np.float32), swept, init, None, evaluate)


def _log_gradients(
    layer: Callable[[_Weights, jax.Array], jax.Array], weights: _Weights, passed: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Log squared gradient norms `[layer]` relative to the last, from each layer's input and the last cotangent."""

    def back(carry: tuple[jax.Array, jax.Array], at: tuple[_Weights, jax.Array]) -> tuple[Any, jax.Array]:
        direction, log_square = carry
        pulled = jax.vjp(lambda before: layer(at[0], before), at[1])[1](direction)[0]
        square = jnp.sum(pulled**2)
        total = log_square + jnp.log(square)
        return (pulled * jax.lax.rsqrt(square), total), total

    unit = cotangent / jnp.linalg.norm(cotangent)
    _, logs = jax.lax.scan(back, (unit, jnp.zeros(())), (weights, passed), reverse=True)
    return jnp.concatenate([logs, jnp.zeros(1)])
