"""What does a run cost as the sweep grows, and how long is the way to the first step?

The lesson has deep learning wait for hours and days (text 004, "Deep Learning vs Classical Machine Learning"); a sweep
that grows a thousandfold should wait a thousand times as long and no longer, and need no more memory: its grid is never
expanded, its results stream to the disk. Measured here, each in a process of its own: runs a second and memory of tiny
networks from 64 runs to 200,000, all steps from plan to saved results; the time from a command to its first training
step, with an empty compile cache and with a full one; the compile time of networks of 10 to 1000 layers.

There is no theory: the prediction is a ratio of one; compiled programs are kept on the disk by JAX
(https://docs.jax.dev/en/latest/persistent_compilation_cache.html). The runs are two-layer perceptrons of 4 units on
iris, 10 steps.

    python -m experiments.engine.growth
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.results import NotMeasuredError, Results
from dlexp.study import Claim, Effect, each, judge, statistics, style
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Learner, Measurement, Sweep

COUNTS = (64, 50_000, 200_000)
DEPTHS = (10, 50, 200, 1000)
COMMAND = "experiments.optimization.optimizers"  # whose first step is waited for


def tiny(num_runs: int) -> Experiment:
    """So many runs of a tiny network."""

    def make_learner(config: Config, num_steps: int) -> Learner:
        model = models.mlp(width=4, num_layers=2, num_outputs=3)
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), bundled.load("iris"), batch_size=8)

    num_rates = min(100, num_runs)
    runs = grid(hyper={"learning_rate": geomspace(0.01, 1.0, num_rates)}, seeds=-(-num_runs // num_rates))
    sweep = Sweep(runs, make_learner, num_steps=10)
    return Experiment("tiny.runs", 1, "How many?", lambda scale: {"main": sweep})


def train_in_turn(counts: list[int]) -> list[dict[str, float]]:
    """Trains and saves sweeps of so many tiny runs; seconds and the process's highest memory in MiB after each."""
    from rich.console import Console

    from dlexp import api, training

    done: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as root, open(os.devnull, "w") as nowhere:
        for place, count in enumerate([counts[0], *counts]):  # the first twice: it starts the process up
            began = time.perf_counter()
            experiment, folder = tiny(count), Path(root, str(place))
            plans, console = api.plan(experiment), Console(file=nowhere)
            training.train(experiment, plans, scale="cpu", folder=folder, fresh=False, console=console)
            seconds, runs = time.perf_counter() - began, sum(plan.num_runs for plan in plans.values())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)
            done.append({"runs": runs, "seconds": seconds, "memory": peak})
    return done[1:]


def first_step(module: str, scale: str) -> None:
    """Trains an experiment until the first step is made."""
    import importlib

    from dlexp import api
    from dlexp.sweep import engine, machine

    machine.enable_compile_cache()
    plans = api.plan(importlib.import_module(module).EXPERIMENT, scale=scale)
    events = engine.train(next(iter(plans.values())), machine.start_devices())
    next(event for event in events if isinstance(event, engine.Advanced))
    os._exit(0)  # programs that are still being compiled are not waited for


def runs(config: Config, num_steps: int) -> Measurement:
    """Sweeps of growing size, one after another in a fresh process."""
    counts = [int(count) for count in config["counts"].split(",")]

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        _trained_in_turn((counts[-1],))  # once: now the layout is chosen, for every round alike
        done = _trained_in_turn.__wrapped__(tuple(counts))
        columns = {name: np.array([one[name] for one in done]) for name in ("runs", "seconds", "memory")}
        return {f"sweep/{name}": values for name, values in columns.items()}

    return Measurement(measure)


@cache
def _trained_in_turn(counts: tuple[int, ...]) -> list[dict[str, float]]:
    """In a process of its own."""
    call = "import json; from experiments.engine import growth; "
    return json.loads(_process(f"{call}print(json.dumps(growth.train_in_turn({list(counts)})))", {}))


def starts(config: Config, num_steps: int) -> Measurement:
    """From a command to its first step: with nothing compiled before, then again."""
    call = f"from experiments.engine import growth; growth.first_step({config['command']!r}, {config['scale']!r})"

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            places = {"DLEXP_CACHE_DIR": cache, "JAX_COMPILATION_CACHE_DIR": str(Path(cache, "xla"))}
            return {f"start/{kind}": _seconds_of(call, places) for kind in ("cold", "warm")}

    return Measurement(measure)


def compiling(config: Config, num_steps: int) -> Measurement:
    """Compiles the training of a deep network, as the plan lays it out, past every cache."""
    from dlexp.sweep import machine, programs
    from dlexp.sweep import plan as planning
    from dlexp.sweep.grids import Identity

    model = models.mlp(width=64, num_layers=config["num_layers"], num_outputs=10, activation="tanh")
    data = bundled.load("digits")
    deep = learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), data, batch_size=64)

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        devices = machine.start_devices()
        rates = grid(hyper={"learning_rate": (0.001,)}, seeds=1)
        plan = planning.make(Identity("deep", 1, "main", 100), Sweep(rates, lambda *_: deep, 100), devices)
        jax_config: Any = jax.config
        before = jax_config.jax_enable_compilation_cache
        jax_config.update("jax_enable_compilation_cache", False)
        began = time.perf_counter()
        programs.lower(plan.groups[0], machine.mesh(devices))[1].compile()
        seconds = time.perf_counter() - began
        jax_config.update("jax_enable_compilation_cache", before)
        return {"compile/seconds": seconds}

    return Measurement(measure)


def _process(call: str, places: Mapping[str, str]) -> str:
    """What a Python of its own prints."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, **places}
    done = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a process of the benchmark failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _seconds_of(call: str, places: Mapping[str, str]) -> float:
    began = time.perf_counter()
    _process(call, places)
    return time.perf_counter() - began


def sweeps(scale: str) -> dict[str, Sweep]:
    """Rounds of each measurement."""
    counts = {"smoke": (16, 100, 400), "cpu": COUNTS, "gpu": (4_096, 100_000, 1_000_000)}[scale]
    seeds = {"smoke": range(1), "cpu": range(8), "gpu": range(16)}[scale]
    depths = (10,) if scale == "smoke" else DEPTHS
    # at smoke, a command whose programs are compiled in no time
    command, of_scale = ("experiments.engine.trainability_map", "smoke") if scale == "smoke" else (COMMAND, "cpu")
    start = {"command": (command,), "scale": (of_scale,)}
    return {
        "runs": Sweep(grid(config={"counts": (",".join(map(str, counts)),)}, seeds=seeds), runs, num_steps=0),
        "starts": Sweep(grid(config=start, seeds=seeds), starts, num_steps=0),
        "compiling": Sweep(grid(config={"num_layers": depths}, seeds=seeds), compiling, num_steps=0),
    }


def claims(results: Results) -> list[Claim]:
    """Nothing grows but the training itself."""
    source = (
        'text 004, "ML Deep Learning Introduction", Deep Learning vs Classical Machine Learning; the number is ours'
    )
    return [
        judge(
            "A run of a sweep of 200,000 costs no more than one of 50,000.",
            source,
            Effect(
                "seconds of a run between 64 and 50,000 runs over those between 50,000 and 200,000, in one process",
                {"": lambda: _run_seconds(results)[:, 0] / _run_seconds(results)[:, 1]},
            ),
            least=0.9,
        ),
        judge(
            "A sweep of 200,000 runs needs no more memory than one of 50,000.",
            source,
            Effect(
                "highest memory of the process after the smaller sweep over that after the larger",
                {"": lambda: _of(results, "memory")[:, -2] / _of(results, "memory")[:, -1]},
            ),
            least=0.9,
        ),
        judge(
            "From a command to the first step it takes under 10 seconds, 6 where everything was compiled before.",
            source,
            Effect(
                f"10 (cold) or 6 (warm) over the seconds from starting {COMMAND} to its first step",
                each("{}", [("cold", 10.0), ("warm", 6.0)], lambda kind, most: most / _start(results, kind)),
            ),
            least=1.0,
        ),
        judge(
            "Networks of 1000 layers compile as fast as those of 10.",
            source,
            Effect(
                "compile seconds of the training of 10 layers over those of so many",
                each("{} layers", DEPTHS[1:], lambda depth: _compile(results, 10) / _compile(results, depth)),
            ),
            least=0.8,
        ),
    ]


def _of(results: Results, name: str) -> np.ndarray:
    """[seed, sweep]"""
    return results["runs"].curves(f"sweep/{name}")[np.argsort(results["runs"].frame["seed"]), 0]


def _run_seconds(results: Results) -> np.ndarray:
    """Of one run more, between sweeps of one size and the next, `[seed, step]`."""
    return np.diff(_of(results, "seconds")) / np.diff(_of(results, "runs"))


def _start(results: Results, kind: str) -> np.ndarray:
    return results["starts"].frame.sort_values("seed")[f"start/{kind}"].to_numpy()


def _compile(results: Results, num_layers: int) -> np.ndarray:
    frame = results["compiling"].frame
    if num_layers not in set(frame["num_layers"]):
        raise NotMeasuredError(f"{num_layers} layers were not compiled")
    return frame[frame["num_layers"] == num_layers].sort_values("seed")["compile/seconds"].to_numpy()


def growth(results: Results) -> Figure:
    """Draws seconds by runs, memory, starts and compile times."""
    figure, (rate, memory, start, compiled) = style.subplots(1, 4, width=3.6, height=3.4)
    counts = _of(results, "runs")[0]
    labels = [f"{low:,.0f} to {high:,.0f}" for low, high in pairwise(counts)]
    _bars(rate, labels, 1 / _run_seconds(results), "runs a second", "runs of the sweep")
    _bars(memory, [f"{count:,.0f}" for count in counts], _of(results, "memory"), "highest memory, MiB", "runs so far")
    both = np.stack([_start(results, kind) for kind in ("cold", "warm")], axis=1)
    _bars(start, ["nothing\ncompiled", "compiled\nbefore"], both, "seconds to the first step", "")
    depths = sorted(set(results["compiling"].frame["num_layers"]))
    times = np.stack([_compile(results, depth) for depth in depths], axis=1)
    _bars(compiled, [f"{depth:,}" for depth in depths], times, "seconds to compile the training", "layers")
    style.note(figure, f"mean and 95% interval of {len(both)} rounds; tiny networks, everything from plan to disk")
    return figure


def _bars(axes: Any, labels: list[str], values: np.ndarray, ylabel: str, xlabel: str) -> None:
    places = np.arange(len(labels))
    axes.bar(places, values.mean(axis=0), color=style.COLORS[0], alpha=0.85)
    for place, column in zip(places, values.T, strict=True):
        if len(column) > 1:
            interval = statistics.t_interval(column)
            axes.plot([place, place], [interval.low, interval.high], color="black")
    axes.set_xticks(places, labels)
    axes.set(ylabel=ylabel, xlabel=xlabel)
    axes.set_ylim(bottom=0)


EXPERIMENT = Experiment("engine.growth", 1, __doc__, sweeps, (growth,), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
