"""Optimizers against closed forms: constant gradients, quadratics, exact first steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlexp import learners, losses, models, optim
from dlexp.data import Dataset, Split
from dlexp.ops.choices import with_choices
from dlexp.sweep import grid
from dlexp.theory import optimizers as theory
from tests.conftest import finished


def values(optimizer, **given):
    """Every swept number of an optimizer: what is given, else its default."""
    return {name: jnp.asarray(given.get(name, legal.default)) for name, legal in optimizer.hyper.items()}


def steps_on_constant_gradient(optimizer, num_steps, gradient=0.7, **given):
    """How far each step goes, in units of the learning rate."""
    tx = optimizer.make_tx(values(optimizer, learning_rate=0.01, **given))
    params = {"w": jnp.zeros((), float)}
    state, steps = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(num_steps):
        updates, state = update({"w": jnp.asarray(gradient, float)}, state, params)
        steps.append(-float(updates["w"]) / 0.01)
    return np.array(steps)


@pytest.mark.parametrize("way", ["one_pass", "passes"])
def test_a_step_is_optax_s_whichever_way_it_is_computed(devices, way):
    rng, shapes = np.random.default_rng(0), {"wide": (3, 16), "narrow": (16, 3), "row": (5,)}
    params, grads = ({name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(2))
    params, grads = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree) for tree in (params, grads))
    grads["wide"] = grads["wide"].at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -0.0]))
    optimizer = optim.chain(optim.clip_by_value(), optim.adamw())
    tx = optimizer.make_tx(values(optimizer, learning_rate=0.01, clip_value=0.5))
    expected = params
    theirs = optax.chain(optax.clip(0.5), optax.adamw(0.01, weight_decay=1e-2))
    state, expected_state = tx.init(params), theirs.init(params)
    with with_choices({"optimizer": way}):
        update = jax.jit(tx.update)
        for _ in range(3):
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            updates, expected_state = theirs.update(grads, expected_state, expected)
            expected = optax.apply_updates(expected, updates)
    jax.tree.map(
        lambda got, right: np.testing.assert_allclose(got, right, rtol=1e-6, atol=5e-7),  # weights of 3: one rounding
        (params, jax.tree.leaves(state)),
        (expected, jax.tree.leaves(expected_state)),
    )


@pytest.mark.usefixtures("x64")
def test_adam_without_bias_correction_starts_3_16_times_too_long_and_peaks_at_6_57():
    steps = steps_on_constant_gradient(optim.adam(bias_correction=False), 14, eps=1e-12)
    np.testing.assert_allclose(steps, theory.adam_step_multiplier(np.arange(1, 15), bias_correction=False), rtol=1e-9)
    assert steps[0] == pytest.approx(3.16228, abs=1e-5)
    assert steps.argmax() == 11
    assert steps[11] == pytest.approx(6.56852, abs=1e-5)


@pytest.mark.usefixtures("x64")
def test_adam_with_bias_correction_steps_by_the_learning_rate_at_any_gradient_scale():
    for scale in (1e-3, 1.0, 1e3):
        np.testing.assert_allclose(steps_on_constant_gradient(optim.adam(), 20, scale, eps=1e-14), 1.0, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_rmsprop_and_momentum_step_as_predicted_on_a_constant_gradient():
    for decay in (0.9, 0.99):
        steps = steps_on_constant_gradient(optim.rmsprop(), 30, decay=decay, eps=1e-12)
        np.testing.assert_allclose(steps, theory.rmsprop_step_multiplier(np.arange(1, 31), decay), rtol=1e-9)
    steps = steps_on_constant_gradient(optim.momentum(), 200, gradient=1.0)
    np.testing.assert_allclose(steps, theory.momentum_step_multiplier(np.arange(1, 201)), rtol=1e-12)
    assert steps[-1] == pytest.approx(10, rel=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_adams_agree_with_a_float64_reference_for_100_steps():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=100)
    for bias_correction in (True, False):
        optimizer = optim.adam(bias_correction=bias_correction)
        tx = optimizer.make_tx(values(optimizer, learning_rate=0.1))
        w = jnp.asarray(0.5, float)
        state = tx.init(w)
        expected, m, v = 0.5, 0.0, 0.0
        for step, gradient in enumerate(gradients, start=1):
            updates, state = tx.update(jnp.asarray(gradient), state, w)
            w = optax.apply_updates(w, updates)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            corrected = (m / (1 - 0.9**step), v / (1 - 0.999**step)) if bias_correction else (m, v)
            expected -= 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        assert float(w) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_l2_penalty_is_the_gradient_of_lambda_times_the_sum_of_squares():
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    penalty = 0.05
    expected = jax.grad(lambda p: penalty * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)))(params)
    decayed = optim.add_decayed_weights()
    updates, _ = decayed.make_tx({"l2_penalty": penalty}).update(
        jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params
    )
    for ours, theirs in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)


@pytest.mark.usefixtures("x64")
def test_under_adam_l2_and_decoupled_decay_differ_by_their_exact_first_steps():
    w = jnp.array([2.0, -0.5])
    for strength in (1e-3, 1e-1):
        l2 = optim.chain(optim.add_decayed_weights(), optim.adam())
        tx = l2.make_tx(values(l2, learning_rate=0.01, l2_penalty=strength, eps=1e-14))
        first, _ = tx.update(jnp.zeros(2), tx.init(w), w)
        np.testing.assert_allclose(first, -0.01 * np.sign(w), rtol=1e-9)  # whatever the strength
        decoupled = optim.adamw()
        tx = decoupled.make_tx(values(decoupled, learning_rate=0.01, weight_decay=strength))
        first, _ = tx.update(jnp.zeros(2), tx.init(w), w)
        np.testing.assert_allclose(first, -0.01 * strength * w, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_under_sgd_l2_and_decoupled_decay_are_the_same_at_twice_the_penalty():
    gradients = np.random.default_rng(0).normal(size=(200, 3))
    rate, penalty = 0.1, 0.02
    l2 = optim.chain(optim.add_decayed_weights(), optim.sgd())
    tx = l2.make_tx(values(l2, learning_rate=rate, l2_penalty=penalty))
    w = shrunk = jnp.ones(3)
    state = tx.init(w)
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, w)
        w = optax.apply_updates(w, updates)
        shrunk = (1 - 2 * rate * penalty) * shrunk - rate * gradient
    np.testing.assert_allclose(w, shrunk, rtol=1e-10)


def test_clipping_keeps_the_direction_and_caps_the_norm():
    gradient = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([12.0])}  # norm 13
    for cap, norm in ((1.0, 1.0), (13.5, 13.0)):
        tx = optim.clip_by_global_norm().make_tx({"clip_norm": jnp.asarray(cap)})
        clipped, _ = tx.update(gradient, tx.init(gradient))
        flat, before = (np.concatenate(jax.tree.leaves(tree)) for tree in (clipped, gradient))
        assert np.linalg.norm(flat) == pytest.approx(norm, rel=1e-6)
        assert flat @ before / np.linalg.norm(flat) / 13 == pytest.approx(1, rel=1e-6)


@pytest.mark.usefixtures("x64")
def test_schedules_equal_optax_schedules_of_fixed_numbers():
    steps = np.arange(0, 130, 7)
    ours = optim.cosine(100).make({"decay_steps": jnp.asarray(100), "final_scale": jnp.asarray(0.1)})
    theirs = optax.cosine_decay_schedule(1.0, 100, alpha=0.1)
    np.testing.assert_allclose([ours(t) for t in steps], [theirs(t) for t in steps], rtol=1e-6)
    warm = optim.warmup().make({"warmup_steps": jnp.asarray(10)})
    np.testing.assert_allclose([warm(jnp.asarray(t)) for t in (0, 4, 9, 50)], [0.1, 0.5, 1.0, 1.0])


@pytest.mark.usefixtures("x64")
def test_a_schedule_scales_the_steps_of_every_optimizer():
    scheduled = optim.sgd(optim.warmup(optim.cosine(20)))
    steps = steps_on_constant_gradient(scheduled, 20, gradient=1.0, warmup_steps=5)
    expected = np.minimum(1, np.arange(1, 21) / 5) * 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(steps, expected, rtol=1e-6)


def test_an_optimizer_of_no_known_name_is_refused():
    with pytest.raises(ValueError, match="sgd, momentum, rmsprop, adam, adamw"):
        optim.from_name("lion")


def test_a_chain_of_optimizers_that_would_share_a_number_is_refused_and_new_names_part_them():
    with pytest.raises(ValueError, match=r"both read 'learning_rate' .* renamed\(optimizer, learning_rate='second_lea"):
        optim.chain(optim.sgd(), optim.sgd())
    parted = optim.chain(
        optim.add_decayed_weights(), optim.renamed(optim.add_decayed_weights(), l2_penalty="other"), optim.sgd()
    )
    assert set(parted.hyper) == {"l2_penalty", "other", "learning_rate", "momentum"}


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1.0, 1e19, 1e30, 6e37])
@pytest.mark.parametrize("clip_norm", [1e-35, 1.0, 1e30])
def test_clipping_by_norm_keeps_the_direction_at_every_length_that_float32_has(length, clip_norm):
    tx = optim.clip_by_global_norm().make_tx({"clip_norm": jnp.float32(clip_norm)})
    grads = {"w": jnp.array([3.0, 4.0], jnp.float32) * jnp.float32(length), "b": jnp.zeros((3, 0), jnp.float32)}
    clipped = tx.update(grads, tx.init(None))[0]["w"]
    norm = min(clip_norm, 5 * length)
    np.testing.assert_allclose(np.asarray(clipped, np.float64) / norm, [0.6, 0.8], rtol=1e-6)


def test_clipping_by_norm_keeps_zeros_and_shows_gradients_that_are_not_finite():
    tx = optim.clip_by_global_norm().make_tx({"clip_norm": jnp.float32(1)})
    np.testing.assert_array_equal(tx.update(jnp.zeros(3), tx.init(None))[0], np.zeros(3))
    for lost in (np.inf, np.nan):
        assert np.isnan(tx.update(jnp.array([lost, 1.0]), tx.init(None))[0][0])


def trained_on_huge_inputs(optimizer, devices, **swept):
    """A linear model of inputs around 1e10, from zero: gradients of 1e21, whose squares overflow."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 3)) * 1e10
    data = Dataset(Split(inputs, inputs @ [1.0, 2.0, 3.0]))
    model = models.mlp(width=1, num_layers=1, num_outputs=1)
    each = learners.supervised(model, losses.squared_error, optimizer, data, batch_size=None)
    runs = grid(hyper={"init_scale": (0.0,), **swept})
    rows = finished(runs, devices, make_learner=lambda config, num_steps: each, num_steps=30, num_evals=1)
    ((chunk, row),) = rows.values()
    return chunk.status[row], chunk.metrics["train/loss"][row]


def test_a_clipped_regression_of_huge_inputs_descends_and_adam_counts_it_as_lost(devices):
    clipped = optim.chain(optim.clip_by_global_norm(), optim.sgd())
    status, losses_ = trained_on_huge_inputs(clipped, devices, learning_rate=(0.1,), clip_norm=(1.0,))
    assert status == "ok"
    np.testing.assert_allclose(losses_, [1.3403e21, 5.4293e19], rtol=1e-4)
    status, losses_ = trained_on_huge_inputs(optim.adam(), devices, learning_rate=(0.1,))
    assert status == "nonfinite"
    assert np.isnan(losses_[1])


@pytest.mark.parametrize(
    "optimizer",
    [optim.rmsprop(), optim.adam(), optim.adamw(), optim.adam(bias_correction=False)],
    ids=["rmsprop", "adam", "adamw", "uncorrected"],
)
def test_a_gradient_whose_square_overflows_makes_the_weights_nan_and_one_whose_square_underflows_keeps_its_direction(
    optimizer,
):
    tx = optimizer.make_tx(values(optimizer, learning_rate=0.1))
    params = jnp.zeros(3, jnp.float32)
    update = jax.jit(tx.update)
    (huge, _), (tiny, _) = (
        update(jnp.array(grads, jnp.float32), tx.init(params), params)
        for grads in ([1e21, 1.0, -1.0], [3e-25, 4e-25, 0])
    )
    assert np.isnan(huge[0])
    assert np.isfinite(huge[1:]).all()
    np.testing.assert_allclose(tiny / jnp.linalg.norm(tiny * 1e15) * 1e15, [-0.6, -0.8, 0], rtol=1e-5)


def test_clipping_by_norm_keeps_the_direction_and_by_value_turns_it():
    grads = {"a": jnp.asarray([3.0, 0.1]), "b": jnp.asarray([-4.0])}
    clipped = {}
    for name, optimizer, bound in (
        ("norm", optim.clip_by_global_norm(), {"clip_norm": 0.5}),
        ("value", optim.clip_by_value(), {"clip_value": 0.5}),
        ("loose", optim.clip_by_global_norm(), {"clip_norm": 50.0}),
    ):
        tx = optimizer.make_tx(values(optimizer, **bound))
        clipped[name] = np.concatenate(jax.tree.leaves(tx.update(grads, tx.init(grads))[0]))
    flat = np.concatenate(jax.tree.leaves(grads))

    def cosine(other):
        return flat @ other / np.linalg.norm(flat) / np.linalg.norm(other)

    assert np.linalg.norm(clipped["norm"]) == pytest.approx(0.5, rel=1e-6)
    assert cosine(clipped["norm"]) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(clipped["value"], [0.5, np.float32(0.1), -0.5])
    assert cosine(clipped["value"]) < 0.999
    np.testing.assert_array_equal(clipped["loose"], flat)


def test_the_cliff_of_one_weight_is_over_a_million_steep():
    slope = jax.grad(lambda weight: weight**100)(1.1)
    assert float(slope) == pytest.approx(100 * 1.1**99, rel=1e-4)
    assert float(slope) == pytest.approx(1.25e6, rel=5e-3)
