"""Mean-field theory against published tables, and against freshly drawn wide networks."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp.data import mnist1d
from dlexp.learners.propagation import propagation
from dlexp.sweep import grid
from dlexp.theory import counting, mean_field
from tests.conftest import finished

WIDTH, NUM_LAYERS = 256, 40
INNER = slice(10, 30)  # layers away from both ends


@pytest.mark.parametrize(
    ("weight_variance", "fixed", "chi", "scale"),
    [(0.5, 0.0876, 0.43199, 1.19), (1.0, 0.1936, 0.75903, 3.63), (1.5, 0.4180, 0.93864, 15.8), (4, 2.1955, 1.3424, 0)],
)
def test_tanh_has_the_known_fixed_points_and_slopes(weight_variance, fixed, chi, scale):
    assert mean_field.fixed_point("tanh", weight_variance, 0.05) == pytest.approx(fixed, abs=6e-5)
    assert mean_field.chi_at_fixed_point("tanh", weight_variance, 0.05) == pytest.approx(chi, abs=6e-6)
    measured = mean_field.depth_scale("tanh", weight_variance, 0.05)
    assert measured == pytest.approx(scale, rel=5e-3) if scale else np.isinf(measured)


@pytest.mark.parametrize(("bias_variance", "critical"), [(0.001, 1.1892), (0.05, 1.76095), (0.3, 2.50513)])
def test_the_edge_of_chaos_of_tanh_moves_with_the_biases(bias_variance, critical):
    assert mean_field.critical_weight_variance("tanh", bias_variance) == pytest.approx(critical, abs=6e-5)


def test_sigmoid_vanishes_at_every_usual_scale_and_is_critical_only_at_a_hundred():
    assert mean_field.fixed_point("sigmoid", 1.0) == pytest.approx(0.26469, abs=6e-6)
    factors = {1.0: 0.23605, 4.0: 0.41422, 16.0: 0.63157, 0.694488: 0.2}
    for weight_variance, factor in factors.items():
        assert np.sqrt(mean_field.chi_at_fixed_point("sigmoid", weight_variance)) == pytest.approx(factor, abs=6e-6)
    assert mean_field.critical_weight_variance("sigmoid") == pytest.approx(103.0, rel=2e-3)


@pytest.mark.parametrize(("layers_deep", "smallest"), [(10, 0.655), (50, 1.321), (1000, 1.733)])
def test_a_depth_scale_of_a_sixth_of_the_depth_needs_this_weight_variance(layers_deep, smallest):
    assert mean_field.shallowest_weight_variance("tanh", layers_deep / 6, 0.05) == pytest.approx(smallest, abs=6e-4)


def test_relu_keeps_every_variance_at_two_and_no_other():
    assert mean_field.critical_weight_variance("relu") == 2.0
    assert mean_field.variance_map(3.7, "relu", 2.0) == pytest.approx(3.7)
    assert mean_field.fixed_point("relu", 1.0, 0.1) == pytest.approx(0.2)
    assert np.isinf(mean_field.fixed_point("relu", 2.5))


def test_relu_makes_inputs_alike_by_a_power_law():
    correlation, after = 0.0, {5: 0.735946, 10: 0.871536, 50: 0.987862, 100: 0.996423}
    for layer in range(1, 1001):
        correlation = float(mean_field.relu_correlation_map(correlation))
        if layer in after:
            assert correlation == pytest.approx(after[layer], abs=6e-7)
    assert (1 - correlation) * 2 * 1000**2 / (9 * np.pi**2) == pytest.approx(0.971, abs=1e-3)


@pytest.mark.parametrize(("activation", "factor"), [("relu", 1.466942), ("tanh", 1.17781), ("sigmoid", 1.03359)])
def test_batch_normalization_makes_gradients_grow(activation, factor):
    assert mean_field.batch_norm_chi(activation) == pytest.approx(factor, abs=6e-6)
    assert mean_field.batch_norm_chi("identity") == pytest.approx(1.0)


@pytest.mark.parametrize(("width", "mean", "variance"), [(64, -0.040109, 0.0830), (256, -0.009829, 0.0198)])
def test_relu_networks_drift_by_depth_over_width(width, mean, variance):
    assert mean_field.relu_log_norm_step(width) == (pytest.approx(mean, abs=6e-7), pytest.approx(variance, rel=5e-3))


def test_an_unknown_activation_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="no activation named 'step'; there are identity, relu, tanh, sigmoid"):
        mean_field.chi(1.0, "step", 1.0)


def _measured(devices, activation, scales, *, normalization="none", bias_scale=0.0, num_inputs=128):
    def make_learner(config, num_steps):
        inputs = mnist1d.load().train.inputs[:num_inputs]
        return propagation(
            inputs, width=WIDTH, num_layers=NUM_LAYERS, activation=activation, normalization=normalization
        )

    points = grid(hyper={"init_scale": scales, "bias_scale": (bias_scale,)}, seeds=8)
    rows = finished(points, devices, make_learner=make_learner, num_steps=0, num_evals=1)
    chunks = {key: (event.metrics, row) for key, (event, row) in rows.items()}
    return {
        scale: tuple(
            np.stack([metrics[name][row][0] for (s, _, _), (metrics, row) in chunks.items() if s == scale])
            for name in ("layer/variance", "layer/log_gradient")
        )
        for scale in scales
    }


def test_wide_tanh_networks_follow_the_theory_layer_by_layer(devices):
    scales = tuple(np.sqrt([1.0, 1.7610, 2.5]))
    for scale, (variances, logs) in _measured(devices, "tanh", scales, bias_scale=np.sqrt(0.05)).items():
        chi = mean_field.chi_at_fixed_point("tanh", scale**2, 0.05)
        factors = np.exp((logs[:, INNER.start] - logs[:, INNER.stop]) / (INNER.stop - INNER.start))
        # 2% is what is left of 1 / width at 256; eight networks must also pin it down that well themselves
        assert factors.mean() == pytest.approx(chi, rel=0.02)
        assert factors.std(ddof=1) / np.sqrt(8) < 0.01
        expected, measured = mean_field.fixed_point("tanh", scale**2, 0.05), variances[:, INNER].mean(axis=1)
        assert abs(measured.mean() - expected) < max(4 * measured.std(ddof=1) / np.sqrt(8), 0.02 * expected)


def test_the_lessons_factor_of_one_fifth_a_layer_is_a_sigmoid_network(devices):
    (_, logs), *_ = _measured(devices, "sigmoid", (np.sqrt(0.694488),)).values()
    factors = np.exp((logs[:, INNER.start] - logs[:, INNER.stop]) / (2 * (INNER.stop - INNER.start)))
    assert factors.mean() == pytest.approx(0.2, abs=0.006)
    four = np.exp((logs[:, 24] - logs[:, 20]) / 2)
    assert four.mean() == pytest.approx(625, rel=0.1)


def test_plain_networks_with_batch_normalization_explode_as_predicted(devices):
    (_, logs), *_ = _measured(devices, "relu", (np.sqrt(2),), normalization="batch", num_inputs=256).values()
    factors = np.exp((logs[:, INNER.start] - logs[:, INNER.stop]) / (INNER.stop - INNER.start))
    assert factors.mean() == pytest.approx(mean_field.batch_norm_chi("relu"), rel=0.03)  # O(1 / batch) is left


def test_a_thousand_layers_do_not_underflow(devices):
    def make_learner(config, num_steps):
        return propagation(mnist1d.load().train.inputs[:8], width=16, num_layers=1000, activation="sigmoid")

    points = grid(hyper={"init_scale": (1.0,)}, seeds=1)
    ((event, row),) = finished(points, devices, make_learner=make_learner, num_steps=0, num_evals=1).values()
    assert event.metrics["layer/log_gradient"][row][0, 0] < -2500  # e^-2500: far below any float


def test_the_tent_has_twice_the_pieces_with_every_fold():
    x = np.linspace(0, 1, 2**12 + 1)
    for folds in range(1, 7):
        slopes = np.diff(counting.tent(x, folds))
        assert 1 + np.count_nonzero(np.diff(np.sign(slopes))) == 2**folds


@pytest.mark.parametrize(
    ("folds", "width", "bound"), [(4, 4, 0.3125), (6, 8, 0.4219), (6, 16, 0.3594), (8, 64, 0.3711)]
)
def test_few_units_get_many_alternating_labels_wrong(folds, width, bound):
    assert counting.smallest_shallow_error(width, folds) == pytest.approx(bound, abs=6e-5)


def test_half_of_all_labelings_are_separable_at_two_points_a_dimension():
    shares = [counting.probability_separable(int(20 * factor), 20) for factor in (1.5, 2, 2.5, 3)]
    np.testing.assert_allclose(shares, [0.9693, 0.5, 0.0762, 0.0043], atol=6e-5)


def test_narrow_relu_networks_die_with_depth():
    rng = np.random.default_rng(0)
    num_networks, width, depth = 4000, 3, 10
    alive = np.ones(num_networks, bool)
    signal = np.abs(rng.standard_normal((num_networks, width)))
    for _ in range(depth):
        signal = np.maximum(np.einsum("ni,nij->nj", signal, rng.standard_normal((num_networks, width, width))), 0)
        alive &= signal.any(axis=1)
    expected = counting.probability_alive(width, depth)
    assert abs(alive.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / num_networks)
