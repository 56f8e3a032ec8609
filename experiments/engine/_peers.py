"""Everyone's way to train the same small networks: what `experiments.engine.throughput` times.

A contender is prepared once for a workload (its compilation happens there) and gives a function that trains networks by
Adam, a learning rate each, evaluates the loss of each on the same 1,000 rows every 100 steps, and returns how many
steps of runs a second it made. Slow ones train fewer networks a round than the workload has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from dlexp import learner, losses, models, optim
from dlexp.data import Dataset
from dlexp.sweep import Grid, engine, geomspace, grid, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.types import Learner, Model, Sweep

EVERY = 100  # steps between two evaluations
Train = Callable[[int], float]


class Workload(NamedTuple):
    """What is trained.

    Attributes:
      data: inputs `[example, feature]`; at least 1,000 rows are evaluated, or all.
      widths: of the hidden layers, all dense with ReLU; the output layer has 10 units.
      batch_size: of a step.
      num_runs: networks of one timing.
      num_steps: steps of each.
    """

    data: Dataset
    widths: tuple[int, ...]
    batch_size: int
    num_runs: int
    num_steps: int

    def learner(self) -> Learner:
        """The project's own learner."""
        tx, loss = optim.adam(), losses.softmax_cross_entropy
        data = Dataset(self.data.train)
        return learner.supervised(self.model(), loss, tx, data, batch_size=self.batch_size)

    def model(self) -> Model:
        """The project's own network."""
        return models.mlp(width=self.widths[0], num_layers=len(self.widths) + 1, num_outputs=10)

    def grid(self, seed: int) -> Grid:
        """As many learning rates as runs, one seed."""
        rates = geomspace(1e-4, 1e-2, self.num_runs)
        return grid(hyper={"learning_rate": rates}, seeds=(seed,))

    def rates(self) -> np.ndarray:
        """The learning rates of all runs."""
        return np.array(geomspace(1e-4, 1e-2, self.num_runs), np.float32)


def flops(work: Workload) -> float:
    """Returns the floating-point operations of all runs together, evaluations counted."""
    sweep = Sweep(work.grid(0), lambda config, num_steps: work.learner(), work.num_steps, work.num_steps // EVERY)
    made = planning.make(Identity("flops", 1, "main", work.num_steps), sweep, machine.start_devices())
    return sum(group.flops * group.num_runs for group in made.groups)


def this_engine(work: Workload) -> Train:
    """The engine, everything included but compilation and files."""
    devices, num_evals = machine.start_devices(), work.num_steps // EVERY
    prepared = work.learner()

    def train(seed: int) -> float:
        sweep = Sweep(work.grid(seed), lambda config, num_steps: prepared, work.num_steps, num_evals)
        plan = planning.make(Identity("throughput", 1, "main", work.num_steps), sweep, devices)
        events = engine.train(plan, devices)
        seconds = sum(event.seconds for event in events if isinstance(event, engine.Finished))
        return work.num_runs * work.num_steps / seconds

    return train


def _one_run(work: Workload, each: Learner) -> Callable[..., jax.Array]:
    """One run as one function of seed, rate and data: a loop over intervals, an evaluation after each.

    Its random numbers are the engine's, so the losses are, too.
    """

    def run(seed: jax.Array, rate: jax.Array, data: Any) -> jax.Array:
        hyper = {name: jnp.asarray(legal.default or 0.0) for name, legal in each.hyper.items()}
        hyper["learning_rate"] = rate
        init_key, update_key, key = (jax.random.fold_in(jax.random.key(seed), purpose) for purpose in range(3))
        state = each.init(init_key, hyper, data)
        assert each.update is not None
        update = each.update

        def interval(state: Any, first: jax.Array) -> tuple[Any, jax.Array]:
            def step(index: jax.Array, state: Any) -> Any:
                return update(jax.random.fold_in(update_key, index), hyper, data, state)[0]

            state = jax.lax.fori_loop(first, first + EVERY, step, state)
            return state, each.evaluate(key, hyper, data, state)["train/loss"]

        return jax.lax.scan(interval, state, jnp.arange(0, work.num_steps, EVERY))[1]

    return run


def bare_loop(work: Workload) -> Train:
    """The same learner in a hand-written program: vmapped over 8 runs on each device, no engine around it."""
    devices = machine.start_devices()
    mesh = jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)
    each = work.learner()
    specs = (PartitionSpec("run"), PartitionSpec("run"), PartitionSpec())
    spread = jax.shard_map(
        jax.vmap(_one_run(work, each), in_axes=(0, 0, None)),
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec("run"),
        check_vma=False,
    )
    many, width = jax.jit(spread), 8 * len(devices)
    return _in_chunks(work, many, each.data, width)


def one_vmap(work: Workload) -> Train:
    """What a user of JAX writes first: jit(vmap(scan)) of Linen's own layers over all runs."""
    each = _linen_learner(work)
    many = jax.jit(jax.vmap(_one_run(work, each), in_axes=(0, 0, None)))
    return _in_chunks(work, many, each.data, work.num_runs)


def one_scan_a_run(work: Workload) -> Train:
    """One jitted scan a run, one run after another."""
    each = _linen_learner(work)
    single = jax.jit(_one_run(work, each))

    def many(seeds: jax.Array, rates: jax.Array, data: Any) -> jax.Array:
        return single(seeds[0], rates[0], data)

    return _in_chunks(work, many, each.data, 1)


def python_loop(work: Workload) -> Train:
    """A Python loop over a jitted step, one run after another."""
    each = _linen_learner(work)
    assert each.update is not None
    step, evaluate, data = jax.jit(each.update), jax.jit(each.evaluate), jax.device_put(each.data)
    init = jax.jit(each.init)

    def run(seed: int, num_steps: int, num_runs: int) -> None:
        for rate in work.rates()[:num_runs]:
            hyper = {name: jnp.float32(legal.default or 0.0) for name, legal in each.hyper.items()}
            hyper["learning_rate"] = jnp.float32(rate)
            key = jax.random.key(seed)
            state = init(key, hyper, data)
            for index in range(num_steps):
                state, _ = step(jax.random.fold_in(key, index), hyper, data, state)
                if (index + 1) % EVERY == 0:
                    evaluate(key, hyper, data, state)["train/loss"].block_until_ready()

    return _timed(run, work, num_runs=8)


def _linen_learner(work: Workload) -> Learner:
    """The same training with a network as Linen's documentation writes it."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs: jax.Array, hyper: Any, key: Any, train: bool) -> jax.Array:
            for width in work.widths:
                inputs = nn.relu(nn.Dense(width)(inputs))
            return nn.Dense(10)(inputs)

    return learner.supervised(
        models.from_linen(Network()),
        losses.softmax_cross_entropy,
        optim.Optimizer({"learning_rate": optim.LEARNING_RATE}, lambda hyper: optax.adam(hyper["learning_rate"])),
        Dataset(work.data.train),
        batch_size=work.batch_size,
    )


def _in_chunks(work: Workload, many: Callable[..., jax.Array], data: Any, width: int) -> Train:
    placed, rates = jax.device_put(data), work.rates()

    def run(seed: int, num_steps: int, num_runs: int) -> None:
        for start in range(0, num_runs, width):
            seeds = np.full(width, seed, np.uint32)
            part = np.resize(rates[start : start + width], width)
            jax.block_until_ready(many(seeds, part, placed))

    return _timed(run, work)


def _timed(
    run: Callable[[int, int, int], None], work: Workload, num_runs: int | None = None, num_steps: int | None = None
) -> Train:
    """Warms `run(seed, num_steps, num_runs)` up, then times it."""
    runs, steps = num_runs or work.num_runs, num_steps or work.num_steps
    run(0, EVERY, 1)

    def train(seed: int) -> float:
        began = time.perf_counter()
        run(seed, steps, runs)
        return runs * steps / (time.perf_counter() - began)

    return train


def scikit_learn(work: Workload) -> Train:
    """scikit-learn's MLPClassifier, step by step, one run after another."""
    from sklearn.neural_network import MLPClassifier

    inputs, labels = work.data.train
    classes = np.unique(labels)

    def run(seed: int, num_steps: int, num_runs: int) -> None:
        rng = np.random.default_rng(seed)
        for rate in work.rates()[:num_runs]:
            rows = work.batch_size
            network = MLPClassifier(work.widths, batch_size=rows, random_state=seed, learning_rate_init=float(rate))
            for index in range(num_steps):
                batch = rng.integers(0, len(inputs), rows)
                network.partial_fit(inputs[batch], labels[batch], classes=classes if index == 0 else None)
                if (index + 1) % EVERY == 0:
                    network.score(inputs[:1000], labels[:1000])

    return _timed(run, work, num_runs=4)


def torch_eager(work: Workload) -> Train:
    """PyTorch eager on one thread, one run after another."""
    import torch

    inputs, labels = (torch.as_tensor(np.array(array)) for array in work.data.train)
    labels = labels.long()

    def run(seed: int, num_steps: int, num_runs: int) -> None:
        torch.set_num_threads(1)
        for rate in work.rates()[:num_runs]:
            torch.manual_seed(seed)
            model, loss = _torch_network(work), torch.nn.CrossEntropyLoss()
            tx = torch.optim.Adam(model.parameters(), lr=float(rate))
            for index in range(num_steps):
                rows = torch.randint(0, len(inputs), (work.batch_size,))
                tx.zero_grad()
                loss(model(inputs[rows]), labels[rows]).backward()
                tx.step()
                if (index + 1) % EVERY == 0:
                    with torch.no_grad():
                        loss(model(inputs[:1000]), labels[:1000]).item()

    return _timed(run, work, num_runs=4)


def _torch_network(work: Workload) -> Any:
    import torch

    sizes = (work.data.train.inputs.shape[1], *work.widths)
    layers: list[Any] = []
    for pair in pairwise(sizes):
        layers += [torch.nn.Linear(*pair), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 10))


def torch_vmap(work: Workload) -> Train:
    """PyTorch's `torch.func`: all runs in one vmapped gradient, Adam written out on the stacked weights."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    inputs, labels = (torch.as_tensor(np.array(array)) for array in work.data.train)
    labels = labels.long()
    rates = torch.as_tensor(work.rates())

    base = _torch_network(work)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(functional_call(base, params, (x,)), y)

    gradients, evaluate = vmap(grad(loss), in_dims=(0, None, None)), vmap(loss, in_dims=(0, None, None))

    def run(seed: int, num_steps: int, num_runs: int) -> None:
        torch.set_num_threads(machine.num_cores())
        torch.manual_seed(seed)
        params, _ = stack_module_state([_torch_network(work) for _ in range(work.num_runs)])
        params = {name: value.detach() for name, value in params.items()}
        first = {name: torch.zeros_like(value) for name, value in params.items()}
        second = {name: torch.zeros_like(value) for name, value in params.items()}
        for index in range(num_steps):
            rows = torch.randint(0, len(inputs), (work.batch_size,))
            for name, g in gradients(params, inputs[rows], labels[rows]).items():
                first[name].mul_(0.9).add_(g, alpha=0.1)
                second[name].mul_(0.999).addcmul_(g, g, value=0.001)
                scale = (1 - 0.999 ** (index + 1)) ** 0.5 / (1 - 0.9 ** (index + 1))
                step = rates.view(-1, *[1] * (g.ndim - 1)) * scale
                params[name] -= step * first[name] / (second[name].sqrt() + 1e-8)
            if (index + 1) % EVERY == 0:
                evaluate(params, inputs[:1000], labels[:1000]).sum().item()

    return _timed(run, work, num_steps=EVERY)


CONTENDERS: dict[str, Callable[[Workload], Train]] = {
    "this engine": this_engine,
    "bare vmapped loop": bare_loop,
    "jit(vmap(scan)), Linen": one_vmap,
    "one jitted scan a run": one_scan_a_run,
    "Python loop, jitted step": python_loop,
    "scikit-learn": scikit_learn,
    "PyTorch eager": torch_eager,
    "torch.func vmap": torch_vmap,
}
