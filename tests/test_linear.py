"""Linear models with known risks, against simulation and against what training does."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp.theory import linear, optimizers


@pytest.mark.parametrize(("used", "risk"), [(5, 1.4051), (20, 2.3605), (60, 3.05), (100, 1.5585), (200, 1.11289)])
def test_the_risk_of_a_subset_of_features_is_belkins(used, risk):
    assert linear.subset_risk(used, num_examples=40, num_all=200, signal=1.0, noise=0.5) == pytest.approx(
        risk, abs=6e-5
    )


def test_the_risk_is_infinite_where_features_equal_examples():
    risks = [linear.subset_risk(p, num_examples=40, num_all=200, signal=1.0, noise=0.5) for p in (39, 40, 41)]
    assert np.isinf(risks).all()


@pytest.mark.parametrize("used", [10, 80])
def test_simulated_fits_have_the_risk_of_theory(used):
    rng, risks = np.random.default_rng(0), []
    for _ in range(400):
        weights = rng.standard_normal(200)
        weights /= np.linalg.norm(weights)
        inputs = rng.standard_normal((40, 200))
        targets = inputs @ weights + 0.5 * rng.standard_normal(40)
        fitted = np.linalg.lstsq(inputs[:, :used], targets, rcond=None)[0]
        risks.append(np.sum((fitted - weights[:used]) ** 2) + np.sum(weights[used:] ** 2) + 0.25)
    expected = linear.subset_risk(used, num_examples=40, num_all=200, signal=1.0, noise=0.5)
    assert abs(np.mean(risks) - expected) < 4 * np.std(risks, ddof=1) / np.sqrt(400)


def test_gradient_descent_has_the_risk_of_gradient_flow():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((60, 20))
    covariance = inputs.T @ inputs / 60
    eigenvalues, vectors = np.linalg.eigh(covariance)
    rate, num_steps, risks = 0.002, 400, []
    for _ in range(3000):
        weights = rng.standard_normal(20)
        weights /= np.linalg.norm(weights)
        moment = inputs.T @ (inputs @ weights + 0.7 * rng.standard_normal(60)) / 60
        # k steps from zero filter every eigenvalue by 1 - (1 - rate s)^k
        fitted = vectors @ ((1 - (1 - rate * eigenvalues) ** num_steps) / eigenvalues * (vectors.T @ moment))
        risks.append(np.sum((fitted - weights) ** 2))
    expected = linear.flow_risk(eigenvalues, np.array([rate * num_steps]), num_examples=60, signal=1.0, noise=0.7)[0]
    # a step of 0.002 is a thousandth of the fastest time scale: flow up to that
    assert abs(np.mean(risks) - expected) < 4 * np.std(risks, ddof=1) / np.sqrt(3000) + 2e-3


def test_stopping_never_costs_more_than_69_percent_over_ridge_and_little_at_the_best_time():
    rng, times = np.random.default_rng(2), np.geomspace(1e-3, 1e4, 200)
    for num_features, noise in ((20, 0.3), (100, 1.0), (300, 3.0)):
        inputs = rng.standard_normal((100, num_features))
        eigenvalues = np.linalg.eigvalsh(inputs.T @ inputs / 100)
        eigenvalues[eigenvalues < 1e-9] = 0.0
        known = {"num_examples": 100, "signal": 1.0, "noise": noise}
        flow = linear.flow_risk(eigenvalues, times, **known)
        ridge = linear.ridge_risk(eigenvalues, 1 / times, **known)
        assert (flow / ridge).max() <= linear.FLOW_OVER_RIDGE
        assert flow.min() / ridge.min() < 1.22  # the same paper's bound on the best of each


def test_a_saturated_neuron_has_56_times_the_slope_with_cross_entropy():
    squared, entropy = linear.saturated_slopes(4.0)
    assert (squared, entropy) == (pytest.approx(0.0173450, abs=5e-8), pytest.approx(0.982014, abs=5e-7))


@pytest.mark.parametrize("kappa", [10, 100, 1000])
def test_quadratics_converge_fastest_at_two_over_the_sum_and_diverge_beyond_two_over_the_largest(kappa):
    curvatures = np.geomspace(1, kappa, 7)
    rate, factor = optimizers.best_rate(1.0, float(kappa))
    assert factor == pytest.approx((kappa - 1) / (kappa + 1))
    losses = optimizers.quadratic_steps(rate, curvatures, 400)
    assert np.sqrt(losses[-1] / losses[-2]) == pytest.approx(factor, rel=1e-3)
    limit = 2 / kappa
    assert optimizers.largest_stable_curvature(limit) == pytest.approx(kappa)
    steps = 200
    assert optimizers.quadratic_steps(0.99 * limit, curvatures, steps)[-1] < losses[0]
    assert optimizers.quadratic_steps(1.01 * limit, curvatures, steps)[-1] > losses[0]
