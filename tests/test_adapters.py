"""Modules of Linen, NNX and Equinox as people write them, behind the `Model` contract."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import grid
from dlexp.types import Range
from tests.conftest import finished, metric


class Plain(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x)))
        return nn.Dense(10)(nn.Dropout(self.rate, deterministic=not train)(x))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        x = x.reshape(len(x), 8, 8)
        x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.3, deterministic=deterministic)(x, x)
        return nn.Dense(10)(x.mean(1))


class SweptRate(nn.Module):
    own: bool

    @nn.compact
    def __call__(self, inputs, hyper, key, train):
        if self.own:
            return models.dropout(nn.Dense(10)(inputs), hyper["rate"], key, train=train)
        return nn.Dropout(hyper["rate"], deterministic=not train)(nn.Dense(10)(inputs))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(64, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def equinox_model():
    import equinox as eqx

    def make(key):
        first, last = jax.random.split(key)
        layers = [eqx.nn.Linear(64, 16, key=first), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.5)]
        return eqx.nn.Sequential([*layers, eqx.nn.Linear(16, 10, key=last)])

    return models.from_equinox(make)


MODELS = {
    "linen": lambda: models.from_linen(Plain()),
    "attention": lambda: models.from_linen(Attention()),
    "sequential": lambda: models.from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(10)])),
    "nnx": lambda: models.from_nnx(lambda rngs: Nnx(rngs)),
    "equinox": equinox_model,
}
EQUINOX = pytest.param("equinox", marks=pytest.mark.equinox)
INPUTS = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)


@pytest.mark.parametrize("name", [*(name for name in MODELS if name != "equinox"), EQUINOX])
def test_chance_enters_in_training_alone_and_by_the_key_alone(name):
    model = MODELS[name]()
    variables = model.init(jax.random.key(0), {}, INPUTS[:1])
    apply = jax.jit(
        lambda seed, train: model.apply(variables, {}, INPUTS, key=jax.random.key(seed), train=train)[0],
        static_argnums=1,
    )
    calm, again = apply(1, False), apply(2, False)
    np.testing.assert_array_equal(calm, again)
    assert calm.shape == (32, 10)
    if name != "sequential":
        np.testing.assert_array_equal(apply(1, True), apply(1, True))
        assert float(jnp.abs(apply(1, True) - apply(2, True)).max()) > 1e-3


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_batch_statistics_travel_in_training_alone(name):
    model = MODELS[name]()
    variables = model.init(jax.random.key(0), {}, INPUTS[:1])
    for train in (False, True):
        _, after = model.apply(variables, {}, INPUTS, key=jax.random.key(1), train=train)
        assert jax.tree.structure(after) == jax.tree.structure(variables)
        rest = [{key: value for key, value in each.items() if key != "params"} for each in (variables, after)]
        moved = [float(jnp.abs(old - new).max()) for old, new in zip(*map(jax.tree.leaves, rest), strict=True)]
        assert (max(moved) > 0.001) == train


def test_an_nnx_module_computes_what_it_computes_by_itself():
    module = Nnx(nnx.Rngs(jax.random.key(3)))
    module.eval()
    model = MODELS["nnx"]()
    variables = model.init(jax.random.key(3), {}, INPUTS[:1])
    outputs, _ = model.apply(variables, {}, INPUTS, key=jax.random.key(0), train=False)
    np.testing.assert_allclose(outputs, module(INPUTS), rtol=1e-6, atol=1e-6)


@pytest.mark.equinox
def test_an_equinox_module_computes_what_it_computes_by_itself():
    import equinox as eqx

    model = models.from_equinox(lambda key: eqx.nn.MLP(64, 10, 16, 1, key=key))
    variables = model.init(jax.random.key(3), {}, INPUTS[:1])
    outputs, _ = model.apply(variables, {}, INPUTS, key=jax.random.key(0), train=True)
    own = jax.vmap(eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(3)))(INPUTS)
    np.testing.assert_allclose(outputs, own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linen", "nnx", EQUINOX])
def test_runs_of_such_modules_train_in_one_program(name, devices):
    def make_learner(config, num_steps):
        data = bundled.load("digits")
        return learners.supervised(MODELS[name](), losses.softmax_cross_entropy, optim.adam(), data, batch_size=16)

    points = grid(hyper={"learning_rate": (1e-6, 0.01)}, seeds=2)
    rows = finished(points, devices, make_learner=make_learner, num_steps=60, num_evals=2)
    slow, fast = (metric(rows, (rate, 0), "train/loss") for rate in (1e-6, 0.01))
    assert slow[0] == fast[0]
    assert fast[-1] < 0.8 * slow[-1]


def test_a_swept_rate_goes_through_our_own_dropout_and_flaxs_is_told_apart():
    def outputs(own, rate):
        model = models.from_linen(SweptRate(own), {"rate": Range(0.0, 1.0, open_high=True)})
        variables = model.init(jax.random.key(0), {"rate": rate}, INPUTS[:1])
        return model.apply(variables, {"rate": rate}, INPUTS, key=jax.random.key(1), train=True)[0]

    dropped = jax.jit(outputs, static_argnums=0)(True, 0.75)
    assert float((dropped == 0).mean()) == pytest.approx(0.75, abs=0.1)  # of 320 numbers, 4 deviations
    with pytest.raises(ValueError, match=r"nn.Dropout takes no swept rate.*models.dropout\(inputs, hyper\['rate'\]"):
        jax.jit(outputs, static_argnums=0)(False, 0.75)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(10)(x * mask)


def test_a_module_that_needs_more_than_it_can_be_given_is_told_so():
    with pytest.raises(ValueError, match="from_linen: __call__ needs mask; beside the inputs a module is given any of"):
        models.from_linen(Masked())
    with pytest.raises(ValueError, match="rate can reach the module only if its __call__ has a parameter hyper"):
        models.from_linen(Plain(), {"rate": Range()})
    with pytest.raises(TypeError, match="from_nnx: give it a function of the random numbers"):
        models.from_nnx(Nnx(nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"make_module must return an instance of nnx\.Module"):
        models.from_nnx(lambda rngs: 3)
