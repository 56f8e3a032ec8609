"""Where is the boundary between learning rates that train and rates that diverge?

The lesson says that too high a rate overshoots (text 002, "Training Dynamics"): as if there were one limit. Here each
of the two layers of a small network has a rate of its own, and 65,536 networks, one a pixel, show which pairs of rates
train. Blue networks converge, darker ones to a lower loss; red ones diverge, darker ones later.

Theory: there is none for the boundary's shape; it was found to be a fractal (Sohl-Dickstein, "The boundary of neural
network trainability is fractal", 2024, https://arxiv.org/abs/2402.06184), whose box-counting dimension there is between
1 and 2. One seed draws the map; the dimension is measured on smaller maps of eight seeds. Zoom into any window with
--sweep=map --axis=inner_rate=geom:LOW:HIGH:256 --axis=outer_rate=geom:LOW:HIGH:256.

    python -m experiments.engine.trainability_map
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlexp import cli
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import Claim, Effect, judge, statistics, style
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Range, Sweep

WIDTH, NUM_EXAMPLES = 16, 32
RATE = Range(0.0, open_low=True)
WINDOW = {"inner_rate": (0.3, 1000.0), "outer_rate": (0.06, 1.5)}


def network(config: Config, num_steps: int) -> Learner:
    """16 inputs, 16 tanh units, one output, no biases; full-batch gradient descent on 32 random examples."""

    def loss(params: PyTree, data: PyTree) -> jax.Array:
        hidden = jnp.tanh(data["inputs"] @ params["inner"])
        return jnp.mean((hidden @ params["outer"] - data["targets"]) ** 2)

    def init(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        inner, outer = jnp.split(jax.random.normal(key, (WIDTH, WIDTH + 1)) / WIDTH**0.5, [WIDTH], axis=1)
        return {"params": {"inner": inner, "outer": outer[:, 0]}}

    def update(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> tuple[PyTree, Metrics]:
        params = state["params"]
        value, grads = jax.value_and_grad(loss)(params, data)
        moved = {name: params[name] - hyper[f"{name}_rate"] * grads[name] for name in params}
        return {"params": moved}, {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> Metrics:
        return {"train/loss": loss(state["params"], data)}

    rng = np.random.default_rng(0)
    examples = rng.standard_normal((NUM_EXAMPLES, WIDTH + 1)).astype(np.float32)
    data = {"inputs": examples[:, :-1], "targets": examples[:, -1]}
    return Learner(data, {"inner_rate": RATE, "outer_rate": RATE}, init, update, evaluate)


def sweeps(scale: str) -> dict[str, Sweep]:
    """The map of one seed; smaller maps of several."""
    size, small, seeds = {"smoke": (12, 8, 2), "cpu": (256, 64, 8), "gpu": (2048, 512, 8)}[scale]

    def rates(num: int) -> dict[str, tuple[float, ...]]:
        return {name: geomspace(*ends, num) for name, ends in WINDOW.items()}

    num_steps = 20 if scale == "smoke" else 200
    return {
        "map": Sweep(grid(hyper=rates(size)), network, num_steps),
        "seeds": Sweep(grid(hyper=rates(small), seeds=range(16, 16 + seeds)), network, num_steps),
    }


def claims(results: Results) -> list[Claim]:
    """Whether there is one limit, and how rough it is."""
    table = results["seeds"]
    return [
        judge(
            "The boundary between converging and diverging training is a fractal.",
            "Sohl-Dickstein, The boundary of neural network trainability is fractal, 2024, "
            "https://arxiv.org/abs/2402.06184",
            Effect(
                "box-counting dimension of the boundary minus 1, that of a smooth curve; at least 0.05, since "
                "circles and lines drawn as coarsely come out at 0.85 to 1.05",
                {"eight seeds": lambda: np.array([dimension(_boundary(each)) for each in _maps(table)]) - 1},
            ),
            most=0.55,
        ),
        judge(
            "There is one rate that is too high.",
            'text 002, "Deep Learning Intro", Training Dynamics',
            Effect(
                "range over the inner rates of the lowest outer rate that diverges, in decades, where there is one",
                {"eight seeds": lambda: np.array([_range(each) for each in _maps(table)])},
            ),
            most=0.5,
        ),
    ]


def _maps(table: Table) -> list[Table]:
    return [table.select(seed=int(seed)) for seed in np.unique(table.frame["seed"])]


def _first(table: Table) -> Table:
    return table.select(seed=int(table.frame["seed"].min()))


def _grid(table: Table, values: np.ndarray) -> np.ndarray:
    """Values of the runs as `[outer rate, inner rate]`, both rising."""
    frame = table.frame.assign(value=values)
    return (
        frame.pivot(index="outer_rate", columns="inner_rate", values="value").sort_index().sort_index(axis=1).to_numpy()
    )


def _diverged(table: Table) -> np.ndarray:
    """Which runs end non-finite or worse than they began, `[outer rate, inner rate]`."""
    if min(table.frame[name].nunique() for name in WINDOW) < 8:
        raise NotMeasuredError("a map needs at least 8 rates of each layer")
    losses = table.curves("train/loss")
    return _grid(table, ~(losses[:, -1] < losses[:, 0])).astype(bool)


def _boundary(table: Table) -> np.ndarray:
    """Pixels with a neighbour, right or above, on the other side."""
    diverged = _diverged(table)
    edge = np.zeros_like(diverged)
    edge[:, :-1] |= diverged[:, :-1] != diverged[:, 1:]
    edge[:-1] |= diverged[:-1] != diverged[1:]
    return edge


def boxes(edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns box sizes in pixels, 2 to an eighth of the map, and how many boxes of each meet the boundary."""
    sizes = 2 ** np.arange(1, max(int(np.log2(min(edge.shape) / 8)), 2) + 1)
    counts = []
    for size in sizes:
        rows, columns = (extent // size * size for extent in edge.shape)
        blocks = edge[:rows, :columns].reshape(rows // size, size, columns // size, size)
        counts.append(max(int(blocks.any(axis=(1, 3)).sum()), 1))
    return sizes, np.array(counts)


def dimension(edge: np.ndarray) -> float:
    """Returns the box-counting dimension, minus the slope of log count over log size."""
    sizes, counts = boxes(edge)
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def _range(table: Table) -> float:
    """Decades between the extremes over inner rates of the lowest outer rate that diverges."""
    diverged, rates = _diverged(table), np.log10(np.unique(table.frame["outer_rate"]))
    lowest = rates[diverged.argmax(axis=0)][diverged.any(axis=0)]
    return float(np.ptp(lowest)) if len(lowest) else 0.0


def map(results: Results) -> Figure:
    """Draws which rates converge and diverge, and how fast."""
    table = results["map"]
    figure, axes = style.subplots(width=8.2, height=7.4)
    runs, first = _first(table), int(table.frame["seed"].min())
    diverged = _diverged(runs)
    steps = runs.frame["nonfinite_at"].to_numpy(float)
    lasted = _grid(runs, np.where(steps < 0, table.num_steps, steps))
    ratio = runs.curves("train/loss")[:, -1] / runs.curves("train/loss")[:, 0]
    trained = _grid(runs, np.log10(np.clip(np.nan_to_num(ratio, nan=1.0), 1e-6, 1.0)))
    shade = np.where(diverged, 0.15 + 0.85 * _ranks(lasted, diverged), -0.15 - 0.85 * _ranks(-trained, ~diverged))
    rates = [np.log10(np.unique(runs.frame[name])) for name in ("inner_rate", "outer_rate")]
    extent = (rates[0][0], rates[0][-1], rates[1][0], rates[1][-1])
    axes.imshow(shade, origin="lower", extent=extent, cmap="RdBu_r", vmin=-1.2, vmax=1.2, aspect="auto")
    axes.set(xlabel="log10 of the inner layer's learning rate", ylabel="log10 of the outer layer's learning rate")
    axes.set(title=f"{len(runs):,} networks: blue converge, red diverge")
    axes.grid(False)
    style.note(figure, f"seed {first}, {table.num_steps} steps; darker blue: lower loss; darker red: it lasted longer")
    return figure


def _ranks(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Each value's place among the chosen ones, 0 to 1: every shade as often."""
    ranks = np.zeros(values.shape)
    if where.any():
        order = np.unique(values[where], return_inverse=True, return_counts=True)
        below = np.concatenate([[0], np.cumsum(order[2])[:-1]]) / where.sum()
        ranks[where] = below[order[1].ravel()]
    return ranks


def box_counting(results: Results) -> Figure:
    """Draws how the number of boxes that meet the boundary grows."""
    figure, axes = style.subplots(width=6.4, height=4.4)
    maps = _maps(results["seeds"])
    counted = [boxes(_boundary(each)) for each in maps]
    dimensions = np.array([dimension(_boundary(each)) for each in maps])
    mean, low, high = statistics.t_interval(dimensions)
    label = f"{len(maps)} seeds, dimension {mean:.2f} [{low:.2f}, {high:.2f}]"
    values = np.array([counts for _, counts in counted], float)
    style.band(axes, counted[0][0], values, label=label, color=style.COLORS[0], log=True, marker="o")
    edge = _boundary(_first(results["map"]))
    sizes, counts = boxes(edge)
    name = f"the map, dimension {dimension(edge):.2f}"
    axes.plot(sizes, counts, "o-", color=style.COLORS[1], label=name)
    style.theory_line(axes, sizes, counts[0] * sizes[0] / sizes, "a smooth curve: dimension 1")
    axes.set(xscale="log", yscale="log", xlabel="size of the boxes, pixels", ylabel="boxes on the boundary")
    axes.set(title="How rough is the boundary?")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend()
    style.note(figure, style.counts([results["seeds"]], failed_as="diverged"))
    return figure


EXPERIMENT = Experiment(
    "engine.trainability_map",
    1,
    __doc__,
    sweeps,
    (
        map,
        box_counting,
    ),
    claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
