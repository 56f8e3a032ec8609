"""Everyone in the benchmark trains: what is timed is real work, the same for all."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from dlexp.ops import compiler
from dlexp.ops.choices import with_choices
from dlexp.sweep.layouts import Layout
from experiments.engine import _peers, throughput
from experiments.engine._timing import Contender, pace
from tests.conftest import data_dir

OURS = {throughput.ENGINE: _peers.this_engine, throughput.BARE: _peers.bare_loop}


def tiny(contender):
    work = throughput.workload("tiny")
    if contender in _peers.PEERS:
        return _peers.PEERS[contender](work)
    return OURS[contender](work, Layout(8))


@pytest.mark.parametrize("contender", OURS)
def test_the_engine_and_its_loop_train_runs_of_one_seed(contender):
    shared = Layout(8, False, (("seed", "shared"),))
    assert 0 < OURS[contender](throughput.workload("tiny"), shared)(0.02) < 1e9


@pytest.mark.parametrize(
    "contender",
    [
        pytest.param(name, marks=pytest.mark.peers if "torch" in name.lower() else ())
        for name in (throughput.ENGINE, throughput.BARE, *_peers.PEERS)
    ],
)
def test_every_contender_trains_a_tiny_workload(contender):
    assert 0 < tiny(contender)(0.02) < 1e9


def workload(name):
    if name in ("mlp_large", "cnn_28x28"):
        data_dir()
    return throughput.workload(name)


def num_params(each):
    hyper = {key: jnp.asarray(legal.default or 0.0) for key, legal in each.hyper.items()}
    shapes = jax.eval_shape(each.init, jax.random.key(0), hyper, each.data)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes.params))


@pytest.mark.parametrize("name", throughput.TITLES)
def test_everyone_in_jax_trains_networks_of_equal_size(name):
    work = workload(name)
    assert num_params(work.learner()) == num_params(_peers._linen_learner(work))


@pytest.mark.peers
@pytest.mark.parametrize("name", throughput.TITLES)
def test_pytorch_trains_networks_of_the_engines_size(name):
    from experiments.engine import _torch

    work = workload(name)
    network = _torch._module(work.network)
    assert sum(values.numel() for values in network.parameters()) == num_params(work.learner())


@pytest.mark.alone
def test_a_slow_way_is_timed_by_fewer_steps():
    made = []
    contender = Contender(2, lambda num_steps: made.append(num_steps) or time.sleep(0.01 * num_steps), lambda: None)
    assert pace(contender, 0.1) == pytest.approx(200, rel=0.3)  # 2 runs, 100 steps a second each
    assert sum(made) < 20


def test_layouts_are_timed_beside_the_chosen_one():
    ready = throughput.ready("tiny")
    (group,) = throughput.workload("cnn_8x8").plan(0, 2, 100).groups
    explicit = throughput._explicit(group.with_layout(group.layout._replace(width=2)))
    assert explicit == Layout(2, False, (("convolution", "winograd"), ("optimizer", "passes"), ("seed", "own")))
    assert throughput._explicit(group.with_layout(Layout(2))).choices[1] == ("optimizer", "one_pass")
    assert explicit in list(throughput.layouts_of("cnn_8x8"))
    timed = [ready.chosen, *throughput.layouts_of("tiny")]
    rates = ready.bench.rates(timed[:2])
    assert all(rate > 0 for rate in rates.values())
    assert list(rates) == timed[:2]
    assert ready.flops > 6 * 16 * (64 * 8 + 8 * 8 + 8 * 10)  # a batch forwards and backwards at least


def test_a_step_counts_its_share_of_one_evaluation():
    with with_choices({"optimizer": compiler.PASSES}):
        (long,) = throughput.workload("tiny").plan(0, 2, 1000).groups
    per_step = (long.flops - long.evaluation_flops) / 1000  # the evaluation before the first step is nobody's
    assert throughput.ready("tiny").flops == pytest.approx(per_step)


def test_the_rates_of_the_machine_are_plausible():
    assert 1e9 < throughput.matmul_rate(256) < 1e15
    assert 1e8 < throughput.memory_rate(2**20) < 1e13
