"""Multilayer perceptrons of 1 to 1000 layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax

from dlexp import ops
from dlexp.checks import check_choice
from dlexp.models import initializers, layers
from dlexp.models.linen import from_linen
from dlexp.ops.choices import choose
from dlexp.types import Hyper, Key, Model, PyTree, Range

Block = Callable[[jax.Array, int, Hyper, Key, bool], jax.Array]

DROPOUT_RATE = Range(0.0, 1.0, open_high=True)
UNROLLED_LAYERS = 16  # more are scanned: compile time stops growing, a step takes 1.25 to 1.35 times as long
CHOOSABLE_LAYERS = 128  # up to so many, the plan of a sweep may choose to unroll them
FIRST = "first"  # name of the first layer's parameters


def dense_block(
    inputs: jax.Array,
    width: int,
    hyper: Hyper,
    key: Key,
    train: bool,
    *,
    activation: str = "relu",
    normalization: str = "none",
    placement: str = "before",
    dropout: str = "none",
    axis: int = -1,
    first: bool = False,
) -> jax.Array:
    """Returns dense, normalization, activation (or the last two in the other order), dropout: `[batch, width]`.

    With the features on axis 0, `[in, batch]` to `[width, batch]`; `first` says that the inputs are the data. It runs
    inside a compact method: an experiment's own block may create Linen layers the same way.
    """
    hidden = layers.Dense(width, axis, first)(inputs)
    if placement == "before":
        hidden = layers.normalize(hidden, normalization, train, axis)
    hidden = layers.activation_function(activation)(hidden)
    if placement == "after":
        hidden = layers.normalize(hidden, normalization, train, axis)
    if dropout == "none":
        return hidden
    return layers.dropout(hidden, hyper["dropout_rate"], key, train=train, convention=dropout, axis=axis)


def preactivation_block(
    inputs: jax.Array,
    width: int,
    hyper: Hyper,
    key: Key,
    train: bool,
    *,
    activation: str = "relu",
    normalization: str = "none",
    axis: int = -1,
) -> jax.Array:
    """Returns normalization, activation, dense: `[batch, width]`, the branch of a residual layer with mean zero.

    With the features on axis 0, `[in, batch]` to `[width, batch]`.
    Source: He et al., "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027.
    """
    hidden = layers.normalize(inputs, normalization, train, axis)
    return layers.Dense(width, axis)(layers.activation_function(activation)(hidden))


def _linear_block(
    inputs: jax.Array, width: int, hyper: Hyper, key: Key, train: bool, *, axis: int = -1, first: bool = False
) -> jax.Array:
    return layers.Dense(width, axis, first)(inputs)


class _Layer(nn.Module):
    block: Block
    width: int
    residual: bool
    train: bool
    scaled: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, key: Key, hyper: Hyper) -> tuple[jax.Array, None]:
        outputs = self.block(inputs, self.width, hyper, key, self.train)
        if self.scaled:
            outputs = hyper["branch_scale"] * outputs
        return (inputs + outputs if self.residual else outputs), None


class _MLP(nn.Module):
    first_block: Block
    block: Block
    has_own_block: bool
    widths: tuple[int, ...]
    num_outputs: int
    residual: bool
    scaled: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, hyper: Hyper, key: Key, train: bool) -> jax.Array:
        num_hidden = len(self.widths) - 1
        first_block: Callable[..., jax.Array] = self.first_block
        block: Callable[..., jax.Array] = self.block
        axis = -1
        if not self.has_own_block:
            axis = ops.feature_axis() if train and num_hidden <= UNROLLED_LAYERS else -1  # deeper ones gain little
            first_block, block = partial(first_block, axis=axis, first=True), partial(block, axis=axis)
        hidden = ops.to_feature_axis(inputs.reshape(len(inputs), -1).astype(float), axis)
        first_key, hidden_key = jax.random.split(key)
        if self.widths:
            hidden, _ = _Layer(first_block, self.widths[0], False, train, name=FIRST)(hidden, first_key, hyper)
        if len(set(self.widths)) > 1:
            keys = jax.random.split(hidden_key, num_hidden)
            for index, width in enumerate(self.widths[1:]):
                layer = _Layer(block, width, False, train, name=f"hidden_{index}")
                hidden, _ = layer(hidden, keys[index], hyper)
        elif num_hidden > 0:
            # One set of stacked parameters for both forms, so the choice never changes a network's weights.
            stack = nn.scan(
                _Layer,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=num_hidden,
                unroll=num_hidden if _is_unrolled(num_hidden) else 1,
            )(block, self.widths[0], self.residual, train, self.scaled, name=initializers.STACKED)
            hidden, _ = stack(hidden, jax.random.split(hidden_key, num_hidden), hyper)
        return ops.from_feature_axis(layers.Dense(self.num_outputs, axis, name="output")(hidden), axis)


def _is_unrolled(num_hidden: int) -> bool:
    if UNROLLED_LAYERS < num_hidden <= CHOOSABLE_LAYERS:
        return choose("layers", ("scanned", "unrolled")) == "unrolled"
    return num_hidden <= UNROLLED_LAYERS


def mlp(
    *,
    width: int | None = None,
    num_layers: int | None = None,
    widths: Sequence[int] | None = None,
    num_outputs: int,
    activation: str = "relu",
    normalization: str = "none",
    placement: str = "before",
    dropout: str = "none",
    residual: bool = False,
    preactivation: bool = False,
    scaled_branches: bool = False,
    initializer: str = "he",
    block: Block | None = None,
    hyper: Mapping[str, Range] | None = None,
) -> Model:
    """Returns a perceptron with `num_layers` layers of weights: `[batch, ...]` to `[batch, num_outputs]`.

    Its shape is `width` and `num_layers`, or `widths`. One layer is a linear model. Swept: `init_scale`, `bias_scale`,
    `dropout_rate` with dropout, and `branch_scale` with scaled branches.

    Args:
      width: units of each hidden layer.
      num_layers: layers of weights, the output layer among them, 1 to 1000; up to 16 hidden layers of equal shape
        are unrolled, more are scanned, 17 to 128 as the plan of a sweep chooses (`layers`).
      widths: units of each hidden layer, in place of `width` and `num_layers`: a bottleneck has a narrow one. Layers of
        unequal width are unrolled, at most 100 of them; with equal widths, the network is that of `width` and
        `num_layers`.
      num_outputs: classes, or targets of a regression.
      activation: name of a function in `jax.nn`.
      normalization: none, batch or layer.
      placement: of the normalization: before or after the activation.
      dropout: none, inverted (scaled in training) or classic (scaled at inference), after each hidden layer.
      residual: whether each hidden layer but the first adds its output to its input.
      preactivation: whether each hidden layer but the first is normalization, activation, dense, and the first only
        dense: the form in which the branches of a residual network have mean zero.
      scaled_branches: whether the swept `branch_scale` multiplies what a residual layer adds, `1 / sqrt(num_layers)`
        being the value that keeps the signal of a deep network bounded.
      initializer: zeros, constant, normal, glorot, he, lecun or orthogonal.
      block: `(inputs, width, hyper, key, train) -> outputs` in place of `dense_block`; the choices from
        `activation` to `dropout` are then its own affair.
      hyper: what else may be swept, for a block that reads it.

    Raises:
      ValueError: on a choice or a number that is none of these.
    """
    hidden_widths = _hidden_widths(width, num_layers, widths)
    if residual and len(set(hidden_widths)) > 1:
        raise ValueError(f"mlp: residual layers need equal widths, got {list(hidden_widths)}")
    _check_choices(activation, normalization, placement, dropout)
    chosen = block or partial(
        dense_block, activation=activation, normalization=normalization, placement=placement, dropout=dropout
    )
    if scaled_branches and not residual:
        raise ValueError("mlp: scaled_branches needs residual=True")
    if preactivation:
        if block or dropout != "none" or placement != "before":
            raise ValueError("mlp: preactivation goes with no own block, no dropout and no other placement")
        chosen = partial(preactivation_block, activation=activation, normalization=normalization)
    swept = {"dropout_rate": DROPOUT_RATE} if dropout != "none" else {}
    swept |= {"branch_scale": Range(0.0)} if scaled_branches else {}
    module = _MLP(
        first_block=_linear_block if preactivation else chosen,
        block=chosen,
        has_own_block=block is not None,
        widths=hidden_widths,
        num_outputs=num_outputs,
        residual=residual,
        scaled=scaled_branches,
    )
    model = from_linen(module, {**swept, **(hyper or {})}, initializer=initializer)
    return model if block or not hidden_widths else _with_first_layer_marked(model)


def _hidden_widths(width: int | None, num_layers: int | None, widths: Sequence[int] | None) -> tuple[int, ...]:
    if widths is None:
        for name, value, highest in (("width", width, 10**6), ("num_layers", num_layers, 1000)):
            if not isinstance(value, int) or not 1 <= value <= highest:
                raise ValueError(f"mlp: {name} must be an integer in [1, {highest}], got {value!r}")
        assert width is not None
        assert num_layers is not None
        return (width,) * (num_layers - 1)
    if width is not None or num_layers is not None:
        raise ValueError("mlp: widths stand in place of width and num_layers; give either")
    given = tuple(widths)
    most = 100 if len(set(given)) > 1 else 999
    if len(given) > most:
        raise ValueError(f"mlp: widths must be at most {most} (unequal ones are compiled one by one), got {len(given)}")
    for value in given:
        if not isinstance(value, int) or not 1 <= value <= 10**6:
            raise ValueError(f"mlp: widths must be integers in [1, 1000000], got {value!r}")
    return given


def _check_choices(activation: str, normalization: str, placement: str, dropout: str) -> None:
    layers.activation_function(activation)
    check_choice("mlp", "normalization", normalization, layers.NORMALIZATIONS)
    check_choice("mlp", "placement", placement, ("before", "after"))
    check_choice("mlp", "dropout", dropout, layers.DROPOUTS)


def _with_first_layer_marked(model: Model) -> Model:
    """The model whose parameters say which of them multiply the data (`dlexp.ops.FirstLayer`)."""

    def init(key: Key, values: Hyper, inputs: jax.Array) -> PyTree:
        variables = model.init(key, values, inputs)
        params = variables["params"]
        return {**variables, "params": {**params, FIRST: ops.FirstLayer(params[FIRST])}}

    return model._replace(init=init)
