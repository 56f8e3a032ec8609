"""Convolutional networks over one or two spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlexp import ops
from dlexp.checks import check_choice
from dlexp.models import layers
from dlexp.models.linen import from_linen
from dlexp.ops import convolution
from dlexp.types import Hyper, Key, Model, PyTree


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
        if math.prod(inputs.shape[1:]) != math.prod(self.input_shape):
            raise ValueError(f"cnn: inputs [batch, ...] must hold {self.input_shape} numbers each, got {inputs.shape}")
        hidden = inputs.reshape(len(inputs), *self.input_shape).astype(float)
        lowering = self.lowering or convolution.choose_lowering(len(self.input_shape) - 1)
        axis = convolution.feature_axis(lowering)
        hidden = jnp.swapaxes(hidden, 0, -1) if axis == 0 else hidden
        for channels, kernel, stride, padding, pool in self.conv_layers:
            window = (kernel,) * (len(self.input_shape) - 1)
            hidden = layers.Conv(channels, window, stride, padding, lowering, axis)(hidden)
            hidden = activate(layers.normalize(hidden, self.normalization, train, axis))
            hidden = layers.max_pool(hidden, pool)
        hidden = jnp.swapaxes(hidden, 0, -1) if axis == 0 else hidden
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
      lowering: how a convolution is computed (see `dlexp.ops.convolve`); None leaves it to the plan. Name
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
        check_choice("cnn", "lowering", lowering, convolution.LOWERINGS)
    module = _CNN(
        input_shape=tuple(input_shape),
        conv_layers=tuple(ConvLayer(*layer) for layer in conv_layers),
        dense_widths=tuple(dense_widths),
        num_outputs=num_outputs,
        activation=activation,
        normalization=normalization,
        lowering=lowering,
    )
    model = from_linen(module, initializer=initializer)
    return _evaluated_in_slices(model._replace(is_separable=normalization != "batch"))


def _evaluated_in_slices(model: Model) -> Model:
    """The model that takes many examples a part at a time where it does not train.

    With batch normalization, too: it is not separable in training, but in evaluation it is.
    """

    def apply(
        variables: PyTree, values: Hyper, inputs: jax.Array, *, key: Key, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if train:
            return model.apply(variables, values, inputs, key=key, train=True)

        def some(inputs: jax.Array) -> jax.Array:
            return model.apply(variables, values, inputs, key=key, train=False)[0]

        return ops.in_slices(some, inputs), variables

    return model._replace(apply=apply)
