"""Losses by their closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlexp import losses
from dlexp.ops.choices import with_choices

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
LABELS = jnp.array([0, 2])


def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes():
    values = losses.softmax_cross_entropy(LOGITS, LABELS)
    assert values.shape == (2,)
    assert float(values[1]) == pytest.approx(np.log(3), rel=1e-6)


def test_the_gradient_of_cross_entropy_is_softmax_minus_one_hot():
    gradient = jax.grad(lambda logits: losses.softmax_cross_entropy(logits, LABELS).sum())(LOGITS)
    expected = jax.nn.softmax(LOGITS) - jax.nn.one_hot(LABELS, 3)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_cross_entropy_is_the_same_where_runs_share_a_seed():
    logits = 5 * jax.random.normal(jax.random.key(0), (30, 10)).at[0, 3].set(-jnp.inf).at[1, 2].set(jnp.inf)
    labels = jax.random.randint(jax.random.key(1), (30,), 4, 10).at[2:5].set(jnp.array([-1, -11, 10]))

    def values_and_gradient():
        finite = logits[2:], labels[2:]
        values, back = jax.vjp(lambda logits: losses.softmax_cross_entropy(logits, finite[1]), finite[0])
        return losses.softmax_cross_entropy(logits, labels), back(jnp.ones_like(values))[0]

    usual = values_and_gradient()
    with with_choices({"seed": "shared"}):
        shared = values_and_gradient()
    np.testing.assert_array_equal(np.isfinite(shared[0]), np.isfinite(usual[0]))
    np.testing.assert_allclose(shared[0][2:], usual[0][2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shared[1], usual[1], rtol=1e-5, atol=1e-6)


def test_cross_entropy_stays_finite_where_a_probability_is_zero():
    assert float(losses.softmax_cross_entropy(jnp.array([[0.0, 1000.0]]), jnp.array([0]))[0]) == 1000.0


def test_squared_error_takes_classes_vectors_and_numbers():
    np.testing.assert_allclose(losses.squared_error(LOGITS, LABELS), [(1 + 1 + 0.25) / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(losses.squared_error(LOGITS, LOGITS + 2.0), [4, 4], rtol=1e-6)
    np.testing.assert_allclose(losses.squared_error(jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])), [1, 4])


def test_accuracy_counts_the_largest_logit_and_gives_ties_to_the_lower_class():
    assert losses.accuracy(LOGITS, LABELS).tolist() == [1.0, 0.0]
    assert losses.accuracy(LOGITS, jnp.array([2, 0])).tolist() == [0.0, 1.0]


def test_batches_of_another_shape_are_refused():
    with pytest.raises(AssertionError, match="rank"):
        losses.softmax_cross_entropy(LOGITS, LOGITS)
