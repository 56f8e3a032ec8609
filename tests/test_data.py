"""Data sets against their published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp.data import Dataset, Split, bundled, mnist1d, standardise
from tests.conftest import data_dir


def test_mnist1d_has_its_published_sums_and_labels():
    signals, labels = mnist1d.published()
    assert signals[:4000].sum() == pytest.approx(-51.787467875, abs=1e-9)
    assert labels[:4000].sum() == 18018
    assert labels[4000:].sum() == 4482
    assert labels[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    np.testing.assert_allclose(signals[4000, :3], [-0.07877078, -0.21073171, -0.09175138], atol=5e-9)
    assert np.bincount(labels[:4000]).tolist() == [398, 396, 411, 394, 394, 402, 401, 404, 402, 398]
    assert np.bincount(labels[4000:]).tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]


def test_mnist1d_equals_the_published_file():
    with np.load(data_dir() / "mnist1d" / "mnist1d.npz") as published:
        signals, labels = mnist1d.published()
        np.testing.assert_allclose(signals[:4000], published["x"], atol=1e-12)
        np.testing.assert_allclose(signals[4000:], published["x_test"], atol=1e-12)
        np.testing.assert_array_equal(labels, np.concatenate([published["y"], published["y_test"]]))
        np.testing.assert_allclose(mnist1d.TEMPLATES, published["templates_x"], atol=1e-15)


def test_generated_mnist1d_looks_like_the_published_one():
    signals, _ = mnist1d.published()
    scale = signals.std() * 1.0
    fresh = mnist1d.generate(4000, seed=7)
    raw = mnist1d.generate(4000, seed=8)
    assert np.bincount(fresh.labels).tolist() == [400] * 10
    assert not np.array_equal(fresh.inputs, raw.inputs)
    assert fresh.inputs.std() == pytest.approx(raw.inputs.std(), rel=0.02)
    split = mnist1d.load()
    assert split.validation.inputs.std() == pytest.approx(scale, rel=0.02)
    assert split.train.inputs.dtype == np.float32


def test_noise_and_size_are_choices():
    clean = mnist1d.Recipe(scale=0.0, correlated_noise=0.0, iid_noise=0.0, shear=0.0)
    data = mnist1d.generate(23, seed=0, recipe=clean)
    assert data.inputs.shape == (23, 40)
    assert data.inputs.max() < mnist1d.TEMPLATES.max() + 1e-6
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        mnist1d.generate(0, seed=0)


def test_the_three_splits_of_a_bundled_set_share_no_example():
    data = bundled.load("digits")
    sizes = [len(split.inputs) for split in data]
    assert sizes == [1078, 359, 360]
    rows = [{row.tobytes() for row in split.inputs} for split in data]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_features_are_standardised_by_train_alone():
    train = np.array([[1.0, 5.0], [3.0, 5.0]])
    data = standardise(Dataset(Split(train, np.zeros(2)), test=Split(train + 2, np.zeros(2))))
    np.testing.assert_array_equal(data.train.inputs, [[-1, 0], [1, 0]])  # a constant feature is only centred
    np.testing.assert_array_equal(data.test.inputs, [[1, 2], [3, 2]])
    assert data.validation is None


def test_regression_targets_are_standardised_on_train():
    data = bundled.load("diabetes")
    assert data.train.labels.mean() == pytest.approx(0, abs=1e-6)
    assert data.train.labels.std() == pytest.approx(1, abs=1e-6)
    assert data.test.labels.dtype == np.float32


def test_a_data_set_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no bundled data set named 'mnist'; there are digits"):
        bundled.load("mnist")
