"""Networks by what is known of them exactly."""

from __future__ import annotations

from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlexp import learners, losses, models, optim
from dlexp.data import Dataset, bundled, mnist1d
from dlexp.models import initializers, layers, perceptron
from dlexp.ops import batches, convolution, winograd
from dlexp.ops.choices import recording_choices, with_choices
from dlexp.sweep import cost, grid
from dlexp.sweep.grids import Run
from dlexp.sweep.pace import Layout
from dlexp.sweep.plan import full_hyper
from dlexp.types import Model, Range
from tests.conftest import finished, metric

KEY = jax.random.key(0)


def defaults(model, **given):
    return {name: given.get(name, legal.default) for name, legal in model.hyper.items()}


def initial(model, inputs, **given):
    return model.init(KEY, defaults(model, **given), inputs)


def outputs(model, variables, inputs, *, train=False, key=KEY, **given):
    return model.apply(variables, defaults(model, **given), inputs, key=key, train=train)[0]


def mnist1d_cnn(**options):
    conv = [models.ConvLayer(25, 5, 2, 1), models.ConvLayer(25, 3, 2, 1), models.ConvLayer(25, 3, 2, 1)]
    return models.cnn(input_shape=(40, 1), conv_layers=conv, num_outputs=10, **options)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.mlp(width=1, num_layers=1, num_outputs=10), 410),
        (models.mlp(width=100, num_layers=3, num_outputs=10, residual=True), 15_210),
        (mnist1d_cnn(), 5_210),
    ],
    ids=["logistic", "mlp", "cnn"],
)
def test_the_networks_of_mnist1d_have_their_published_sizes(model, expected):
    assert layers.num_params(initial(model, jnp.zeros((1, 40)))) == expected


@pytest.mark.parametrize("num_space", [1, 2])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("own", [*(name for name in convolution.LOWERINGS if name != "native"), "batch_last, by rows"])
def test_every_lowering_of_a_convolution_equals_the_librarys(monkeypatch, own, num_space, stride, padding):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, *(11, 9)[:num_space], 6))
    kernel = rng.normal(size=(*(3, 2)[:num_space], 6, 5))
    options = {"stride": stride, "padding": padding}
    if own == "batch_last, by rows":
        monkeypatch.setattr(convolution, "_PATCH_BYTES", 1)
    own = own.partition(",")[0]

    def both(function):
        return [function(lowering) for lowering in (own, "native")]

    ours, theirs = both(lambda lowering: convolution.convolve(inputs, kernel, lowering=lowering, **options))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)

    def squares(inputs, kernel, lowering):
        return jnp.sum(convolution.convolve(inputs, kernel, lowering=lowering, **options) ** 2)

    ours, theirs = both(lambda lowering: jax.grad(squares, (0, 1))(inputs, kernel, lowering))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


def test_relu_and_its_derivative_are_those_of_jax_to_the_bit():
    relu, inputs = (
        layers.activation_function("relu"),
        jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 1e-30, 2.0, jnp.inf, jnp.nan]),
    )
    for ours, theirs in zip(*(jax.vmap(jax.value_and_grad(f))(inputs) for f in (relu, jax.nn.relu)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_convolution_moves_with_its_input():
    signal = np.zeros((1, 30, 1), np.float32)
    signal[0, 10:14, 0] = [1, -2, 3, 1]
    kernel = jax.random.normal(KEY, (5, 1, 3))
    moved = convolution.convolve(np.roll(signal, 4, axis=1), kernel)
    np.testing.assert_array_equal(moved, np.roll(convolution.convolve(signal, kernel), 4, axis=1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("extents", [(1, 2), (8, 7), (13, 6)])  # one tile, one band of two rows, two of them
def test_windows_of_three_by_three_are_multiplied_tile_by_tile(extents, monkeypatch):
    monkeypatch.setattr(winograd, "_MOST_COLUMNS", 4 * 4)
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(4, *extents, 8)), rng.normal(size=(3, 3, 8, 5))

    def gradient(lowering):
        def squares(inputs, kernel):
            return jnp.sum(convolution.convolve(inputs, kernel, padding=1, lowering=lowering) ** 2)

        return jax.jit(jax.grad(squares, (0, 1)))(inputs, kernel)

    for one, other in zip(gradient("winograd"), gradient("native"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_tiles_take_a_quarter_of_the_multiplications_and_round_in_the_sixth_digit():
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(4, 16, 16, 64)), rng.normal(size=(3, 3, 64, 64))

    def convolve(lowering, dtype=np.float32):
        return convolution.convolve(inputs.astype(dtype), kernel.astype(dtype), padding=1, lowering=lowering)

    def flops(lowering):
        return cost.of(cost.traced(lambda: convolve(lowering))).flops

    assert flops("winograd") < 0.4 * flops("batch_last")  # sums are counted too
    exact = convolve("native", np.float64)
    errors = {lowering: np.abs(convolve(lowering) - exact).max() for lowering in ("winograd", "batch_last")}
    assert errors["batch_last"] < errors["winograd"] < 1e-5 * np.abs(exact).max()


@pytest.mark.usefixtures("x64")
def test_tiles_of_many_runs_are_those_of_each(monkeypatch):
    monkeypatch.setattr(winograd, "_MOST_COLUMNS", 1)
    keys = jax.random.split(KEY, 2)
    inputs, kernels = jax.random.normal(keys[0], (3, 2, 8, 6, 8, 4)), jax.random.normal(keys[1], (3, 2, 3, 3, 8, 5))

    def gradient(inputs, kernel):
        return jax.grad(lambda *args: jnp.sum(jnp.sin(winograd.convolve(*args, 1))), (0, 1))(inputs, kernel)

    for axes, args in (((0, 0), (inputs[:, 0], kernels[:, 0])), ((None, 0), (inputs[0, 0], kernels[:, 0]))):
        each = [
            gradient(*(arg if axis is None else arg[run] for arg, axis in zip(args, axes, strict=True)))
            for run in range(3)
        ]
        jax.tree.map(
            lambda ours, *alone: np.testing.assert_allclose(ours, np.stack(alone), rtol=1e-9, atol=1e-9),
            jax.vmap(gradient, axes)(*args),
            *each,
        )
    nested = jax.vmap(jax.vmap(gradient))(inputs, kernels)[1]
    np.testing.assert_allclose(nested[2, 1], gradient(inputs[2, 1], kernels[2, 1])[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kernel_shape", "stride", "expected"),
    [
        ((3, 3, 16, 32), 1, True),
        ((3, 3, 16, 32), 2, False),
        ((3, 3, 1, 16), 1, False),
        ((5, 5, 16, 32), 1, False),
        ((3, 5, 16, 32), 1, False),
        ((3, 16, 32), 1, False),
    ],
)
def test_other_windows_than_of_three_by_three_are_convolved_as_patches(kernel_shape, stride, expected):
    assert winograd.suits(kernel_shape, stride) is expected


def test_max_pooling_takes_the_largest_of_each_block_and_cuts_rests():
    image = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(layers.max_pool(image, 2)[0, :, :, 0], [[6, 8], [16, 18]])


@pytest.mark.usefixtures("x64")
def test_the_derivative_of_max_pooling_is_jaxs_own_with_ties():
    image = np.random.default_rng(0).integers(0, 3, (2, 6, 4, 3)).astype(float)

    def plain(image):
        return image.reshape(2, 3, 2, 2, 2, 3).max((2, 4))

    ours, theirs = (jax.jacrev(function)(image) for function in (lambda image: layers.max_pool(image, 2), plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)
    assert ours.min() == 0 < ours[ours > 0].min() <= 0.5  # some were shared
    np.testing.assert_allclose(jax.jacfwd(lambda image: layers.max_pool(image, 2))(image), theirs, rtol=1e-15)


def test_every_initializer_has_its_variance():
    # The sample variance of n normal numbers has relative standard error sqrt(2 / n); 4 of them.
    shape = {"layer": {"kernel": jax.ShapeDtypeStruct((300, 200), float)}}
    expected = {"normal": 1.0, "glorot": 2 / 500, "he": 2 / 300, "lecun": 1 / 300, "orthogonal": 1 / 300}
    for name, variance in expected.items():
        hyper = {"init_scale": 0.5, "bias_scale": 0.0}
        kernel = initializers.draw(KEY, shape, hyper, name)["layer"]["kernel"]
        assert kernel.var() == pytest.approx(0.25 * variance, rel=4 * np.sqrt(2 / 60_000))
        assert abs(kernel.mean()) < 4 * np.sqrt(0.25 * variance / 60_000)


def test_fans_of_stacked_and_convolution_kernels_leave_out_layers_and_count_windows():
    shapes = {
        "stacked_layers": {"kernel": jax.ShapeDtypeStruct((50, 30, 30), float)},
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 20, 40), float)},
    }
    drawn = initializers.draw(KEY, shapes, {"init_scale": 1.0, "bias_scale": 0.0}, "he")
    assert drawn["stacked_layers"]["kernel"].var() == pytest.approx(2 / 30, rel=4 * np.sqrt(2 / 45_000))
    assert drawn["conv"]["kernel"].var() == pytest.approx(2 / 180, rel=4 * np.sqrt(2 / 7_200))


def test_orthogonal_weights_are_orthogonal_in_either_orientation():
    for shape in ((40, 40), (40, 30), (30, 40)):
        kernel = initializers.draw(
            KEY,
            {"kernel": jax.ShapeDtypeStruct(shape, float)},
            {"init_scale": 1.0, "bias_scale": 0.0},
            "orthogonal",
        )["kernel"]
        product_ = kernel.T @ kernel if shape[0] >= shape[1] else kernel @ kernel.T
        np.testing.assert_allclose(product_, np.eye(min(shape)), atol=1e-5)  # float32


def test_zeros_and_constant_initializers_are_what_they_say():
    model = models.mlp(width=4, num_layers=3, num_outputs=2, initializer="constant")
    kernels = [leaf for leaf in jax.tree.leaves(initial(model, jnp.zeros((1, 3)), init_scale=0.3)) if leaf.ndim > 1]
    assert all((np.asarray(kernel)[..., :1] == np.float32(0.3)).all() for kernel in kernels if kernel.shape[-1] == 2)
    zeros = models.mlp(width=4, num_layers=3, num_outputs=2, initializer="zeros")
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(initial(zeros, jnp.zeros((1, 3)))))


def test_constant_initialization_keeps_hidden_units_identical_for_ever():
    model = models.mlp(width=16, num_layers=3, num_outputs=10, activation="tanh", initializer="constant")
    made = learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), bundled.load("digits"), batch_size=32)
    hyper = full_hyper(made, Run({}, {"learning_rate": 0.01, "init_scale": 0.1}, 0))
    state = made.init(KEY, hyper, made.data)
    update = jax.jit(made.step)
    start = jax.tree.leaves(state.params)
    for step in range(50):
        state, _ = update(jax.random.fold_in(KEY, step), hyper, made.data, state)
    first = np.asarray(state.params["first"]["Dense_0"]["kernel"])
    assert not np.array_equal(start[0], jax.tree.leaves(state.params)[0])  # it did learn
    # Units that start equal get equal gradients; only the order of a sum could part them, hence 1e-5.
    np.testing.assert_allclose(first, np.broadcast_to(first[:, :1], first.shape), atol=1e-5)
    second = np.asarray(state.params["stacked_layers"]["Dense_0"]["kernel"][0])
    np.testing.assert_allclose(second, np.full_like(second, second[0, 0]), atol=1e-5)


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_scanned_and_unrolled_layers_are_the_same_network(monkeypatch, normalization):
    inputs = jax.random.normal(KEY, (8, 5))
    made = []
    for unrolled in (100, 1):
        monkeypatch.setattr(perceptron, "UNROLLED_LAYERS", unrolled)
        model = models.mlp(width=6, num_layers=7, num_outputs=3, normalization=normalization, dropout="inverted")
        variables = initial(model, inputs, dropout_rate=0.5)
        result = outputs(model, variables, inputs, train=True, dropout_rate=0.5)
        gradient = jax.grad(
            lambda v, model=model: jnp.sum(outputs(model, v, inputs, train=True, dropout_rate=0.5) ** 2)
        )(variables)
        made.append((variables, result, gradient))
    for ours, theirs in zip(jax.tree.leaves(made[0]), jax.tree.leaves(made[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)  # float32, 7 layers


def test_a_thousand_layers_run_forward_and_backward():
    model = models.mlp(width=8, num_layers=1000, num_outputs=2, activation="tanh", initializer="orthogonal")
    inputs = jnp.ones((2, 4))
    variables = initial(model, inputs)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(outputs(model, v, inputs))))(variables)
    assert variables["params"]["stacked_layers"]["Dense_0"]["kernel"].shape == (998, 8, 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_residual_block_of_zeros_is_the_identity():
    plain = models.mlp(width=6, num_layers=2, num_outputs=3)
    deep = models.mlp(width=6, num_layers=9, num_outputs=3, residual=True)
    inputs = jax.random.normal(KEY, (4, 5))
    variables = initial(deep, inputs)
    variables["params"]["stacked_layers"] = jax.tree.map(jnp.zeros_like, variables["params"]["stacked_layers"])
    shallow = {"params": {name: variables["params"][name] for name in ("first", "output")}}
    np.testing.assert_array_equal(outputs(deep, variables, inputs), outputs(plain, shallow, inputs))


@pytest.mark.parametrize(("normalization", "axis"), [("batch", -1), ("batch", 0), ("layer", -1), ("layer", 0)])
@pytest.mark.parametrize("offset", [0.0, 1000.0, 4096.0, -1e5])
def test_inputs_far_from_zero_are_normalized_to_mean_zero_and_deviation_one(normalization, axis, offset):
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return layers.normalize(inputs, normalization, True, axis)

    inputs = offset + jnp.where(jax.random.bernoulli(KEY, shape=(256, 256)), 1.0, -1.0)
    outputs, _ = Normalized().init_with_output(KEY, inputs)
    over = (axis if normalization == "layer" else -1 - axis) % 2
    np.testing.assert_allclose(outputs.std(axis=over), 1.0, atol=0.01)
    np.testing.assert_allclose(outputs.mean(axis=over), 0.0, atol=0.02)  # a mean of 1e5 has steps of 0.008


def test_batch_normalized_layers_do_not_see_the_scale_of_their_weights():
    model = models.mlp(width=32, num_layers=2, num_outputs=3, normalization="batch")
    inputs = jax.random.normal(KEY, (64, 10))
    variables = initial(model, inputs)
    scaled = jax.tree.map(lambda leaf: leaf, variables)
    scaled["params"]["first"]["Dense_0"] = jax.tree.map(lambda w: 7.0 * w, variables["params"]["first"]["Dense_0"])
    # BatchNorm divides by sqrt(var + 1e-5), so the scale is seen at relative size 1e-5 / var.
    np.testing.assert_allclose(
        outputs(model, variables, inputs, train=True),
        outputs(model, scaled, inputs, train=True),
        rtol=1e-3,
        atol=1e-4,
    )


def test_batch_statistics_travel_and_are_used_at_inference():
    model = models.mlp(width=4, num_layers=2, num_outputs=2, normalization="batch")
    inputs = 3 + 2 * jax.random.normal(KEY, (256, 5))
    variables = initial(model, inputs)
    fresh = variables
    for _ in range(100):
        _, variables = model.apply(variables, defaults(model), inputs, key=KEY, train=True)
    trained = outputs(model, variables, inputs, train=True)
    np.testing.assert_allclose(outputs(model, variables, inputs), trained, rtol=1e-2, atol=1e-2)
    assert not np.allclose(outputs(model, fresh, inputs), trained, atol=0.1)


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_normalization_stands_where_it_was_put(normalization, placement):
    seen = {}

    def block(inputs, width, hyper, key, train):
        seen["out"] = models.dense_block(
            inputs, width, hyper, key, train, normalization=normalization, placement=placement
        )
        return seen["out"]

    model = models.mlp(width=64, num_layers=2, num_outputs=2, block=block)
    inputs = jax.random.normal(KEY, (128, 10))
    outputs(model, initial(model, inputs), inputs, train=True)
    axis = 0 if normalization == "batch" else 1
    smallest, mean = float(seen["out"].min()), np.abs(seen["out"].mean(axis=axis)).max()
    assert (smallest >= 0) == (placement == "before")
    assert (mean < 1e-4) == (placement == "after")


@pytest.mark.usefixtures("x64")
def test_the_geometric_mean_over_all_dropout_masks_is_weight_scaling_for_softmax_regression():
    rng = np.random.default_rng(0)
    dim, rate = 8, 0.3
    weights, bias, x = rng.normal(size=(dim, 3)), rng.normal(size=3), rng.normal(size=dim)
    log_mean = np.zeros(3)
    for mask in product((0, 1), repeat=dim):
        probability = np.prod([1 - rate if kept else rate for kept in mask])
        log_mean += probability * np.asarray(jax.nn.log_softmax((x * mask) @ weights + bias))
    scaled = layers.dropout(jnp.asarray(x), jnp.asarray(rate), KEY, train=False, convention="classic")
    expected = jax.nn.log_softmax(scaled @ weights + bias)
    np.testing.assert_allclose(log_mean - jax.nn.logsumexp(log_mean), expected, rtol=1e-12)


def test_both_dropout_conventions_are_one_network_up_to_the_next_layers_weights():
    rate = 0.4
    inverted, classic = (
        models.mlp(width=32, num_layers=2, num_outputs=10, dropout=name) for name in ("inverted", "classic")
    )
    data = bundled.load("digits")
    inputs = data.test.inputs[:50]
    made = learners.supervised(inverted, losses.softmax_cross_entropy, optim.adam(), data, batch_size=32)
    hyper = full_hyper(made, Run({}, {"learning_rate": 0.01, "dropout_rate": rate}, 0))
    state, update = made.init(KEY, hyper, made.data), jax.jit(made.step)
    for step in range(100):
        state, _ = update(jax.random.fold_in(KEY, step), hyper, made.data, state)
    variables = {"params": state.params}
    assert float(made.evaluate(KEY, hyper, made.data, state)["test/accuracy"]) > 0.9
    rescaled = jax.tree.map(lambda leaf: leaf, variables)
    rescaled["params"]["output"]["kernel"] = variables["params"]["output"]["kernel"] / (1 - rate)
    for train in (True, False):
        ours = outputs(inverted, variables, inputs, train=train, dropout_rate=rate)
        theirs = outputs(classic, rescaled, inputs, train=train, dropout_rate=rate)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        wrong = outputs(classic, variables, inputs, train=train, dropout_rate=rate)
        assert np.abs(wrong - ours).max() > 0.1


def test_dropout_keeps_the_mean_and_has_its_variance():
    rate, count = 0.25, 200_000
    dropped = layers.dropout(jnp.ones(count), jnp.asarray(rate), KEY, train=True, convention="inverted")
    variance = rate / (1 - rate)
    assert abs(float(dropped.mean()) - 1) < 4 * np.sqrt(variance / count)
    assert float(dropped.var()) == pytest.approx(variance, rel=0.02)


def test_the_rate_of_dropout_is_swept(devices):
    def make_learner(config, num_steps):
        model = models.mlp(width=16, num_layers=2, num_outputs=10, dropout="inverted")
        data = bundled.load("digits")
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=16)

    sweep = grid(hyper={"learning_rate": (0.1,), "dropout_rate": (0.0, 0.5)})
    rows = finished(sweep, devices, make_learner=make_learner)
    assert metric(rows, (0.1, 0.0, 0), "batch/loss")[-1] < metric(rows, (0.1, 0.5, 0), "batch/loss")[-1]


def test_convolutional_networks_agree_in_every_lowering():
    inputs = jax.random.normal(KEY, (4, 64))
    made = []
    for lowering in convolution.LOWERINGS:
        conv = [models.ConvLayer(6, 3, padding=1, pool=2), models.ConvLayer(8, 3, padding=1, pool=2)]
        model = models.cnn(
            input_shape=(8, 8, 1), conv_layers=conv, dense_widths=(12,), num_outputs=10, lowering=lowering
        )
        made.append(outputs(model, initial(model, inputs), inputs))
    for other in made[1:]:
        np.testing.assert_allclose(made[0], other, rtol=1e-5, atol=1e-5)


def test_images_kept_as_bytes_are_cast_in_the_network():
    model = models.mlp(width=4, num_layers=2, num_outputs=2)
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    variables = initial(model, images)
    np.testing.assert_array_equal(
        outputs(model, variables, images), outputs(model, variables, images.astype(np.float32))
    )


def test_logistic_regression_reaches_its_accuracy_on_mnist1d(devices):
    def make_learner(config, num_steps):
        model = models.mlp(width=1, num_layers=1, num_outputs=10)
        data = mnist1d.load()
        return learners.supervised(
            model,
            losses.softmax_cross_entropy,
            optim.momentum(),
            data,
            batch_size=None,
            num_train_evaluated=4000,
        )

    sweep = grid(hyper={"learning_rate": (0.5,)}, seeds=1)
    alone = Layout(1)  # the usual width would train seven copies beside it
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=4000, num_evals=1, layout=alone)
    # The maximum-likelihood solution: train cross-entropy 1.58325, test accuracy 32.4%.
    assert metric(rows, (0.5, 0), "train/loss")[-1] == pytest.approx(1.58325, abs=1e-3)
    assert metric(rows, (0.5, 0), "test/accuracy")[-1] == pytest.approx(0.324, abs=2e-3)


def test_choices_that_do_not_exist_in_a_layer_are_named():
    with pytest.raises(ValueError, match="normalization must be one of"):
        layers.normalize(jnp.ones((2, 2)), "bacth", True)
    with pytest.raises(ValueError, match="convention must be one of"):
        layers.dropout(jnp.ones(3), jnp.asarray(0.5), KEY, train=True, convention="invrted")
    with pytest.raises(ValueError, match="lowering must be one of"):
        convolution.convolve(jnp.ones((1, 5, 1)), jnp.ones((3, 1, 1)), lowering="fast")


def test_a_block_of_ones_own_may_sweep_what_it_reads(devices):
    def block(inputs, width, hyper, key, train):
        return models.dense_block(inputs, width, hyper, key, train) * hyper["gain"]

    def make_learner(config, num_steps):
        model = models.mlp(width=8, num_layers=3, num_outputs=10, block=block, hyper={"gain": Range(0.0)})
        data = bundled.load("digits")
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=16)

    sweep = grid(hyper={"learning_rate": (0.1,), "gain": (0.0, 1.0)})
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=2)
    assert metric(rows, (0.1, 0.0, 0), "test/loss")[0] == pytest.approx(np.log(10), rel=1e-6)
    assert metric(rows, (0.1, 1.0, 0), "test/loss")[0] != pytest.approx(np.log(10), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be"),
        ({"num_layers": 1001}, "num_layers must be"),
        ({"width": 2.5}, "width must be"),
        ({"activation": "sine"}, "no activation named 'sine'"),
        ({"normalization": "group"}, "normalization must be one of"),
        ({"placement": "inside"}, "placement must be one of"),
        ({"dropout": "on"}, "dropout must be one of"),
        ({"initializer": "xavier"}, "no initializer named 'xavier'"),
    ],
)
def test_choices_that_do_not_exist_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.mlp(**{"width": 4, "num_layers": 2, "num_outputs": 2, **options})


def test_batches_larger_than_the_training_set_are_refused():
    data = bundled.load("iris")
    model = models.mlp(width=4, num_layers=2, num_outputs=3)
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 90\]"):
        learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=91)


def test_a_recurrent_network_is_its_recursion():
    model = models.rnn(width=5, num_outputs=2)
    hyper = {"init_scale": 1.0, "bias_scale": 0.3, "recurrent_scale": 1.5}
    inputs = jax.random.normal(jax.random.key(1), (3, 7, 2))
    variables = model.init(jax.random.key(0), hyper, inputs)
    outputs, _ = model.apply(variables, hyper, inputs, key=jax.random.key(2), train=True)
    params, hidden = variables["params"], np.zeros((3, 5))
    for step in range(7):
        driven = inputs[:, step] @ params["input"]["kernel"] + params["input"]["bias"]
        hidden = np.tanh(driven + hidden @ params["cell"]["recurrent"]["kernel"])
    expected = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(outputs, expected, atol=2e-6)  # float32, seven steps


def test_the_recurrent_scale_is_the_spectral_radius_of_a_wide_network():
    model = models.rnn(width=300, num_outputs=1)
    hyper = {"init_scale": 1.0, "bias_scale": 0.0, "recurrent_scale": 1.3}
    kernel = model.init(jax.random.key(0), hyper, jnp.zeros((1, 2, 2)))["params"]["cell"]["recurrent"]["kernel"]
    assert np.abs(np.linalg.eigvals(kernel)).max() == pytest.approx(1.3, rel=0.1)  # fluctuates by 1 / sqrt(width)


def test_residual_branches_of_scale_zero_leave_the_first_layer():
    hyper = {"init_scale": 1.0, "bias_scale": 0.1, "branch_scale": 0.0}
    inputs = jax.random.normal(jax.random.key(1), (4, 6))
    model = models.mlp(width=8, num_layers=30, num_outputs=3, residual=True, preactivation=True, scaled_branches=True)
    variables = model.init(jax.random.key(0), hyper, inputs)
    outputs, _ = model.apply(variables, hyper, inputs, key=jax.random.key(2), train=True)
    first, output = variables["params"]["first"]["Dense_0"], variables["params"]["output"]
    expected = (inputs @ first["kernel"] + first["bias"]) @ output["kernel"] + output["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_unscaled_branches_double_the_variance_and_scaled_ones_keep_it_below_e():
    inputs = jax.random.normal(jax.random.key(1), (8, 512))
    model = models.mlp(
        width=512, num_layers=12, num_outputs=512, residual=True, preactivation=True, scaled_branches=True
    )
    for scale, growth in ((1.0, 2.0**10), (10**-0.5, 1.1**10)):
        hyper = {"init_scale": 1.0, "bias_scale": 0.0, "branch_scale": scale}
        variables = model.init(jax.random.key(0), hyper, inputs)
        outputs, _ = model.apply(variables, hyper, inputs, key=jax.random.key(2), train=True)
        # he weights double the variance in the first and the output layer, too; 10% a layer at width 512 in all
        assert float(jnp.var(outputs)) == pytest.approx(2 * 2 * growth, rel=0.5)


def test_branches_are_scaled_in_residual_networks_alone():
    with pytest.raises(ValueError, match="scaled_branches needs residual=True"):
        models.mlp(width=4, num_layers=4, num_outputs=2, scaled_branches=True)
    with pytest.raises(ValueError, match="no own block, no dropout"):
        models.mlp(width=4, num_layers=4, num_outputs=2, preactivation=True, dropout="inverted")


def test_a_swept_training_size_is_the_same_as_a_smaller_data_set(devices):
    full = bundled.load("digits")
    small = full._replace(train=full.train._replace(inputs=full.train.inputs[:50], labels=full.train.labels[:50]))

    def make(data, sweep):
        def make_learner(config, num_steps):
            model = models.mlp(width=8, num_layers=2, num_outputs=10)
            tx, loss = optim.sgd(), losses.softmax_cross_entropy
            return learners.supervised(model, loss, tx, data, batch_size=16, sweep_num_train=sweep)

        return make_learner

    masked = grid(hyper={"num_train": (50, 900), "learning_rate": (0.1,)}, seeds=2)
    plain = grid(hyper={"learning_rate": (0.1,)}, seeds=2)
    by_mask = finished(masked, devices, make_learner=make(full, True))
    by_size = finished(plain, devices, make_learner=make(small, False))
    for seed in range(2):
        for name in ("train/loss", "train/accuracy", "test/loss", "batch/loss"):
            ours, theirs = metric(by_mask, (50, 0.1, seed), name), metric(by_size, (0.1, seed), name)
            np.testing.assert_allclose(ours, theirs, rtol=2e-5)  # float32, 20 steps, another order of sums
        larger, smaller = (metric(by_mask, (size, 0.1, seed), "test/loss") for size in (900, 50))
        assert not np.allclose(larger[1:], smaller[1:])


def test_standardised_bytes_are_the_numbers_they_stand_for():
    images = np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6)
    plain = models.mlp(width=5, num_layers=2, num_outputs=3)
    hyper, key = {"init_scale": 1.0, "bias_scale": 0.5}, jax.random.key(0)
    from_bytes = models.standardised(plain, mean=70.0, std=40.0)
    variables = from_bytes.init(key, hyper, images)
    ours, _ = from_bytes.apply(variables, hyper, images, key=key, train=True)
    theirs, _ = plain.apply(variables, hyper, (images.astype(np.float32) - 70) / 40, key=key, train=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    with pytest.raises(ValueError, match="std must be positive"):
        models.standardised(plain, mean=0.0, std=0.0)


def test_shifts_move_whole_images_with_zeros_behind_them_and_only_in_training():
    seen = []

    def apply(variables, hyper, inputs, *, key, train):
        seen.append(inputs)
        return inputs.reshape(len(inputs), -1), variables

    model = models.shifted(Model(lambda key, hyper, inputs: {"params": {}}, apply))
    images = np.random.default_rng(0).integers(1, 255, (50, 7, 7)).astype(np.uint8)
    model.apply({}, {"max_shift": 2}, images, key=jax.random.key(1), train=False)
    np.testing.assert_array_equal(seen[0], images)
    model.apply({}, {"max_shift": 0}, images, key=jax.random.key(1), train=True)
    np.testing.assert_array_equal(seen[1], images)
    model.apply({}, {"max_shift": 2}, images, key=jax.random.key(1), train=True)
    moves = set()
    for image, moved in zip(images, np.asarray(seen[2]), strict=True):
        candidates = [
            (down, right)
            for down, right in product(range(-2, 3), repeat=2)
            if np.array_equal(moved, np.pad(image, 2)[2 - down : 9 - down, 2 - right : 9 - right])
        ]
        assert len(candidates) == 1
        moves.add(candidates[0])
    assert len(moves) > 10  # of 25


@pytest.mark.parametrize("lowering", ["patches", "rows", "shifted"])
@pytest.mark.usefixtures("x64")
def test_a_large_batch_is_convolved_in_slices(monkeypatch, lowering):
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(12, 7, 7, 2)), rng.normal(size=(3, 3, 2, 4))

    def both(function):
        whole = function()
        monkeypatch.setattr(convolution, "_PATCH_BYTES", 12 * 49 * 18 * 8 // 5)  # in 5 slices it would fit, 6 divide 12
        assert convolution._num_slices(12 * 49 * 18 * 8, 12) == 6
        sliced = function()
        monkeypatch.undo()
        return whole, sliced

    ours, theirs = both(lambda: convolution.convolve(inputs, kernel, padding=1, lowering=lowering))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)

    def squares(kernel):
        return jnp.sum(convolution.convolve(inputs, kernel, padding=1, lowering=lowering) ** 2)

    ours, theirs = both(lambda: jax.grad(squares)(kernel))
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
    assert convolution._num_slices(2**28, 997) == 1  # a prime number of images


def test_many_examples_are_evaluated_in_slices(monkeypatch):
    inputs = jax.random.normal(KEY, (100, 40))
    for normalization in ("batch", "layer"):
        model = mnist1d_cnn(normalization=normalization)
        variables = initial(model, inputs)
        assert batches._slice_size(100) == 50
        assert batches._slice_size(97) == 97
        sliced = outputs(model, variables, inputs)
        monkeypatch.setattr(batches, "_SLICES", ())
        np.testing.assert_allclose(sliced, outputs(model, variables, inputs), rtol=1e-5, atol=1e-5)
        monkeypatch.undo()


def small_cnn(wrap=lambda model: model, **options):
    conv = [models.ConvLayer(4, 3, padding=1, pool=2)]
    model = wrap(models.cnn(input_shape=(8, 8, 1), conv_layers=conv, num_outputs=10, **options))
    data = jax.tree.map(jnp.asarray, bundled.load("digits"))
    data = Dataset(data.train._replace(inputs=data.train.inputs.reshape(-1, 8, 8)))
    return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=16)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="batches are cut for a CPU's caches")
@pytest.mark.usefixtures("x64")
def test_a_batch_in_quarters_makes_the_step_of_the_whole(monkeypatch):
    monkeypatch.setattr(batches, "_MANY", 0)
    each = small_cnn()
    hyper = {**{name: legal.default for name, legal in each.hyper.items()}, "learning_rate": 0.1}
    state = each.init(KEY, hyper, each.data)
    made = []
    for way in ("whole", "quarters"):
        with with_choices({"batch": way}):
            made.append(jax.jit(lambda state: each.step(KEY, hyper, each.data, state))(state))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12), *made)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="batches are cut for a CPU's caches")
@pytest.mark.parametrize(
    ("wrap", "normalization", "many", "may_be_cut"),
    [
        (lambda model: model, "layer", 16 * 64, True),
        (lambda model: model, "none", 16 * 64 + 1, False),
        (lambda model: models.standardised(model, mean=1.0, std=2.0), "none", 0, True),
        (lambda model: model, "batch", 0, False),
        (models.shifted, "none", 0, False),
    ],
    ids=["large", "small", "standardised", "batch statistics", "shifted at random"],
)
def test_batches_of_many_numbers_are_cut_where_no_example_sees_another(
    monkeypatch, wrap, normalization, many, may_be_cut
):
    monkeypatch.setattr(batches, "_MANY", many)
    each = small_cnn(wrap, normalization=normalization)
    hyper = {name: legal.default or 0 for name, legal in each.hyper.items()}
    with recording_choices() as recorded:
        jax.eval_shape(lambda: each.step(KEY, hyper, each.data, each.init(KEY, hyper, each.data)))
    assert ("batch" in recorded) == may_be_cut


def test_layers_of_a_perceptron_may_have_widths_of_their_own():
    """An autoencoder of linear layers: the outputs are the product of the kernels."""
    inputs = jax.random.normal(KEY, (6, 5))
    model = models.mlp(widths=(4, 2, 3), num_outputs=5, activation="identity", initializer="lecun")
    variables = initial(model, inputs)
    params = jax.tree.map(np.asarray, dict(variables["params"]))
    first = jax.tree.leaves(params["first"])
    kernels = [next(leaf for leaf in first if leaf.ndim == 2)]
    kernels += [params[f"hidden_{index}"]["Dense_0"]["kernel"] for index in range(2)] + [params["output"]["kernel"]]
    assert [kernel.shape for kernel in kernels] == [(5, 4), (4, 2), (2, 3), (3, 5)]
    expected = np.linalg.multi_dot([np.asarray(inputs), *kernels])
    for train in (False, True):
        np.testing.assert_allclose(outputs(model, variables, inputs, train=train), expected, rtol=1e-4, atol=1e-5)


def test_equal_widths_are_the_network_of_that_width():
    inputs = jax.random.normal(KEY, (6, 5))
    pair = [
        initial(model, inputs)
        for model in (
            models.mlp(widths=(4, 4), num_outputs=2),
            models.mlp(width=4, num_layers=3, num_outputs=2),
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, *pair)
    linear = models.mlp(widths=(), num_outputs=2)
    assert models.num_params(initial(linear, inputs)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4, 0)}, r"widths must be integers in \[1, 1000000\], got 0"),
        ({"widths": (4, 2), "width": 4}, "give either"),
        ({"widths": (4, 2), "residual": True}, r"residual layers need equal widths, got \[4, 2\]"),
        ({"widths": tuple(range(1, 102))}, "widths must be at most 100"),
        ({"width": 4}, r"num_layers must be an integer in \[1, 1000\], got None"),
    ],
)
def test_widths_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.mlp(num_outputs=2, **options)


def test_embeddings_and_attention_are_initialized_by_the_fans_of_what_they_compute():
    """He, LeCun and Glorot give variances 2 / in, 1 / in and 2 / (in + out): of 1 look-up, of 64 inputs to 8 x 16."""

    class Attending(nn.Module):
        @nn.compact
        def __call__(self, inputs, hyper, key, train):
            hidden = nn.Embed(1000, 64)(inputs)
            return nn.MultiHeadDotProductAttention(num_heads=8, qkv_features=128, out_features=96)(hidden)

    tokens = jnp.zeros((2, 3), int)
    expected = {
        "he": {"embedding": 2.0, "query": 2 / 64, "value": 2 / 64, "out": 2 / 128},
        "lecun": {"embedding": 1.0, "query": 1 / 64, "value": 1 / 64, "out": 1 / 128},
        "glorot": {"embedding": 2 / 65, "query": 2 / 192, "value": 2 / 192, "out": 2 / 224},
        "normal": {"embedding": 1.0, "query": 1.0, "value": 1.0, "out": 1.0},
    }
    for name, variances in expected.items():
        params = initial(models.from_linen(Attending(), initializer=name), tokens, init_scale=3.0)["params"]
        attention = params["MultiHeadDotProductAttention_0"]
        measured = {part: attention[part]["kernel"] for part in ("query", "value", "out")}
        measured["embedding"] = params["Embed_0"]["embedding"]
        for part, variance in variances.items():
            assert float(measured[part].std()) == pytest.approx(3 * variance**0.5, rel=0.04), (name, part)
    orthogonal = initial(models.from_linen(Attending(), initializer="orthogonal"), tokens)["params"]
    query = orthogonal["MultiHeadDotProductAttention_0"]["query"]["kernel"].reshape(64, 128)
    np.testing.assert_allclose(query @ query.T, np.eye(64), atol=1e-5)


def test_a_parameter_without_inputs_and_outputs_has_no_initializer():
    class Sloped(nn.Module):
        @nn.compact
        def __call__(self, inputs, hyper, key, train):
            return nn.PReLU()(inputs)

    model = models.from_linen(Sloped(), initializer="he")
    with pytest.raises(ValueError, match="no rule for the parameter 'negative_slope'"):
        initial(model, jnp.ones((2, 3)))
