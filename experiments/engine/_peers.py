"""Everyone's way to train the same networks: what `experiments.engine.throughput` times.

A way is prepared once for a workload (its compilation happens there); it trains networks by Adam, a learning rate each,
and evaluates the loss of each on the same 1,000 rows every 100 steps.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlexp import keys, learners, losses, models, ops, optim
from dlexp.data import Dataset
from dlexp.sweep import Grid, engine, geomspace, grid, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.sweep.layouts import Layout
from dlexp.sweep.plan import Plan
from dlexp.types import Learner, Model, Sweep
from experiments.engine._timing import EVERY, Contender, Network, pace

Rate = Callable[[float], float]  # about so many seconds -> steps of runs a second


class Workload(NamedTuple):
    """What is trained.

    Attributes:
      data: inputs `[example, feature]`; at least 1,000 rows are evaluated, or all.
      network: its shape.
      batch_size: of a step.
      num_runs: networks that are trained at once by those who train many.
      num_steps: of a run in the engine.
    """

    data: Dataset
    network: Network
    batch_size: int
    num_runs: int
    num_steps: int = 10 * EVERY

    def learner(self) -> Learner:
        """The project's own learner."""
        return self.learner_of(_own_model(self.network))

    def learner_of(self, model: Model) -> Learner:
        """The same training of any model."""
        data, tx = Dataset(self.data.train), optim.adam()
        return learners.supervised(model, losses.softmax_cross_entropy, tx, data, batch_size=self.batch_size)

    def rates(self) -> np.ndarray:
        """A learning rate for each run."""
        return np.array(geomspace(1e-4, 1e-2, self.num_runs), np.float32)

    def plan(self, seed: int, num_runs: int, num_steps: int) -> Plan:
        """So many runs in the engine, of one seed."""
        runs: Grid = grid(hyper={"learning_rate": geomspace(1e-4, 1e-2, num_runs)}, seeds=(seed,))
        sweep = Sweep(runs, lambda config, num_steps: self.learner(), num_steps, num_steps // EVERY)
        return planning.make(Identity("throughput", 1, "main", num_steps), sweep, machine.start_devices())


def _own_model(network: Network) -> Model:
    if network.conv_layers:
        return models.cnn(
            input_shape=network.input_shape,
            conv_layers=network.conv_layers,
            dense_widths=network.widths,
            num_outputs=10,
            activation=network.activation,
        )
    num_layers = len(network.widths) + 1
    return models.mlp(width=network.widths[0], num_layers=num_layers, num_outputs=10, activation=network.activation)


class _Linen(nn.Module):
    """The network as Linen's documentation writes it."""

    network: Network

    @nn.compact
    def __call__(self, inputs: jax.Array, hyper: Any, key: Any, train: bool) -> jax.Array:
        activate = getattr(jax.nn, self.network.activation)
        hidden = inputs.reshape(len(inputs), *(self.network.input_shape or (-1,)))
        num_space = len(self.network.input_shape) - 1
        for channels, kernel, stride, padding, pool in self.network.conv_layers:
            hidden = nn.Conv(channels, (kernel,) * num_space, stride, [(padding, padding)] * num_space)(hidden)
            hidden = activate(hidden)
            if pool > 1:
                hidden = nn.max_pool(hidden, (pool,) * num_space, (pool,) * num_space)
        hidden = hidden.reshape(len(hidden), -1)
        for width in self.network.widths:
            hidden = activate(nn.Dense(width)(hidden))
        return nn.Dense(10)(hidden)


def _linen_learner(work: Workload) -> Learner:
    optimizer = optim.Optimizer(
        {"learning_rate": optim.LEARNING_RATE}, lambda hyper: optax.adam(hyper["learning_rate"])
    )
    return learners.supervised(
        models.from_linen(_Linen(work.network)),
        losses.softmax_cross_entropy,
        optimizer,
        Dataset(work.data.train),
        batch_size=work.batch_size,
    )


def this_engine(work: Workload, layout: Layout) -> Rate:
    """The engine, everything included but compilation and files: initialization, the evaluation before the first step.

    One sweep goes on from turn to turn, whole chunks at a time. Its first chunk, in which the engine finds out how many
    steps a call may have, is made beforehand.
    """
    devices = machine.start_devices()

    def chunks() -> Iterator[tuple[int, float]]:
        for seed in count():
            plan = work.plan(seed, 100_000, work.num_steps)
            plan = plan._replace(groups=tuple(group.with_layout(layout) for group in plan.groups))
            for event in engine.train(plan, devices):
                if isinstance(event, engine.Finished):
                    yield len(event.runs) * work.num_steps, event.seconds

    sweep = chunks()
    next(sweep)

    def rate(seconds: float) -> float:
        made, spent = next(sweep)
        while spent < seconds:
            steps, more = next(sweep)
            made, spent = made + steps, spent + more
        return made / spent

    return rate


def bare_loop(work: Workload, layout: Layout) -> Rate:
    """The same learner in hand-written programs of the same layout, and no engine around them.

    From this package it takes the learner and the room `ops`, by which its programs are laid out like the engine's.
    """
    devices = machine.start_devices()
    mesh = jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)
    each, num_rows = work.learner(), layout.width * len(devices)
    of_seed = (None, PartitionSpec()) if layout.shares_seed else (0, PartitionSpec("run"))

    def spread(function: Callable, num_swept: int, num_shared: int) -> Callable:
        run_axes, run_specs = zip(of_seed, (0, PartitionSpec("run")), strict=True)  # of the seed and of the rate
        axes: Any = (*[0] * (num_swept - 1), run_axes, *[None] * num_shared)
        specs: Any = (*[PartitionSpec("run")] * (num_swept - 1), run_specs, *[PartitionSpec()] * num_shared)
        many = jax.vmap(function, in_axes=axes)
        return jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("run"), check_vma=False)

    chosen = dict(layout.choices)
    options = ops.compiler.compiler_options(chosen.get("optimizer", ops.compiler.ways_to_update()[0]))
    sharding = NamedSharding(mesh, PartitionSpec("run"))
    way = _Way(spread, layout.stepwise, options, sharding, layout.shares_seed, _laid_loop)
    with ops.choices.with_choices(chosen):
        return _jax_rate(each, work, num_rows, way)


def _laid_loop(start: jax.Array, stop: jax.Array, step: Callable, state: Any) -> Any:
    """A loop whose state is stored as the engine's is."""
    return ops.storage.leave(jax.lax.fori_loop(start, stop, ops.storage.body(step), ops.storage.enter(state)))


def one_vmap(work: Workload) -> Rate:
    """What a user of JAX writes first: jit(vmap(scan)) of Linen's own layers over all runs."""

    def spread(function: Callable, num_swept: int, num_shared: int) -> Callable:
        return jax.vmap(function, in_axes=(*[0] * num_swept, *[None] * num_shared))

    return _usual_rate(work, work.num_runs, spread, False)


def one_scan_a_run(work: Workload) -> Rate:
    """One jitted scan a run, one run after another."""

    def alone(function: Callable, num_swept: int, num_shared: int) -> Callable:
        def one(*args: Any) -> Any:
            first = [jax.tree.map(lambda leaf: leaf[0], arg) for arg in args[:num_swept]]
            return jax.tree.map(lambda leaf: leaf[None], function(*first, *args[num_swept:]))

        return one

    return _usual_rate(work, 1, alone, False)


def python_loop(work: Workload) -> Rate:
    """A Python loop over a jitted step, one run after another."""

    def alone(function: Callable, num_swept: int, num_shared: int) -> Callable:
        return function

    return _usual_rate(work, 0, alone, True)


def _usual_rate(work: Workload, num_rows: int, spread: Callable, stepwise: bool) -> Rate:
    """Of Linen's own layers, and the optimizer's passes as Optax has them."""
    options = ops.compiler.compiler_options()
    with ops.choices.with_choices({"optimizer": "passes"}):
        return _jax_rate(_linen_learner(work), work, num_rows, _Way(spread, stepwise, options))


class _Way(NamedTuple):
    """How programs are made of what one run does.

    Attributes:
      spread: `(function, num_swept, num_shared) -> function` over many runs.
      stepwise: whether a call makes one step.
      options: of the compilation.
      sharding: of the runs, where they lie on several devices.
      shares_seed: whether all runs have one seed, so that batches are drawn once.
      loop: makes many steps.
    """

    spread: Callable
    stepwise: bool
    options: dict[str, Any]
    sharding: Any = None
    shares_seed: bool = False
    loop: Callable[..., Any] = jax.lax.fori_loop


def _jax_rate(each: Learner, work: Workload, num_rows: int, way: _Way) -> Rate:
    """Steps and evaluation, a rate for each run; 0 rows are one run without an axis."""

    def steps(state: Any, run: Any, data: Any, start: jax.Array, stop: jax.Array) -> Any:
        seed, rate = run

        def step(index: jax.Array, state: Any) -> Any:
            key = jax.random.fold_in(jax.random.fold_in(keys.of_seed(seed), 1), index)
            return each.step(key, _hyper(each, rate), data, state)[0]

        if way.stepwise:
            return step(start, state)
        return way.loop(start, stop, step, state)

    def evaluate(state: Any, run: Any, data: Any) -> Any:
        seed, rate = run
        return each.evaluate(keys.of_seed(seed), _hyper(each, rate), data, state)

    def init(run: Any, data: Any) -> Any:
        seed, rate = run
        return each.init(jax.random.fold_in(keys.of_seed(seed), 0), _hyper(each, rate), data)

    rates: Any = np.resize(work.rates(), num_rows) if num_rows else work.rates()[0]
    everywhere = way.sharding and NamedSharding(way.sharding.mesh, PartitionSpec())
    seeds = np.zeros(() if way.shares_seed else np.shape(rates), np.uint32)
    runs = jax.device_put((seeds, rates), (everywhere if way.shares_seed else way.sharding, way.sharding))
    data = jax.device_put(each.data, everywhere)
    state = jax.jit(way.spread(init, 1, 1))(runs, data)
    held, index = [state, None], np.int32(0)
    lowered = jax.jit(way.spread(steps, 2, 3), donate_argnums=0).lower(state, runs, data, index, index)
    train = lowered.compile(compiler_options=way.options)
    measure = jax.jit(way.spread(evaluate, 2, 1)).lower(state, runs, data).compile(compiler_options=way.options)

    def advance(num_steps: int) -> None:
        ranges = [(at, at + 1) for at in range(num_steps)] if way.stepwise else [(0, num_steps)]
        for start, stop in ranges:
            held[0] = train(held[0], runs, data, np.int32(start), np.int32(stop))

    def look() -> None:
        held[1] = measure(held[0], runs, data)

    contender = Contender(max(num_rows, 1), advance, look, lambda: jax.block_until_ready(held))
    return lambda seconds: pace(contender, seconds)


def _hyper(each: Learner, rate: jax.Array) -> dict[str, jax.Array]:
    fixed = {name: jnp.asarray(legal.default or 0.0) for name, legal in each.hyper.items()}
    return {**fixed, "learning_rate": rate}


def scikit_learn(work: Workload) -> Rate:
    """scikit-learn's MLPClassifier, step by step, one run after another; it has no convolutions."""
    from sklearn.neural_network import MLPClassifier

    inputs, labels = work.data.train
    rng, rows = np.random.default_rng(0), work.batch_size
    kind: Any = work.network.activation
    network = MLPClassifier(work.network.widths, activation=kind, batch_size=rows, learning_rate_init=1e-3)
    network.partial_fit(inputs[:rows], labels[:rows], classes=np.unique(labels))

    def steps(num_steps: int) -> None:
        for _ in range(num_steps):
            batch = rng.integers(0, len(inputs), rows)
            network.partial_fit(inputs[batch], labels[batch])

    contender = Contender(1, steps, lambda: network.score(inputs[:1000], labels[:1000]) and None)
    return lambda seconds: pace(contender, seconds)


def torch_eager(work: Workload) -> Rate:
    """PyTorch eager: one process on all cores; on the GPU where there is one."""
    from experiments.engine import _torch

    threads = machine.num_cores()
    contender = _torch.eager(work.network, work.data.train, work.rates(), work.batch_size, num_threads=threads)
    return lambda seconds: pace(contender, seconds)


def torch_processes(work: Workload) -> Rate:
    """PyTorch eager: a process a core, one thread each."""
    from experiments.engine import _torch

    processes = _torch.EveryCore(
        work.network, work.data.train, work.rates(), work.batch_size, num_processes=machine.num_cores()
    )
    atexit.register(processes.close)
    return processes.rate


def torch_vmap(work: Workload) -> Rate:
    """PyTorch's `torch.func`: all runs in one vmapped gradient, on all cores or the GPU."""
    from experiments.engine import _torch

    threads = machine.num_cores()
    contender = _torch.vmapped(work.network, work.data.train, work.rates(), work.batch_size, num_threads=threads)
    return lambda seconds: pace(contender, seconds)


PEERS: dict[str, Callable[[Workload], Rate]] = {
    "jit(vmap(scan)), Linen": one_vmap,
    "one jitted scan a run": one_scan_a_run,
    "Python loop, jitted step": python_loop,
    "scikit-learn": scikit_learn,
    "PyTorch eager, all cores": torch_eager,
    "PyTorch eager, a process a core": torch_processes,
    "torch.func vmap": torch_vmap,
}
