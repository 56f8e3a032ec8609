"""How many small networks are trained in a second, by this engine and by its peers?

The lesson counts training time in hours and days and lays it on the hardware (text 004, "Deep Learning vs Classical
Machine Learning"; "Why Deep Learning Became Practical": months on CPUs, hours on GPUs). Here the same networks are
trained in several ways on one machine: by this engine, by the programs that it wraps written by hand, as JAX, PyTorch
(https://docs.pytorch.org/docs/stable/func.html) and scikit-learn are commonly used. Everyone takes the same steps of
Adam and evaluates the same 1,000 rows every 100 steps; the ways take turns, three in a round, of which the fastest
counts, and a round is a seed: a machine shared with others is slowed by them for seconds. The engine's turns are parts
of one sweep, of about a minute in all, of many rates and one seed: there runs may share their batches, in the engine,
in the programs it wraps and in PyTorch's ensembles. Compilation and files are left out. In the same rounds the layouts
are timed from which the engine's plan chooses (`dlexp.sweep.tuning`).

There is no theory but the machine's: the rate at which it multiplies large matrices, measured in the same rounds, and
that of its memory. PyTorch takes part where it is installed (the extra `peers`), MNIST where its files are at hand or
can be downloaded.

    python -m experiments.engine.throughput
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli
from dlexp.data import Dataset, Split, bundled, idx, mnist1d
from dlexp.models import ConvLayer
from dlexp.ops.choices import with_choices
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import Claim, Effect, each, judge, style
from dlexp.sweep import grid, tuning
from dlexp.sweep.layouts import Layout
from dlexp.sweep.plan import Group
from dlexp.types import Config, Experiment, Measurement, Sweep
from experiments.engine import _peers
from experiments.engine._peers import PEERS, Rate, Workload
from experiments.engine._timing import EVERY, Network

TITLES = {
    "mlp_small": "perceptron 64-64-64-10, digits",
    "mlp_large": "perceptron 784-128-128-10, MNIST",
    "cnn_8x8": "convolutions 8 x 8, digits",
    "cnn_28x28": "convolutions 28 x 28, MNIST",
    "cnn_1d": "convolutions of 40, MNIST-1D",
    "deep": "50 layers of 64, digits",
}
PERCEPTRONS, IMAGES = ("mlp_small", "mlp_large"), ("cnn_8x8", "cnn_28x28")
TINY = "tiny"  # the workload of tests
MACHINE = "machine"  # the sweep in which nothing is trained
ENGINE, BARE, PROCESSES = "this engine", "bare loop", "PyTorch eager, a process a core"
TURNS = 3  # of a round, of which the fastest counts
SECONDS = 0.15  # of one timing; way too slow ones make a step and an evaluation
LAYOUTS_SHOWN = 20  # of a workload, the fastest
ENGINE_SECONDS = 3.0  # of the engine and the loop it wraps: a sweep of about a minute in all
TINY_SECONDS, TINY_RUNS, TINY_WIDTHS = 0.02, 1000, (8,)  # of the workload of tests, whose layout is not searched
TINY_SIZES = {"matrix": 256, "array": 2**20}  # of which the machine's rates are measured beside it
CONVOLUTION_WIDTHS = {"winograd": (1, 2, 4), "batch_last": (1, 2, 4), "native": (1,)}  # on a CPU, else 1 and 2
WIDTHS = {"cpu": (1, 2, 4, 8, 16), "gpu": (1, 8, 64, 512, 4096), "tpu": (1, 8, 64, 512, 4096)}
TORCH = "PyTorch, torch.func, https://docs.pytorch.org/docs/stable/func.html; the numbers are the project's aims"
JAX = "JAX, Automatic vectorization, https://docs.jax.dev/en/latest/automatic-vectorization.html; our own aims"
ATLAS = (
    "Whaley and Dongarra, Automatically Tuned Linear Algebra Software, 1998, "
    "https://doi.org/10.1109/SC.1998.10004; the number is ours"
)
ROOFLINE = "Williams, Waterman and Patterson, Roofline, 2009, https://doi.org/10.1145/1498765.1498785"


@cache
def workload(name: str) -> Workload:
    """The networks of a name."""
    digits, conv = bundled.load("digits"), (ConvLayer(16, 3, padding=1), ConvLayer(32, 3, padding=1, pool=2))
    match name:
        case "tiny":
            return Workload(digits, Network(64, widths=(8, 8)), 16, 16)
        case "mlp_small":
            return Workload(digits, Network(64, widths=(64, 64)), 64, 64)
        case "mlp_large":
            return Workload(_mnist(), Network(784, widths=(128, 128)), 64, 16)
        case "cnn_8x8":
            return Workload(digits, Network(64, (8, 8, 1), conv, (64,)), 64, 4)
        case "cnn_28x28":
            return Workload(_mnist(), Network(784, (28, 28, 1), conv, (64,)), 64, 2, num_steps=5 * EVERY)
        case "cnn_1d":
            layers = (ConvLayer(25, 5, 2, 1), ConvLayer(25, 3, 2, 1), ConvLayer(25, 3, 2, 1))
            return Workload(mnist1d.load(), Network(40, (40, 1), layers), 100, 16)
        case "deep":
            return Workload(digits, Network(64, widths=(64,) * 49, activation="tanh"), 64, 8)
    raise KeyError(name)


def _mnist() -> Dataset:
    images = idx.load("mnist").train
    inputs = (images.inputs[:10_000].reshape(10_000, 784) / 255).astype(np.float32)
    return Dataset(Split(inputs, images.labels[:10_000]))


class Ready(NamedTuple):
    """Everyone, compiled and warm, for one workload.

    Attributes:
      rates: who -> how fast.
      bench: times layouts.
      chosen: the plan's layout, every choice said.
      flops: of a step of one run, its share of evaluations counted; convolutions as products of patches, whatever a
        lowering saves or computes twice.
      seconds: who -> spent on getting ready.
    """

    rates: Mapping[str, Rate]
    bench: tuning.Bench
    chosen: Layout
    flops: float
    seconds: Mapping[str, float]


@lru_cache(maxsize=1)  # the programs of all workloads at once are more than a process may map into its memory
def ready(name: str) -> Ready:
    """Gets everyone ready; the engine's layout is chosen as for a long sweep."""
    work, devices = workload(name), jax.local_devices()
    plan = work.plan(0, TINY_RUNS if name == TINY else 100_000, work.num_steps)
    (group,) = tuning.tuned(plan, devices, [plan.num_runs]).groups
    ways: dict[str, Callable[[], Rate]] = {
        ENGINE: lambda: _peers.this_engine(work, group.layout),
        BARE: lambda: _peers.bare_loop(work, group.layout),
        **{who: lambda way=way: way(work) for who, way in PEERS.items() if _takes_part(who, name)},  # type: ignore[misc]
    }
    rates, seconds = {}, {}
    for who, way in ways.items():
        began = time.perf_counter()
        rates[who] = way()
        rates[who](0.05)
        seconds[who] = time.perf_counter() - began
    bench = tuning.Bench(plan, plan.groups[0], devices)
    with with_choices({"convolution": "patches", "optimizer": "passes"}):
        (counted,) = work.plan(0, 2, EVERY).groups
    flops = counted.flops - counted.evaluation_flops  # that of step 0
    return Ready(rates, bench, _explicit(group), flops / EVERY, seconds)


def _takes_part(who: str, name: str) -> bool:
    if who == "scikit-learn":
        return name in (*PERCEPTRONS, "deep")
    return "torch" not in who.lower() or (name != TINY and find_spec("torch") is not None)


def layouts_of(name: str) -> Iterator[Layout]:
    """Every layout from which the plan of a workload may choose; on a CPU without the slowest, wide convolutions.

    Convolutions take what else is open in the plan's way here; other ways are measured of the chosen layout alone.
    """
    platform = jax.local_devices()[0].platform
    (group,) = workload(name).plan(0, 1000, EVERY).groups
    names = sorted(group.choices)
    usual = dict(_explicit(group).choices)
    for options in product(*(group.choices[name] for name in names)):
        way = tuple(zip(names, options, strict=True))
        lowering = dict(way).get("convolution")
        if lowering and dict(way) != usual | {"convolution": lowering}:
            continue
        usual_widths = TINY_WIDTHS if name == TINY else WIDTHS[platform]
        widths = usual_widths if lowering is None or platform != "cpu" else CONVOLUTION_WIDTHS.get(lowering, (1, 2))
        for width in widths:
            yield from (
                Layout(width, stepwise, way) for stepwise in ([False, True] if lowering == "native" else [False])
            )


def rounds(config: Config, num_steps: int) -> Measurement:
    """The fastest of three turns of everyone, of the layouts and of the machine: other work on it only slows.

    The seed rotates the order.
    """
    name = config["workload"]

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        each = ready(name)
        who = list(each.rates)
        start = seed % len(who)
        candidates = list(dict.fromkeys([*_other_ways(name, each.chosen), *layouts_of(name)]))
        measured: dict[str, Any] = {}
        for _ in range(TURNS):
            for key, rate in _turn(name, who[start:] + who[:start], candidates):
                measured[key] = max(rate, measured.get(key, 0.0))
        measured |= {f"chosen/{layout}": float(layout == each.chosen) for layout in candidates}
        measured["work/flops"] = each.flops
        measured["machine/devices"] = len(jax.local_devices())
        return measured | {f"prepare/{who}": seconds for who, seconds in each.seconds.items()}

    return Measurement(measure)


def _turn(name: str, who: Iterable[str], candidates: Sequence[Layout]) -> Iterator[tuple[str, float]]:
    each = ready(name)
    usual, of_engine = (TINY_SECONDS, TINY_SECONDS) if name == TINY else (SECONDS, ENGINE_SECONDS)
    for one in who:
        yield f"rate/{one}", each.rates[one](of_engine if one in (ENGINE, BARE) else usual)
    yield "machine/matmul", matmul_rate(TINY_SIZES["matrix"] if name == TINY else None)
    for layout, rate in each.bench.rates(candidates, usual).items():
        yield f"layout/{layout}", rate


def machine_rates(
    config: Config, num_steps: int, *, matrix: int | None = None, array: int | None = None
) -> Measurement:
    """What the machine can do, measured alone, with matrices and arrays of these sizes (default: large ones)."""

    def measure(hyper: Mapping[str, float], seed: int) -> dict[str, Any]:
        return {"machine/matmul": matmul_rate(matrix), "machine/memory": memory_rate(array)}

    return Measurement(measure)


def _other_ways(name: str, layout: Layout) -> Iterator[Layout]:
    """The layout, and with each other option of what is open beside the lowering of convolutions."""
    yield layout
    (group,) = workload(name).plan(0, 1000, EVERY).groups
    for choice in sorted(group.choices.keys() - {"convolution"}):
        for option in group.choices[choice]:
            yield layout._replace(choices=tuple(sorted((dict(layout.choices) | {choice: option}).items())))


def _explicit(group: Group) -> Layout:
    """The group's layout with every choice said: what nobody chose is the first option."""
    chosen = {name: options[0] for name, options in sorted(group.choices.items())} | dict(group.layout.choices)
    return group.layout._replace(choices=tuple(chosen.items()))


def matmul_rate(size: int | None = None) -> float:
    """Returns the floating-point operations a second of a large product of float32 matrices on all devices."""
    devices = jax.local_devices()
    size = size or {"cpu": 1536}.get(devices[0].platform, 8192)
    factors = [jax.device_put(jnp.ones((size, size), jnp.float32), device) for device in devices]
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready([product(a) for a in factors])
    began = time.perf_counter()
    jax.block_until_ready([product(a) for a in factors for _ in range(4)])
    return len(devices) * 4 * 2 * size**3 / (time.perf_counter() - began)


def memory_rate(size: int | None = None) -> float:
    """Returns the bytes a second of an addition to arrays of 128 MiB (1 GiB off the CPU), read and written in place."""
    devices = jax.local_devices()
    size = size or {"cpu": 2**25}.get(devices[0].platform, 2**28)
    arrays = [jax.device_put(jnp.ones(size, jnp.float32), device) for device in devices]
    # Into new arrays it would be the rate at which the system hands out pages, a tenth of this.
    plus_one = jax.jit(lambda a: a + 1, donate_argnums=0)
    arrays = jax.block_until_ready([plus_one(a) for a in arrays])
    began, repeats = time.perf_counter(), 4
    for _ in range(repeats):
        arrays = [plus_one(a) for a in arrays]
    jax.block_until_ready(arrays)
    return len(devices) * repeats * 2 * 4 * size / (time.perf_counter() - began)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Rounds of each workload, and of the machine alone."""
    seeds = range({"smoke": 2, "cpu": 8, "gpu": 16}[scale])
    names = (TINY,) if scale == "smoke" else tuple(TITLES)
    declared = {name: Sweep(grid(config={"workload": (name,)}, seeds=seeds), rounds, num_steps=0) for name in names}
    measured = partial(machine_rates, **dict[str, Any](TINY_SIZES)) if scale == "smoke" else machine_rates
    return declared | {MACHINE: Sweep(grid(config={"workload": (MACHINE,)}, seeds=seeds), measured, num_steps=0)}


def claims(results: Results) -> list[Claim]:
    """What the project promises of its speed."""
    shares = {"mlp_small": 0.6, "mlp_large": 0.75, "cnn_8x8": 0.55}
    best_torch = {"mlp_small": 9.0, "cnn_8x8": 1.5, "cnn_28x28": 1.2}

    def of(words: str, names: Iterable[str], measured: Callable[[str], np.ndarray]) -> Effect:
        return Effect(words, each("{}", names, measured))

    def engine_over(peer: str, words: str, names: Iterable[str] = TITLES) -> Effect:
        return of(f"rate of the engine over that of {words}", names, lambda name: _ratio(results[name], peer))

    bare = "the bare loop in the same layout and round (the engine's in parts of one sweep of about a minute)"
    linen = "jit(vmap(scan)) with Linen's layers in the same round"
    eager = "rate of the engine over the best of PyTorch eager on all cores and in a process a core, in the same round"
    flops = (
        "floating-point operations a second of the engine (convolutions as products of patches) over those of a large "
        "product of matrices in the same round"
    )
    chosen = "rate of the chosen layout over the highest of the layouts, medians up to the round"
    return [
        judge(
            "The engine costs little: it is as fast as the programs it wraps, written by hand.",
            JAX,
            engine_over(BARE, bare),
            least=1 / 1.05,
        ),
        judge(
            "For images it is fifty times as fast as vmap over Linen's convolutions inside a scan.",
            JAX,
            engine_over("jit(vmap(scan)), Linen", linen, IMAGES),
            least=50.0,
        ),
        judge(
            "It is ahead of PyTorch eager at its best: nine times for small perceptrons, 1.2 and 1.5 for images.",
            TORCH,
            of(eager + _over(best_torch), best_torch, lambda name: _over_torch(results[name]) / best_torch[name]),
            least=1.0,
        ),
        judge(
            "It is three and a half times as fast as PyTorch's vmapped ensembles.",
            TORCH,
            engine_over("torch.func vmap", "torch.func's vmap in the same round"),
            least=3.5,
        ),
        judge(
            "It reaches most of the machine's rate of multiplying matrices.",
            ROOFLINE,
            of(flops + _over(shares), shares, lambda name: _share(results[name], ENGINE) / shares[name]),
            least=1.0,
        ),
        judge(
            "The plan chooses well: its layout is within a tenth of the best of all.",
            ATLAS,
            of(chosen, TITLES, lambda name: _choice(results[name])),
            least=0.9,
        ),
    ]


def _over(aims: Mapping[str, float]) -> str:
    return f", over the aim: {', '.join(f'{name} {aim:g}' for name, aim in aims.items())}"


def _of(table: Table, who: str) -> np.ndarray:
    if f"rate/{who}" not in table.frame:
        raise NotMeasuredError(f"{who} did not take part")
    return table.frame[f"rate/{who}"].to_numpy()


def _ratio(table: Table, other: str) -> np.ndarray:
    return _of(table, ENGINE) / _of(table, other)


def _over_torch(table: Table) -> np.ndarray:
    return np.minimum(_ratio(table, "PyTorch eager, all cores"), _ratio(table, PROCESSES))


def _share(table: Table, who: str) -> np.ndarray:
    frame = table.frame
    return _of(table, who) * frame["work/flops"].to_numpy() / frame["machine/matmul"].to_numpy()


def _layout_rates(table: Table) -> tuple[dict[str, np.ndarray], str]:
    """Layout -> rate of each round; which was chosen."""
    names = [column.partition("/")[2] for column in table.frame if column.startswith("layout/")]
    (chosen,) = (name for name in names if table.frame[f"chosen/{name}"].iloc[0] == 1)
    return {name: table.frame[f"layout/{name}"].to_numpy() for name in names}, chosen


def _choice(table: Table) -> np.ndarray:
    rates, chosen = _layout_rates(table)
    best = max(rates, key=lambda name: float(np.median(rates[name])))
    return rates[chosen] / rates[best]


def _panels(results: Results, height: float = 3.4) -> tuple[Figure, Iterator[tuple[Axes, str]]]:
    """A figure with a panel for each workload."""
    names = [name for name in (*TITLES, TINY) if name in results]
    if not names:
        raise NotMeasuredError("no workload was timed")
    num_columns = min(len(names), 2)
    figure, panels = style.subplots(-(-len(names) // num_columns), num_columns, width=6.6, height=height)
    for axes, name in zip(np.ravel(panels), names, strict=False):
        axes.set(title=TITLES.get(name, name), xlabel="steps of runs a second")
    style.note(figure, _machine_text(results))
    return figure, zip(np.ravel(panels), names, strict=False)


def _bar(axes: Axes, place: int, rates: np.ndarray, is_ours: bool) -> None:
    axes.barh(-place, np.median(rates), color=style.COLORS[0 if is_ours else 1], alpha=0.85)
    axes.plot(rates, [-place] * len(rates), ".", color="black", markersize=3)


def rates(results: Results) -> Figure:
    """Draws the steps a second of everyone."""
    figure, panels = _panels(results)
    for axes, name in panels:
        table = results[name]
        who = [one for one in (ENGINE, BARE, *PEERS) if f"rate/{one}" in table.frame]
        for place, one in enumerate(who):
            _bar(axes, place, _of(table, one), one == ENGINE)
            share = 100 * np.median(_share(table, one))
            text = f"{share:.0f}% of matmul" if share >= 1 else f"{share:.1f}% of matmul"
            text += "" if one == ENGINE else f"; engine {np.median(_ratio(table, one)):.3g} x"
            axes.text(1.3 * max(_of(table, one)), -place, text, va="center", fontsize=9)
        axes.set_yticks(-np.arange(len(who)), who)
        low, high = (choose(np.median(_of(table, one)) for one in who) for choose in (min, max))
        axes.set(xscale="log", xlim=(low / 2, high * (high / low) ** 0.7 * 30))
    return figure


def layouts(results: Results) -> Figure:
    """Draws the steps a second of the fastest layouts."""
    figure, panels = _panels(results, height=4.4)
    for axes, name in panels:
        rates, chosen = _layout_rates(results[name])
        order = sorted(rates, key=lambda layout: -float(np.median(rates[layout])))[:LAYOUTS_SHOWN]
        if len(order) < len(rates):
            axes.set(title=f"{TITLES.get(name, name)}: {LAYOUTS_SHOWN} of {len(rates)} ways")
        for place, layout in enumerate(order):
            _bar(axes, place, rates[layout], layout == chosen)
        labels = [_short(layout) + (" (chosen)" if layout == chosen else "") for layout in order]
        axes.set_yticks(-np.arange(len(order)), labels, fontsize=8)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _short(layout: str) -> str:
    """What was chosen, without what for."""
    for name in ("batch", "convolution", "layers", "optimizer"):
        layout = layout.replace(f" {name} ", " ")
    return layout.replace("_", " ")


def _machine_text(results: Results) -> str:
    num_rounds = next(iter(results.values())).frame["seed"].nunique()
    text = f"bars: median of {num_rounds} rounds; points: rounds, each the fastest of three turns"
    if MACHINE not in results:
        return text
    matmul, memory = (np.median(results[MACHINE].frame[f"machine/{kind}"]) / 1e9 for kind in ("matmul", "memory"))
    return f"{text}. Here a product of large matrices makes {matmul:.0f} GFLOP/s, memory {memory:.0f} GB/s"


EXPERIMENT = Experiment(
    "engine.throughput",
    4,
    __doc__,
    sweeps,
    (
        rates,
        layouts,
    ),
    claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
