"""Recurrent networks over sequences."""

from __future__ import annotations

import flax.linen as nn
import jax

from dlexp.models.layers import Dense, activation_function
from dlexp.models.linen import from_linen
from dlexp.types import Hyper, Key, Model, PyTree, Range

_UNROLL = 10  # steps written out in the loop over time: faster than one at a time, and still compiled once


class _Cell(nn.Module):
    width: int
    activation: str

    @nn.compact
    def __call__(self, hidden: jax.Array, driven: jax.Array) -> tuple[jax.Array, None]:
        recurrent = Dense(self.width, use_bias=False, name="recurrent")(hidden)
        return activation_function(self.activation)(driven + recurrent), None


class _RNN(nn.Module):
    width: int
    num_outputs: int
    activation: str

    @nn.compact
    def __call__(self, inputs: jax.Array, hyper: Hyper, key: Key, train: bool) -> jax.Array:
        if inputs.ndim != 3:
            raise ValueError(
                f"rnn: inputs must be [batch, time, feature], got shape {inputs.shape}; "
                "a signal of one feature needs an axis for it: inputs[..., None]"
            )
        driven = Dense(self.width, name="input")(inputs.astype(float))
        cell = nn.scan(_Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, unroll=_UNROLL)(
            self.width, self.activation, name="cell"
        )
        start = jax.numpy.zeros((len(inputs), self.width), driven.dtype)
        last, _ = cell(start, driven)
        return Dense(self.num_outputs, name="output")(last)


def rnn(*, width: int, num_outputs: int, activation: str = "tanh") -> Model:
    """Returns a recurrent network read out at the last step: `[batch, time, feature]` to `[batch, num_outputs]`.

    `h_t = phi(W h_(t-1) + U x_t + b)`; all weights normal with variance `init_scale^2` / inputs, W times the swept
    `recurrent_scale`, which at `init_scale` 1 is its spectral radius in a wide network. Swept: `init_scale`,
    `bias_scale`, `recurrent_scale`, with defaults 1, 0 and 1.

    Source: Elman, "Finding Structure in Time", 1990, https://doi.org/10.1207/s15516709cog1402_1.

    Args:
      width: hidden units.
      num_outputs: classes, or targets of a regression.
      activation: name of a function in `jax.nn`.

    Raises:
      ValueError: where there is no such activation; when it is traced, where inputs have other axes.
    """
    activation_function(activation)
    model = from_linen(_RNN(width, num_outputs, activation), initializer="lecun")

    def init(key: Key, hyper: Hyper, inputs: jax.Array) -> PyTree:
        variables = model.init(key, hyper, inputs)
        cell = variables["params"]["cell"]["recurrent"]
        scaled = {"recurrent": {"kernel": hyper["recurrent_scale"] * cell["kernel"]}}
        return {**variables, "params": {**variables["params"], "cell": scaled}}

    return Model(init, model.apply, {**model.hyper, "recurrent_scale": Range(0.0, default=1.0)})
