"""Data sets against their published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp import learners, losses, models, optim
from dlexp.data import Dataset, Split, bundled, mnist1d, splits, standardise
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


def test_a_feature_that_is_constant_up_to_rounding_is_only_centred():
    """The mean of a thousand 14.62 is not 14.62 in float64, and their deviation 1.8e-15 instead of 0."""
    column = np.full((1000, 1), 14.62)
    assert column.std() > 0
    data = standardise(Dataset(Split(column, np.zeros(1000)), Split(column[:1] + 1, np.zeros(1))))
    np.testing.assert_allclose(data.train.inputs, 0, atol=1e-6)
    np.testing.assert_allclose(data.validation.inputs, 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_deviations_beside_a_large_mean_are_kept(dtype):
    column = np.asarray(4096 + np.tile([-1.0, 1.0], 500)[:, None], dtype)
    np.testing.assert_allclose(standardise(Dataset(Split(column, np.zeros(1000)))).train.inputs, column - 4096)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ones((0, 2)), "the training split is empty"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), r"feature \[1\] of the training split has mean nan"),
        (np.array([[1e200], [-1e200]]), r"feature \[0\] .* deviation inf"),
    ],
)
def test_features_without_a_mean_or_deviation_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        standardise(Dataset(Split(inputs, np.zeros(len(inputs)))))


@pytest.mark.parametrize("load", [lambda: bundled.load("iris"), lambda: mnist1d.load(50)])
def test_cached_arrays_cannot_be_written_to(load):
    data = load()
    for split in data:
        for array in split:
            with pytest.raises(ValueError, match="read-only"):
                array[:1] = 0
    assert load().train.inputs is data.train.inputs
    noisy = splits.with_label_noise(data, 0.5, num_classes=10)
    assert not np.array_equal(noisy.train.labels, data.train.labels)


def test_data_sets_are_cut_and_spoiled_within_their_limits():
    data = bundled.load("iris")
    assert len(splits.with_first(data, 90).train.labels) == 90
    for num_train in (0, -1, 91):
        with pytest.raises(ValueError, match=rf"num_train must be in \[1, 90\] .*, got {num_train}"):
            splits.with_first(data, num_train)
    with pytest.raises(ValueError, match="share must be in"):
        splits.with_label_noise(data, 1.5, num_classes=3)
    with pytest.raises(ValueError, match=r"integers from 0 to 1 \(num_classes\), got int32 from 0 to 2"):
        splits.with_label_noise(data, 0.5, num_classes=2)


# What a learner refuses, before anything is compiled

INPUTS = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
LABELS = np.tile(np.arange(3, dtype=np.int32), 17)[:50]
TRAIN = Split(INPUTS, LABELS)


def learn(data, *, loss=losses.softmax_cross_entropy, num_outputs=3, model=None, **options):
    model = model or models.mlp(width=4, num_layers=2, num_outputs=num_outputs)
    return learners.supervised(model, loss, optim.sgd(), data, batch_size=8, **options)


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("num_labels", [49, 51])
def test_a_split_needs_as_many_labels_as_inputs(name, num_labels):
    data = Dataset(TRAIN)._replace(**{name: Split(INPUTS, np.resize(LABELS, num_labels))})
    with pytest.raises(ValueError, match=f"as many labels as inputs, got 50 {name} inputs, {num_labels} {name} labels"):
        learn(data)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.squared_error])
@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_that_are_no_class_are_named_for_every_loss_in_every_split(name, loss, wrong):
    data = Dataset(TRAIN)._replace(**{name: Split(INPUTS, changed(LABELS, 7, wrong))})
    with pytest.raises(ValueError, match=f"{name} labels must be classes 0 to 2, .* and row 7 holds {wrong};"):
        learn(data, loss=loss)


def test_labels_counted_from_one_are_named_with_their_range():
    with pytest.raises(ValueError, match="classes 0 to 2, as the model has 3 outputs, but they are 1 to 3"):
        learn(Dataset(Split(INPUTS, LABELS + 1)))


def test_labels_of_a_sequence_are_checked_at_each_place():
    tokens = np.zeros((9, 4), np.int32)
    model = models.mlp(width=4, num_layers=2, num_outputs=12)
    spread = model._replace(
        apply=lambda variables, hyper, inputs, *, key, train: (
            model.apply(variables, hyper, inputs, key=key, train=train)[0].reshape(-1, 4, 3),
            variables,
        )
    )
    assert learn(Dataset(Split(tokens, tokens)), model=spread)
    with pytest.raises(ValueError, match=r"row 5 at \[2\] holds 3;"):
        learn(Dataset(Split(tokens, changed(tokens, (5, 2), 3))), model=spread)


@pytest.mark.parametrize("labels", [LABELS.astype(np.float32), LABELS.astype(bool)])
def test_classes_are_integers(labels):
    with pytest.raises(ValueError, match=r"train labels must be integers .* cast them to int32"):
        learn(Dataset(Split(INPUTS, labels)))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_an_empty_split_is_named(name):
    data = Dataset(TRAIN)._replace(**{name: Split(INPUTS[:0], LABELS[:0])})
    with pytest.raises(ValueError, match=f"{name} is empty"):
        learn(data)


def test_no_training_row_to_evaluate_on_is_refused():
    with pytest.raises(ValueError, match="num_train_evaluated must be at least 1, got 0"):
        learn(Dataset(TRAIN), num_train_evaluated=0)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            Split(changed(INPUTS, (4, 2), np.nan), LABELS),
            r"test inputs must be finite in float32, but row 4 at \[2\] holds",
        ),
        (Split(changed(INPUTS, (4, 2), -np.inf), LABELS), r"row 4 at \[2\] holds -inf"),
        (Split(changed(INPUTS.astype(float), (4, 2), 1e300), LABELS), r"row 4 at \[2\] holds 1e\+300"),
        (
            Split(changed(LABELS.astype(np.int64), 4, 2**40 + 5), LABELS),
            "finite in int32, but row 4 holds 1099511627781",
        ),
        (Split({"a": INPUTS, "b": changed(INPUTS, (1, 1), np.nan)}, LABELS), r"test inputs\['b'\] must be finite"),
    ],
)
def test_numbers_that_a_program_cannot_hold_are_named(split, message):
    with pytest.raises(ValueError, match=message):
        learn(Dataset(TRAIN, test=split))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(INPUTS.tolist(), LABELS), r"train inputs\[0\]\[0\] must be arrays, got float; wrap it in np.asarray"),
        (Split(INPUTS, LABELS.astype(str)), "train labels must be numbers, got an array of <U"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(split, message):
    with pytest.raises(TypeError, match=message):
        learn(Dataset(split))


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (losses.squared_error, np.zeros((50, 2), np.float32), "train: loss does not fit outputs float32"),
        (lambda outputs, labels: losses.softmax_cross_entropy(outputs, labels).mean(), LABELS, r"comes shape \(\)"),
    ],
)
def test_losses_that_do_not_fit_the_outputs_are_refused(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        learn(Dataset(Split(INPUTS, targets)), loss=loss)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            models.rnn(width=4, num_outputs=3),
            (50, 40),
            r"rnn: inputs must be \[batch, time, feature\], got shape \(1, 40\)",
        ),
        (
            models.cnn(input_shape=(20, 1), conv_layers=[models.ConvLayer(2, 3)], num_outputs=3),
            (50, 40),
            r"cnn: inputs \[batch, ...\] must hold",
        ),
    ],
)
def test_signals_of_other_axes_than_the_network_reads_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        learn(Dataset(Split(np.zeros(shape, np.float32), LABELS)), model=model)
