"""The same numbers and the same promises on a GPU or a TPU; skipped where there is none."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dlexp import api, learners, losses, models, optim
from dlexp.data import Dataset, bundled
from dlexp.models import ConvLayer
from dlexp.ops import convolution
from dlexp.sweep import engine, grid, machine, tuning
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.sweep.layouts import Layout
from dlexp.types import Experiment, Sweep
from tests.conftest import finished, metric, small_learner

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="there is no GPU and no TPU"),
]
RATES = (0.001, 0.01)


def curves(devices):
    rows = finished(grid(hyper={"learning_rate": RATES}, seeds=3), devices)
    return np.stack([metric(rows, (rate, seed), "test/loss") for rate in RATES for seed in range(3)])


def test_float32_trains_as_on_a_cpu():
    machine.set_precision(jax.local_devices(), "float32")
    np.testing.assert_allclose(curves(jax.local_devices()), curves(jax.devices("cpu")), rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_what_was_asked_for_and_recorded(precision):
    sweeps = {"main": Sweep(grid(hyper={"learning_rate": RATES}, seeds=1), small_learner, 20, 2)}
    api.plan(Experiment("tests.precision", 1, "How exact?", lambda scale: sweeps), scale="smoke", precision=precision)
    factor = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    error = np.abs(jax.jit(lambda a: a @ a)(factor) - factor.astype(np.float64) @ factor).max()
    assert (error < 1e-3) == (precision == "float32")
    assert machine.provenance(jax.local_devices())["matmul_precision"] == precision


@pytest.mark.parametrize("lowering", [name for name in convolution.LOWERINGS if name != "native"])
def test_lowerings_agree(lowering):
    machine.set_precision(jax.local_devices(), "float32")
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(8, 9, 9, 3)), rng.normal(size=(3, 3, 3, 5))
    ours, theirs = (convolution.convolve(inputs, kernel, padding=1, lowering=name) for name in (lowering, "native"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_layout_is_timed_and_trains():
    devices = jax.local_devices()
    model = models.cnn(input_shape=(8, 8, 1), conv_layers=(ConvLayer(4, 3, padding=1),), num_outputs=10)
    data = Dataset(bundled.load("digits").train)

    def make_learner(config, num_steps):
        return learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), data, batch_size=16)

    sweep = Sweep(grid(hyper={"learning_rate": RATES}, seeds=300), make_learner, 100)
    plan = planning.make(Identity("tests.layouts", 1, "main", 100), sweep, devices)
    (group,) = plan.groups
    asked = [Layout(width, False, (("convolution", "native"),)) for width in (1, 64, 512)]
    rates = tuning.Bench(plan, group, devices).rates(asked)
    assert rates[asked[2]] > rates[asked[0]]
    chunks = [event for event in engine.train(plan, devices) if isinstance(event, engine.Finished)]
    assert sum(len(chunk.runs) for chunk in chunks) == 600
