"""How many small networks are trained in a second, by this engine and by its peers?

The lesson counts training time in hours and days and lays it on the hardware (text 004, "Deep Learning vs Classical
Machine Learning"; "Why Deep Learning Became Practical": months on CPUs, hours on GPUs). Here the same small networks
are trained in several ways on one machine: by this engine, by the program that it wraps written by hand, as JAX,
PyTorch (https://docs.pytorch.org/docs/stable/func.html) and scikit-learn are commonly used. Everyone takes the same
steps of Adam and evaluates the same 1,000 rows every 100 steps; the ways take turns, a round a seed; compilation is
left out.

There is no theory but the machine's: the rates at which it multiplies large matrices and reads memory, measured in the
same rounds. PyTorch takes part where it is installed (the extra `peers`), MNIST where its files are at hand or can be
downloaded.

    python -m experiments.engine.throughput
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlexp import analysis, cli, plots
from dlexp.claims import Claim, each, judge
from dlexp.data import Dataset, Split, bundled, idx
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.sweep import grid
from dlexp.types import Config, Experiment, Figures, Measurement, Sweep
from experiments.engine import _peers
from experiments.engine._peers import CONTENDERS, Workload

WORKLOADS = {"small": "64-64-64-10 on digits, batch 64", "large": "784-128-128-10 on MNIST, batch 64"}
ENGINE, BARE = "this engine", "bare vmapped loop"


@cache
def workload(name: str) -> Workload:
    """The networks of a name; `tiny` is for tests."""
    if name == "large":
        images = idx.load("mnist").train
        inputs = (images.inputs[:10_000].reshape(10_000, 784) / 255).astype(np.float32)
        return Workload(Dataset(Split(inputs, images.labels[:10_000])), (128, 128), 64, 16, 200)
    digits = bundled.load("digits")
    return Workload(digits, (8, 8), 16, 16, 100) if name == "tiny" else Workload(digits, (64, 64), 64, 64, 500)


def contenders(name: str) -> list[str]:
    """Who takes part."""
    if name == "tiny":
        return [ENGINE, BARE]
    return [each for each in CONTENDERS if find_spec("torch") or "torch" not in each.lower()]


@cache
def prepared(name: str, contender: str) -> tuple[_peers.Train, float]:
    """The contender, compiled and warm, and the seconds that took."""
    began = time.perf_counter()
    train = CONTENDERS[contender](workload(name))
    train(0)
    return train, time.perf_counter() - began


def rounds(config: Config, num_steps: int) -> Measurement:
    """One turn of everyone, in an order that the seed rotates."""
    name = config["workload"]

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        who = contenders(name)
        ready = {each: prepared(name, each) for each in who}
        start = seed % len(who)
        measured: dict[str, Any] = {f"rate/{each}": ready[each][0](seed) for each in who[start:] + who[:start]}
        work = workload(name)
        measured["work/flops"] = _peers.flops(work) / (work.num_runs * work.num_steps)
        measured["machine/matmul"], measured["machine/memory"] = matmul_rate(), memory_rate()
        measured["machine/devices"] = len(jax.local_devices())
        return measured | {f"prepare/{each}": seconds for each, (_, seconds) in ready.items()}

    return Measurement(measure)


def matmul_rate(size: int = 1536) -> float:
    """Returns the floating-point operations a second of a large product of float32 matrices on all devices."""
    devices = jax.local_devices()
    factors = [jax.device_put(jnp.ones((size, size), jnp.float32), device) for device in devices]
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready([product(a) for a in factors])
    began = time.perf_counter()
    jax.block_until_ready([product(a) for a in factors for _ in range(4)])
    return len(devices) * 4 * 2 * size**3 / (time.perf_counter() - began)


def memory_rate(size: int = 2**26) -> float:
    """Returns the bytes a second of copying an array of 256 MiB, read and written."""
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)
    began = time.perf_counter()
    np.copyto(target, source)
    return 2 * source.nbytes / (time.perf_counter() - began)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Rounds of each workload."""
    seeds = {"smoke": range(2), "cpu": range(8), "gpu": range(16)}[scale]
    names = ("tiny",) if scale == "smoke" else tuple(WORKLOADS)
    return {name: Sweep(grid(config={"workload": (name,)}, seeds=seeds), rounds, num_steps=0) for name in names}


def figures(results: Results) -> Figures:
    """Steps a second of everyone; the share of the machine's rate."""
    return {"rates": lambda: _rates(results)}


def claims(results: Results) -> list[Claim]:
    """What the project promises of its speed."""
    torch = "PyTorch, torch.func, https://docs.pytorch.org/docs/stable/func.html; the number is the project's aim"
    jaxs = (
        "JAX, Automatic vectorization, https://docs.jax.dev/en/latest/automatic-vectorization.html; the number is ours"
    )
    return [
        judge(
            "The engine costs little: it is as fast as the program it wraps, written by hand.",
            source=jaxs,
            rule="rate of the engine over that of the bare loop in the same round, on sweeps of about a second; at "
            "least 1 / 1.05",
            effects=each("{}", WORKLOADS, lambda name: _ratio(results, name, BARE)),
            smallest=1 / 1.05,
        ),
        judge(
            "It is three times as fast as one jitted scan a run.",
            source=jaxs,
            rule="rate of the engine over that of one jitted scan after another in the same round; at least 3",
            effects=each("{}", WORKLOADS, lambda name: _ratio(results, name, "one jitted scan a run")),
            smallest=3.0,
        ),
        judge(
            "It is nine times as fast as PyTorch eager on every core.",
            source=torch,
            rule="rate of the engine over that of PyTorch eager on one thread, times the cores, in the same round; at "
            "least 9",
            effects=each(
                "{}", WORKLOADS, lambda name: _ratio(results, name, "PyTorch eager") / _num_devices(results[name])
            ),
            smallest=9.0,
        ),
        judge(
            "It is three and a half times as fast as PyTorch's vmapped ensembles.",
            source=torch,
            rule="rate of the engine over that of torch.func's vmap in the same round; at least 3.5",
            effects=each("{}", WORKLOADS, lambda name: _ratio(results, name, "torch.func vmap")),
            smallest=3.5,
        ),
        judge(
            "It reaches most of the machine's rate of multiplying matrices.",
            source="Williams, Waterman and Patterson, Roofline, 2009, https://doi.org/10.1145/1498765.1498785",
            rule="floating-point operations a second of the engine over those of a large product of matrices in the "
            "same round; at least 0.6",
            effects=each("{}", WORKLOADS, lambda name: _share(results[name], ENGINE)),
            smallest=0.6,
        ),
    ]


def _of(table: Table, who: str) -> np.ndarray:
    if f"rate/{who}" not in table.frame:
        raise NotMeasuredError(f"{who} did not take part")
    return table.frame[f"rate/{who}"].to_numpy()


def _ratio(results: Results, name: str, other: str) -> np.ndarray:
    return _of(results[name], ENGINE) / _of(results[name], other)


def _share(table: Table, who: str) -> np.ndarray:
    frame = table.frame
    return _of(table, who) * frame["work/flops"].to_numpy() / frame["machine/matmul"].to_numpy()


def _num_devices(table: Table) -> np.ndarray:
    return table.frame["machine/devices"].to_numpy()


def _rates(results: Results) -> Figure:
    names = list(results)
    figure, panels = plots.subplots(1, len(names), width=6.4, height=4.4)
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        table = results[name]
        who = [each for each in CONTENDERS if f"rate/{each}" in table.frame]
        for place, contender in enumerate(who):
            rate = _of(table, contender)
            color = plots.COLORS[0] if contender == ENGINE else plots.COLORS[1]
            axes.barh(-place, np.median(rate), color=color, alpha=0.85)
            values = rate[:, None]
            plots.interval_points(axes, np.array([-place]), values, label="", color="black", horizontal=True)
            text = f"{100 * np.median(_share(table, contender)):.0f}% of matmul"
            text += "" if contender == ENGINE else f"; engine {np.median(_of(table, ENGINE) / rate):.1f} x"
            axes.text(1.2 * analysis.t_interval(rate).high, -place, text, va="center", fontsize=9)
        axes.set_yticks(-np.arange(len(who)), who)
        low = min(np.median(_of(table, each)) for each in who)
        axes.set(xscale="log", xlim=(low / 3, np.median(_of(table, ENGINE)) * 20), xlabel="steps of runs a second")
        axes.set(title=WORKLOADS.get(name, name))
    rounds_made = next(iter(results.values())).frame["seed"].nunique()
    rate = np.median(np.concatenate([table.frame["machine/matmul"] for table in results.values()])) / 1e9
    text = f"median of {rounds_made} rounds in turn, points: mean and 95% interval; matmul: {rate:.0f} GFLOP/s here"
    plots.note(figure, text)
    return figure


EXPERIMENT = Experiment(
    name="engine.throughput",
    version=1,
    question="How many small networks are trained in a second, by this engine and by its peers?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
