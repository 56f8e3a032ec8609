"""Start with four layers, add more, regularize: does following the recipe find the best network?

The lesson's recipe: start with three to four layers, add more if the training loss is high, regularize if the
validation loss is high; very deep networks need careful tuning (text 003, "How deep should my network be?"). The whole
map of depth and weight decay is trained here, each cell at its own best rate by validation, and the recipe walks over
it: from four layers it goes deeper step by step as long as the training loss is above 0.23 nats (a tenth of a constant
guess's) and the step lowers it; then it raises the decay as long as validation accuracy is more than five points
below training accuracy and the validation loss falls.

There is no theory of it; depth without skips is hard to train (He et al., "Deep Residual Learning for Image
Recognition", 2016, https://arxiv.org/abs/1512.03385: the training error of plain networks rises with depth).

    python -m experiments.depth.recipe
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.claims import Claim, each, judge
from dlexp.data import bundled, mnist1d
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.sweep import grid
from dlexp.sweep.grids import Grid
from dlexp.types import Config, Experiment, Figures, Learner, Sweep

CHANCE = 0.1
START, HIGH_LOSS, WIDE_GAP = 4, 0.1 * float(np.log(10)), 0.05
DEPTHS, DECAYS = (2, 4, 8, 16), (0.0, 0.1, 1.0)
MAPS = {
    "MNIST-1D, width 16": ("mnist1d", 16),
    "MNIST-1D, width 64": ("mnist1d", 64),
    "digits, width 32": ("digits", 32),
}


def network(config: Config, num_steps: int) -> Learner:
    """A plain ReLU perceptron, trained by AdamW."""
    model = models.mlp(width=config["width"], num_layers=config["num_layers"], num_outputs=10)
    data = {"mnist1d": mnist1d.load, "digits": bundled.load}[config["data"]]()
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adamw(), data, batch_size=100)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Depth x weight decay x rate, on two data sets and two widths."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 48)}[scale]  # rules were tried on 0 to 15
    hyper = {"weight_decay": DECAYS, "learning_rate": (0.001, 0.003, 0.01)}
    depths: tuple[int, ...] = {"smoke": (4, 8), "cpu": DEPTHS, "gpu": (*DEPTHS, 3, 6, 12, 32)}[scale]
    if scale == "smoke":
        few = {"weight_decay": (0.0, 1.0), "learning_rate": (0.01,)}
        small = grid(config={"data": ("digits",), "num_layers": depths, "width": (32,)}, hyper=few, seeds=seeds)
        return {"digits": Sweep(small, network, num_steps=40)}

    def every(data: str, widths: tuple[int, ...]) -> Grid:
        """All depths; a linear model, one layer, has no width."""
        deep = grid(config={"data": (data,), "num_layers": depths, "width": widths}, hyper=hyper, seeds=seeds)
        return deep | grid(config={"data": (data,), "num_layers": (1,), "width": (1,)}, hyper=hyper, seeds=seeds)

    return {
        "mnist1d": Sweep(every("mnist1d", (16, 64)), network, num_steps=1500),
        "digits": Sweep(every("digits", (32,)), network, num_steps=500),
    }


class Cell(NamedTuple):
    """One place on the map."""

    num_layers: int
    weight_decay: float


def measured(results: Results, name: str, cell: Cell, metric: str) -> np.ndarray:
    """A metric's last value at the cell's best rate by validation, `[seed]`."""
    runs = _of_map(results, name).select(**cell._asdict())
    failed = float(np.log(10)) if metric.endswith("loss") else CHANCE
    return analysis.at_best(runs, "learning_rate", metric, failed=failed)


def _of_map(results: Results, name: str) -> Table:
    data, width = MAPS[name]
    return results[data].select(width=[1, width])


def cells(results: Results, name: str) -> list[Cell]:
    """All places of one map, by depth and decay."""
    frame = _of_map(results, name).frame
    return [Cell(int(n), float(d)) for n in np.unique(frame["num_layers"]) for d in np.unique(frame["weight_decay"])]


def path(results: Results, name: str) -> list[Cell]:
    """Where the recipe goes: it looks at means over seeds, never at the test split."""
    every = cells(results, name)
    decays = sorted({cell.weight_decay for cell in every})
    walk = [Cell(START, decays[0])]

    def mean(cell: Cell, metric: str) -> float:
        return float(measured(results, name, cell, metric).mean())

    for deeper in [cell for cell in every if cell.num_layers > START and cell.weight_decay == decays[0]]:
        high = mean(walk[-1], "train/loss") > HIGH_LOSS
        if not high or mean(deeper, "train/loss") > mean(walk[-1], "train/loss"):
            break
        walk.append(deeper)
    for decay in decays[1:]:
        here, stronger = walk[-1], walk[-1]._replace(weight_decay=decay)
        gap = mean(here, "train/accuracy") - mean(here, "validation/accuracy")
        if gap < WIDE_GAP or mean(stronger, "validation/loss") > mean(here, "validation/loss"):
            break
        walk.append(stronger)
    return walk


def best_cell(results: Results, name: str, **fixed: float) -> Cell:
    """The place with the best mean validation accuracy, of those with these values."""
    there = [cell for cell in cells(results, name) if fixed.items() <= cell._asdict().items()]
    return max(there, key=lambda cell: measured(results, name, cell, "validation/accuracy").mean())


def figures(results: Results) -> Figures:
    """The maps with the recipe's path; losses over depth."""
    return {"recipe_on_the_map": lambda: _maps(results), "loss_by_depth": lambda: _loss_by_depth(results)}


def claims(results: Results) -> list[Claim]:
    """Each step of the recipe, and the whole of it."""
    lesson = 'text 003, "Deep Learning Overview", How deep should my network be'

    def value(name: str, cell: Cell, metric: str = "test/accuracy") -> np.ndarray:
        return measured(results, name, cell, metric)

    return [
        judge(
            "Following the recipe finds a network as good as the best.",
            source=lesson,
            rule="test accuracy where the recipe ends minus at the place with the best validation accuracy of the "
            "map, paired by seed; not lower by a point (-0.01)",
            effects=each(
                "{}", MAPS, lambda name: value(name, path(results, name)[-1]) - value(name, best_cell(results, name))
            ),
            smallest=-0.01,
        ),
        judge(
            "Four layers are a good start: no other depth is better without regularization.",
            source=lesson,
            rule="test accuracy of four layers minus of the best depth by validation, without decay, paired by seed; "
            "not lower by a point (-0.01)",
            effects=each(
                "{}",
                MAPS,
                lambda name: value(name, Cell(START, 0.0)) - value(name, best_cell(results, name, weight_decay=0.0)),
            ),
            smallest=-0.01,
        ),
        judge(
            "Where the training loss is high, more layers lower it.",
            source=lesson,
            rule="training loss of four layers minus of eight, paired by seed, where that of four is above 0.23 nats "
            "in the mean; at least 0.05 nats",
            effects=each("{}", MAPS, lambda name: _gain_of_depth(results, name)),
            smallest=0.05,
        ),
        judge(
            "Where the validation loss is high, weight decay lowers it.",
            source=lesson,
            rule="test loss of four layers without decay minus with the decay of the least validation loss, paired by "
            "seed, where validation accuracy is more than five points below training accuracy; at least 0.05 nats",
            effects=each("{}", MAPS, lambda name: _gain_of_decay(results, name)),
            smallest=0.05,
        ),
        judge(
            "Deeper networks need more careful tuning.",
            source=lesson,
            rule="test accuracy at the best minus at the worst of three rates by validation, 16 layers minus 4, no "
            "decay, paired by seed; at least 0.05",
            effects=each("{}", MAPS, lambda name: _spread(results, name, 16) - _spread(results, name, 4)),
            smallest=0.05,
        ),
    ]


def _gain_of_depth(results: Results, name: str) -> np.ndarray:
    """Training loss of four layers minus of eight, `[seed]`, where it is high."""
    four, eight = (measured(results, name, Cell(layers, 0.0), "train/loss") for layers in (START, 2 * START))
    _where(four.mean() > HIGH_LOSS)
    return four - eight


def _gain_of_decay(results: Results, name: str) -> np.ndarray:
    """Test loss of four layers without decay minus with the best one by validation, `[seed]`, where they overfit."""
    plain = Cell(START, 0.0)
    train, validation = (measured(results, name, plain, f"{split}/accuracy") for split in ("train", "validation"))
    _where((train - validation).mean() > WIDE_GAP)
    decayed = [cell for cell in cells(results, name) if cell.num_layers == START and cell.weight_decay > 0]
    best = min(decayed, key=lambda cell: measured(results, name, cell, "validation/loss").mean())
    return measured(results, name, plain, "test/loss") - measured(results, name, best, "test/loss")


def _where(holds: bool) -> None:
    if not holds:
        raise NotMeasuredError("the recipe's condition does not hold on this map")


def _spread(results: Results, name: str, num_layers: int) -> np.ndarray:
    runs = _of_map(results, name).select(num_layers=num_layers, weight_decay=0.0)
    means = analysis.by_seed(runs, "validation/accuracy", "learning_rate", failed=0.0).mean()
    accuracy = analysis.by_seed(runs, "test/accuracy", "learning_rate", failed=CHANCE)
    return (accuracy[means.idxmax()] - accuracy[means.idxmin()]).to_numpy()


def _there(results: Results) -> list[str]:
    return [
        name for name, (data, width) in MAPS.items() if data in results and width in set(results[data].frame["width"])
    ]


def _maps(results: Results) -> Figure:
    names = _there(results)
    figure, panels = plots.subplots(1, len(names), width=4.4, height=4.4)
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        _draw_map(axes, results, name)
    seeds = next(iter(results.values())).frame["seed"].nunique()
    text = f"numbers: test accuracy in %, mean of {seeds} seeds, at the best of three rates; arrows: the recipe's way"
    plots.note(figure, f"{text}; box: best by validation")
    return figure


def _draw_map(axes: Axes, results: Results, name: str) -> None:
    every = cells(results, name)
    depths, decays = sorted({c.num_layers for c in every}), sorted({c.weight_decay for c in every})
    accuracy = {cell: 100 * measured(results, name, cell, "test/accuracy").mean() for cell in every}
    values = np.array([[accuracy[Cell(depth, decay)] for depth in depths] for decay in decays])
    axes.imshow(values, origin="lower", cmap="Blues", vmin=values.max() - 25, vmax=values.max() + 5, aspect="auto")

    def place(cell: Cell) -> tuple[int, int]:
        return depths.index(cell.num_layers), decays.index(cell.weight_decay)

    for cell in every:
        axes.text(*place(cell), f"{accuracy[cell]:.1f}", ha="center", va="center", fontsize=11)
    x, y = place(best_cell(results, name))
    axes.plot(
        [x - 0.45, x + 0.45, x + 0.45, x - 0.45, x - 0.45], [y - 0.45, y - 0.45, y + 0.45, y + 0.45, y - 0.45], "k"
    )
    walk = [(x + 0.33, y - 0.3) for x, y in map(place, path(results, name))]  # beside the numbers
    axes.plot(*walk[0], "o", color=plots.COLORS[1], markersize=8)
    for start, end in itertools.pairwise(walk):
        arrow = {"arrowstyle": "->", "color": plots.COLORS[1], "linewidth": 2.5}
        axes.annotate("", end, start, arrowprops=arrow)
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    axes.set(xlabel="layers", ylabel="weight decay", title=name)
    axes.grid(False)


def _loss_by_depth(results: Results) -> Figure:
    names = _there(results)
    figure, panels = plots.subplots(1, len(names), width=4.4, height=3.8)
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        depths = sorted({cell.num_layers for cell in cells(results, name)})
        for color, split in zip(plots.COLORS, ("train", "validation"), strict=False):
            values = np.array([measured(results, name, Cell(depth, 0.0), f"{split}/loss") for depth in depths]).T
            plots.band(axes, np.array(depths), values, label=f"{split} loss", color=color, marker="o")
        axes.axhline(HIGH_LOSS, color="black", linestyle="--", linewidth=1.5, label="above: the recipe adds layers")
        axes.set(xscale="log", xlabel="layers", ylabel="loss (nats)", ylim=(0, None), title=f"{name}, no decay")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
    counted = plots.counts(results.values(), failed_as="chance, one class of ten")
    plots.legend_below(figure, np.atleast_1d(panels)[0], counted)
    return figure


EXPERIMENT = Experiment(
    name="depth.recipe",
    version=1,
    question="Start with four layers, add more, regularize: does following the recipe find the best network?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
