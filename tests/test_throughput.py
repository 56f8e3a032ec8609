"""Everyone in the benchmark trains: what is timed is real work, the same for all."""

from __future__ import annotations

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlexp.sweep import engine, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.types import Sweep
from experiments.engine import _peers, throughput


@pytest.mark.parametrize("contender", [name for name in _peers.CONTENDERS if name != throughput.ENGINE])
def test_every_contender_trains_a_tiny_workload(contender):
    if "torch" in contender.lower() and not find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    rate = _peers.CONTENDERS[contender](throughput.workload("tiny"))(1)
    assert 0 < rate < 1e9


def test_the_bare_loop_makes_the_losses_of_the_engine():
    work = throughput.workload("tiny")
    each = work.learner()
    seeds, rates = np.full(work.num_runs, 3, np.uint32), work.rates()
    bare = jax.vmap(_peers._one_run(work, each), in_axes=(0, 0, None))(
        seeds, rates, jax.tree.map(jnp.asarray, each.data)
    )
    sweep = Sweep(work.grid(3), lambda config, num_steps: each, work.num_steps, work.num_steps // _peers.EVERY)
    devices = machine.start_devices()
    plan = planning.make(Identity("tests.peers", 1, "main", work.num_steps), sweep, devices)
    finished = [event for event in engine.train(plan, devices) if isinstance(event, engine.Finished)]
    ours = np.concatenate([event.metrics["train/loss"] for event in finished])[:, -1]  # by rising rate, as in rates
    theirs = np.asarray(bare)[:, -1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # float32, 100 steps, another width


def test_the_rates_of_the_machine_are_plausible():
    assert 1e9 < throughput.matmul_rate(256) < 1e15
    assert 1e8 < throughput.memory_rate(2**20) < 1e13
