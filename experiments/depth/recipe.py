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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled, mnist1d
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    Panel,
    at_best,
    judge,
    lines,
    measure,
    pick,
    side_by_side,
    spread_over,
    statistics,
    style,
    text,
)
from dlexp.sweep import grid
from dlexp.types import Config, Experiment, Learner, Sweep

START, HIGH_LOSS, WIDE_GAP = 4, 0.1 * float(np.log(10)), 0.05
DEPTHS, DECAYS = (2, 4, 8, 16), (0.0, 0.1, 1.0)
MAPS = {  # title -> data and width; a linear model, one layer, has width 1 and belongs to every map of its data
    "MNIST-1D, width 16": ("mnist1d", 16),
    "MNIST-1D, width 64": ("mnist1d", 64),
    "digits, width 32": ("digits", 32),
}


def network(config: Config, num_steps: int) -> Learner:
    """A plain ReLU perceptron, trained by AdamW."""
    model = models.mlp(width=config["width"], num_layers=config["num_layers"], num_outputs=10)
    data = {"mnist1d": mnist1d.load, "digits": bundled.load}[config["data"]]()
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adamw(), data, batch_size=100)


def sweeps() -> dict[str, Sweep]:
    """Depth x weight decay x rate, on two data sets and two widths."""
    hyper = {"weight_decay": DECAYS, "learning_rate": (0.001, 0.003, 0.01)}
    declared = {}
    for data, widths, num_steps in (("mnist1d", (16, 64), 1500), ("digits", (32,), 500)):
        deep = {"data": (data,), "num_layers": DEPTHS, "width": widths}
        linear = {"data": (data,), "num_layers": (1,), "width": (1,)}
        runs = grid(config=deep, hyper=hyper, seeds=FRESH_SEEDS) | grid(config=linear, hyper=hyper, seeds=FRESH_SEEDS)
        declared[data] = Sweep(runs, network, num_steps)
    return declared


class Cell(NamedTuple):
    """One place on a map."""

    num_layers: int
    weight_decay: float


def maps_of(results: Results) -> dict[str, Table]:
    """Returns the runs of each map that the results have."""
    there = {name: (results[data], width) for name, (data, width) in MAPS.items() if data in results}
    return {n: runs.select(width=[1, width]) for n, (runs, width) in there.items() if width in set(runs.frame["width"])}


def value(runs: Table, cell: Cell, metric: str = "test/accuracy") -> np.ndarray:
    """Returns a metric's last value at the cell's best rate by validation, `[seed]`."""
    return np.asarray(at_best(metric).of(pick(runs, cell._asdict())))


def cells(runs: Table) -> list[Cell]:
    """Returns all places of one map, by depth and decay."""
    depths, decays = (np.unique(runs.frame[name]) for name in Cell._fields)
    return [Cell(int(depth), float(decay)) for depth in depths for decay in decays]


def path(runs: Table) -> list[Cell]:
    """Returns where the recipe goes: it looks at means over seeds, never at the test split."""
    every = cells(runs)
    decays = sorted({cell.weight_decay for cell in every})
    walk = [Cell(START, decays[0])]

    def mean(cell: Cell, metric: str) -> float:
        return float(value(runs, cell, metric).mean())

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


def best_cell(runs: Table, by: str = "validation/accuracy", keep: Callable[[Cell], bool] = bool) -> Cell:
    """Returns the place with the best mean of a validation metric, of those to keep."""
    sign = 1 if statistics.higher_is_better(by) else -1
    return max(filter(keep, cells(runs)), key=lambda cell: sign * value(runs, cell, by).mean())


def recipe_on_the_map(results: Results) -> Figure:
    """The maps with the recipe's path."""
    panels = [Panel(partial(_draw_map, runs=runs, name=name), (runs,)) for name, runs in maps_of(results).items()]
    note = "numbers: test accuracy in %, at the best of three rates; arrows: the recipe's way; box: best by validation"
    return side_by_side(*panels, width=4.4, height=4.4, note=note)


def _draw_map(axes: Axes, runs: Table, name: str) -> None:
    every = cells(runs)
    depths, decays = sorted({c.num_layers for c in every}), sorted({c.weight_decay for c in every})
    accuracy = {cell: 100 * value(runs, cell).mean() for cell in every}
    values = np.array([[accuracy[Cell(depth, decay)] for depth in depths] for decay in decays])
    axes.imshow(values, origin="lower", cmap="Blues", vmin=values.max() - 25, vmax=values.max() + 5, aspect="auto")

    def place(cell: Cell) -> tuple[int, int]:
        return depths.index(cell.num_layers), decays.index(cell.weight_decay)

    for cell in every:
        axes.text(*place(cell), f"{accuracy[cell]:.1f}", ha="center", va="center", fontsize=11)
    x, y = place(best_cell(runs))
    axes.plot(np.array([-1, 1, 1, -1, -1]) * 0.45 + x, np.array([-1, -1, 1, 1, -1]) * 0.45 + y, "k")
    if START in depths:
        walk = [(x + 0.33, y - 0.3) for x, y in map(place, path(runs))]  # beside the numbers
        axes.plot(*walk[0], "o", color=style.COLORS[1], markersize=8)
        for start, end in itertools.pairwise(walk):
            arrow = {"arrowstyle": "->", "color": style.COLORS[1], "linewidth": 2.5}
            axes.annotate("", end, start, arrowprops=arrow)
    axes.set_xticks(range(len(depths)), style.tick_labels(depths))
    axes.set_yticks(range(len(decays)), style.tick_labels(decays))
    axes.set(xlabel="layers", ylabel="weight decay", title=name)
    axes.grid(False)


def loss_by_depth(results: Results) -> Figure:
    """Losses over depth, without decay."""
    splits = {f"{split} loss": at_best(f"{split}/loss") for split in ("train", "validation")}
    marks, fixed = {"above: the recipe adds layers": HIGH_LOSS}, {"weight_decay": 0.0}
    axes: Any = {"x": "num_layers", "xscale": "log", "xlabel": "layers", "ylabel": "loss (nats)", "ylim": (0, None)}
    return side_by_side(lines(maps_of(results), None, splits, fixed=fixed, marks=marks, **axes), width=4.4, height=3.8)


def claims(results: Results) -> list[Claim]:
    """Each step of the recipe, and the whole of it."""
    lesson, maps = text("003", "How deep should my network be"), maps_of(results)
    spread = partial(spread_over("learning_rate"), maps, weight_decay=0.0)
    good_start = "Four layers are a good start: no other depth is better without regularization."
    return [
        judge("Following the recipe finds a network as good as the best.", lesson, _end(maps), least=-0.01),
        judge(good_start, lesson, _four(maps), least=-0.01),
        judge("Where the training loss is high, more layers lower it.", lesson, _gain_of_depth(maps), least=0.05),
        judge("Where the validation loss is high, weight decay lowers it.", lesson, _gain_of_decay(maps), least=0.05),
        judge(
            "Deeper networks need more careful tuning.",
            lesson,
            spread(num_layers=16) - spread(num_layers=4),
            least=0.05,
        ),
    ]


@measure("test accuracy where the recipe ends minus at the place of the best validation accuracy on the map")
def _end(runs: Table) -> np.ndarray:
    return value(runs, path(runs)[-1]) - value(runs, best_cell(runs))


@measure(f"test accuracy of {START} layers minus at the depth of the best validation accuracy, without decay")
def _four(runs: Table) -> np.ndarray:
    return value(runs, Cell(START, 0.0)) - value(runs, best_cell(runs, keep=lambda cell: cell.weight_decay == 0))


@measure(
    f"training loss of {START} layers minus of {2 * START}, where the mean of {START} is above {HIGH_LOSS:.2f} nats"
)
def _gain_of_depth(runs: Table) -> np.ndarray:
    four, eight = (value(runs, Cell(layers, 0.0), "train/loss") for layers in (START, 2 * START))
    return _where(four.mean() > HIGH_LOSS, four - eight)


@measure(
    f"test loss of {START} layers without decay minus with the decay of the least validation loss, where validation "
    f"accuracy is more than {WIDE_GAP:g} below training accuracy"
)
def _gain_of_decay(runs: Table) -> np.ndarray:
    plain = Cell(START, 0.0)
    train, validation = (value(runs, plain, f"{split}/accuracy") for split in ("train", "validation"))
    best = best_cell(runs, "validation/loss", lambda cell: cell.num_layers == START and cell.weight_decay > 0)
    return _where(
        (train - validation).mean() > WIDE_GAP, value(runs, plain, "test/loss") - value(runs, best, "test/loss")
    )


def _where(holds: bool, values: np.ndarray) -> np.ndarray:
    if not holds:
        raise NotMeasuredError("the recipe's condition does not hold on this map")
    return values


EXPERIMENT = Experiment("depth.recipe", 1, __doc__, sweeps, (recipe_on_the_map, loss_by_depth), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
