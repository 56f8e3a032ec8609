"""Networks trained as their authors trained them, against the accuracies they published. Minutes, so slow."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp import learners, losses, models, optim
from dlexp.data import bundled, mnist1d
from dlexp.sweep import grid
from tests.conftest import finished, metric

pytestmark = pytest.mark.slow


def mnist1d_model(name):
    if name == "mlp":
        return models.mlp(width=100, num_layers=3, num_outputs=10, residual=True)
    conv = [models.ConvLayer(25, 5, 2, 1), models.ConvLayer(25, 3, 2, 1), models.ConvLayer(25, 3, 2, 1)]
    return models.cnn(input_shape=(40, 1), conv_layers=conv, num_outputs=10)


@pytest.mark.parametrize(("name", "published"), [("mlp", 0.651), ("cnn", 0.923)])
def test_mnist1d_accuracies_are_the_published_ones(devices, name, published):
    def make_learner(config, num_steps):
        data = mnist1d.load()
        model = mnist1d_model(name)
        return learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), data, batch_size=100)

    sweep = grid(hyper={"learning_rate": (0.01,)}, seeds=8)
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=6000, num_evals=2)
    accuracies = [metric(rows, (0.01, seed), "test/accuracy")[-1] for seed in range(8)]
    # One run of the authors' notebook at its last step (https://github.com/greydanus/mnist1d): 3 points either way.
    assert np.mean(accuracies) == pytest.approx(published, abs=0.03)


def test_20_000_tiny_runs_finish_with_a_row_each(devices):
    def make_learner(config, num_steps):
        model = models.mlp(width=4, num_layers=2, num_outputs=3)
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), bundled.load("iris"), batch_size=8)

    sweep = grid(hyper={"learning_rate": tuple(np.linspace(0.01, 1, 100).tolist())}, seeds=200)
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=10, num_evals=1)
    assert len(rows) == 20_000
