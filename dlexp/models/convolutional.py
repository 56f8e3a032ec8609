"""Convolutional networks over one or two spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlexp.choices import check_choice
from dlexp.models import layers, lowerings
from dlexp.models.linen import from_linen
from dlexp.types import Hyper, Key, Model, PyTree

_SLICES = range(64, 31, -1)  # examples evaluated at once


class ConvLayer(NamedTuple):
    """One convolution: `channels` filters of extent `kernel` in every spatial axis, then pooling over `pool`."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 1


class _CNN(nn.Module):
    input_shape: tuple[int, ...]
    conv_layers: tuple[ConvLayer, ...]
    dense_widths: tuple[int, ...]
    num_outputs: int
    activation: str
    normalization: str
    lowering: str | None

    @nn.compact
    def __call__(self, inputs: jax.Array, hyper: Hyper, key: Key, train: bool) -> jax.Array:
        activate = layers.activation_function(self.activation)
        hidden = inputs.reshape(len(inputs), *self.input_shape).astype(float)
        lowering = self.lowering or lowerings.choose_lowering(len(self.input_shape) - 1)
        is_last = lowering in lowerings.BATCH_LAST
        if is_last:
            hidden = jnp.swapaxes(hidden, 0, -1)
        for channels, kernel, stride, padding, pool in self.conv_layers:
            window = (kernel,) * (len(self.input_shape) - 1)
            hidden = layers.Conv(channels, window, stride, padding, lowering)(hidden)
            hidden = activate(layers.normalize(hidden, self.normalization, train, axis=0 if is_last else -1))
            hidden = layers.max_pool(hidden, pool)
        hidden = jnp.swapaxes(hidden, 0, -1) if is_last else hidden
        hidden = hidden.reshape(len(hidden), -1)
        for width in self.dense_widths:
            hidden = activate(layers.normalize(layers.Dense(width)(hidden), self.normalization, train))
        return layers.Dense(self.num_outputs, name="output")(hidden)


def cnn(
    *,
    input_shape: Sequence[int],
    conv_layers: Sequence[ConvLayer],
    num_outputs: int,
    dense_widths: Sequence[int] = (),
    activation: str = "relu",
    normalization: str = "none",
    initializer: str = "he",
    lowering: str | None = None,
) -> Model:
    """Returns convolutions, then dense layers: `[batch, ...]` to `[batch, num_outputs]`.

    Each layer is convolution (or dense), normalization, activation; pooling follows. Swept: `init_scale`,
    `bias_scale`.

    Args:
      input_shape: `(*space, channels)` of one example, one or two spatial axes; inputs are reshaped to it.
      conv_layers: the convolutions in order.
      num_outputs: classes, or targets of a regression.
      dense_widths: units of the dense layers between the convolutions and the output.
      activation: name of a function in `jax.nn`.
      normalization: none, batch or layer.
      initializer: zeros, constant, normal, glorot, he, lecun or orthogonal.
      lowering: how a convolution is computed (see `dlexp.models.lowerings.convolve`); None leaves it to the plan. Name
        one (`patches`) where forward-mode or second derivatives are taken (`jax.jvp`, `jax.hessian`): those for CPUs
        have none.

    Raises:
      ValueError: on a choice that is none of these, or more than two spatial axes.
    """
    if len(input_shape) not in (2, 3):
        raise ValueError(f"cnn: input_shape must be (*space, channels), one or two in space, got {input_shape}")
    layers.activation_function(activation)
    check_choice("cnn", "normalization", normalization, layers.NORMALIZATIONS)
    if lowering is not None:
        check_choice("cnn", "lowering", lowering, lowerings.LOWERINGS)
    module = _CNN(
        tuple(input_shape),
        tuple(ConvLayer(*layer) for layer in conv_layers),
        tuple(dense_widths),
        num_outputs,
        activation,
        normalization,
        lowering,
    )
    model = from_linen(module, initializer=initializer)
    return _evaluated_in_slices(model._replace(is_separable=normalization != "batch"))


def _evaluated_in_slices(model: Model) -> Model:
    """The model that goes through many examples a part at a time where it does not train: its layers stay in caches.

    Measured on a CPU: 1,000 images are evaluated in 0.4 of the time.
    """

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        size = _slice_size(len(inputs))
        if train or size == len(inputs):
            return model.apply(variables, values, inputs, key=key, train=train)

        def some(inputs: jax.Array) -> jax.Array:
            return model.apply(variables, values, inputs, key=key, train=False)[0]

        outputs = jax.lax.map(some, inputs.reshape(-1, size, *inputs.shape[1:]))
        return outputs.reshape(len(inputs), *outputs.shape[2:]), variables

    return model._replace(apply=apply)


def _slice_size(num_examples: int) -> int:
    """The largest divisor that is a batch of usual size; all of them off the CPU, or where there is none."""
    if jax.default_backend() != "cpu":
        return num_examples
    return next((size for size in _SLICES if num_examples % size == 0), num_examples)
