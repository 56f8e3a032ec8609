"""What does depth buy at equal parameters?

The lesson says that one hidden layer can learn any function but needs exponentially many neurons for complex ones, and
that deep networks learn them efficiently (text 003, "Why Depth Works"). The function here is the tent map folded k
times, whose labels alternate on 2^k points: a deep network built by hand, trained networks of equal size and several
depths, random ones, and one hidden layer as it approximates a sine.

Theory: two ReLUs a layer double the pieces, 2^k in all, while one hidden layer of m ReLUs has at most m + 1 (Telgarsky,
"Representation Benefits of Deep Feedforward Networks", 2015, https://arxiv.org/abs/1509.08101). But random networks of
any depth have about as many pieces as units (Hanin and Rolnick, "Complexity of Linear Regions in Deep Networks", 2019,
https://arxiv.org/abs/1901.09021). m pieces approximate sin(2 pi x) with squared error 1.0823 / m^4.

    python -m experiments.depth.sawtooth
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from itertools import product
from operator import or_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, models, optim
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import (
    Claim,
    Effect,
    Measure,
    Panel,
    at_best,
    by,
    each,
    judge,
    last,
    lines,
    measure,
    pick,
    side_by_side,
    statistics,
    style,
    text,
    with_axis,
)
from dlexp.sweep import grid
from dlexp.theory import counting
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Range, Sweep

FOLDS, SHOWN = (2, 3, 4, 5, 6), (4, 6)
HIDDEN = {1: "1 hidden layer", 2: "2 hidden layers", 4: "4 hidden layers"}
WIDTHS = {  # parameters, up to a tenth -> hidden layers -> units a layer
    75: {1: 24, 2: 7, 4: 4},
    200: {1: 66, 2: 12, 4: 7},
    600: {1: 200, 2: 22, 4: 13},
}
SHAPES = {f"{32 // width} x {width}": {"hidden": 32 // width, "width": width} for width in (32, 16, 8, 4)}
NUM_PIECES = (4, 8, 16, 32, 64)
MOST_FOLDS = 6
FINE, COARSE = 4096, 40  # points that pieces are counted on; every COARSE-th is kept for the figure
FOUND = (
    "share of wrong labels of four hidden layers with 600 parameters (built by hand, 2k hidden layers with fewer than "
    "100 make no error), at the best rate by training loss"
)
WRONG = at_best("train/error", by="train/loss", failed=0.5)


def network(config: Config, num_steps: int) -> Learner:
    """Trains on the 2^k points, all at once, by Adam; k is swept."""
    model = models.mlp(width=config["width"], num_layers=config["hidden"] + 1, num_outputs=1)
    points = [np.resize(np.arange(2**k) / 2**k, 2**MOST_FOLDS) for k in range(1, MOST_FOLDS + 1)]
    targets = [counting.tent(x, k) for k, x in enumerate(points, start=1)]
    data = {"inputs": np.array(points, np.float32)[..., None], "targets": np.array(targets, np.float32)}

    def init(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        return model.init(key, hyper, data["inputs"][0])["params"]

    def predict(params: PyTree, hyper: Hyper, inputs: jax.Array) -> jax.Array:
        return model.apply({"params": params}, hyper, 2 * inputs - 1, key=jax.random.key(0), train=False)[0][:, 0]

    def on_points(hyper: Hyper, data: PyTree, params: PyTree) -> tuple[jax.Array, jax.Array]:
        """The squared error, and the share of points on the wrong side of 1/2."""
        inputs, targets = (data[name][hyper["folds"] - 1] for name in ("inputs", "targets"))
        predictions = predict(params, hyper, inputs)
        return jnp.mean((predictions - targets) ** 2), jnp.mean((predictions >= 0.5) != (targets >= 0.5))

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.DescentState) -> Metrics:
        loss, error = on_points(hyper, data, state.params)
        fine = jnp.linspace(0, 1, FINE)
        curve = predict(state.params, hyper, fine[::COARSE, None])
        count = num_pieces(state.params, 2 * fine - 1)
        return {"train/loss": loss, "train/error": error, "pieces/count": count, "fit/curve": curve}

    def loss(key: Key, hyper: Hyper, data: PyTree, params: PyTree) -> jax.Array:
        return on_points(hyper, data, params)[0]

    hyper = {**model.hyper, "folds": Range(1, MOST_FOLDS, integer=True)}
    return learners.descent(init, loss, optim.adam(), data=data, hyper=hyper, evaluate=evaluate)


def num_pieces(params: PyTree, x: jax.Array) -> jax.Array:
    """Returns the linear pieces along the points `x`: one more than the changes in which units are active."""
    layers = [params["first"]["Dense_0"]]
    if "stacked_layers" in params:
        stacked = params["stacked_layers"]["Dense_0"]
        layers += [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(stacked["bias"]))]
    hidden, changed = x[:, None], jnp.zeros(len(x) - 1, bool)
    for layer in layers:
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
        changed |= jnp.any((hidden[1:] > 0) != (hidden[:-1] > 0), axis=1)
    return 1.0 + jnp.sum(changed)


def untrained(config: Config, num_steps: int) -> Learner:
    """Counts the pieces of random networks on [-3, 3]."""
    model = models.mlp(width=config["width"], num_layers=config["hidden"] + 1, num_outputs=1)

    def count(key: Key, hyper: Hyper, x: jax.Array) -> Metrics:
        return {"pieces/count": num_pieces(model.init(key, hyper, x[:1, None])["params"], x)}

    return learners.computed(count, data=np.linspace(-3, 3, FINE, dtype=np.float32), hyper=model.hyper)


def built(config: Config, num_steps: int) -> Learner:
    """A deep network with two ReLUs in every other layer, `m(x) = s(2 s(x) - 4 s(x - 1/2))`, folded 1 to 6 times.

    Each seed scales the layers by other powers of two, which ReLUs let through. And the best fit with m linear
    pieces to a sine whose phase is the seed's.
    """

    def fold(key: Key, hyper: Hyper, x: jax.Array) -> Metrics:
        target = jnp.sin(2 * jnp.pi * (x + jax.random.uniform(key)))
        scales = 2.0 ** jax.random.randint(jax.random.fold_in(key, 1), (MOST_FOLDS,), -3, 4)
        hidden, errors, pieces = x, [], []
        for k, scale in enumerate(scales, start=1):
            first, second = jax.nn.relu(scale * hidden), jax.nn.relu(scale * hidden - scale / 2)
            hidden = jax.nn.relu(2 / scale * first - 4 / scale * second)
            on_points = hidden[: -1 : FINE // 2**k]
            errors.append(jnp.mean((on_points >= 0.5) != (jnp.arange(2**k) % 2 == 1)))
            pieces.append(1.0 + jnp.sum(jnp.diff(jnp.sign(jnp.diff(hidden))) != 0))
        sine = jnp.stack([_best_fit_error(x, target, num) for num in NUM_PIECES])
        return {"built/error": jnp.stack(errors), "built/pieces": jnp.stack(pieces), "sine/error": sine}

    return learners.computed(fold, data=np.float32(np.arange(FINE + 1) / FINE))


def _best_fit_error(x: jax.Array, target: jax.Array, num: int) -> jax.Array:
    """Mean squared error of least squares over continuous functions with `num` equal linear pieces."""
    hats = jnp.maximum(0, 1 - jnp.abs(x[:, None] * num - jnp.arange(num + 1)))
    weights = jnp.linalg.solve(hats.T @ hats, hats.T @ target)
    return jnp.mean((hats @ weights - target) ** 2)


def sweeps() -> dict[str, Sweep]:
    """Trained networks by size and depth, random ones, and what is known exactly."""
    seeds, bias = range(32, 48), {"bias_scale": (0.5,)}  # the rules were tried on 0 to 31
    hyper: dict[str, Any] = {"learning_rate": np.geomspace(1e-3, 1e-1, 3), "folds": FOLDS, **bias}

    sizes = [shape for widths in WIDTHS.values() for shape in widths.items()]
    grids = [grid(config={"hidden": (h,), "width": (w,)}, hyper=hyper, seeds=seeds) for h, w in sizes]
    shapes = [{name: (value,) for name, value in shape.items()} for shape in SHAPES.values()]
    random = [grid(config=shape, hyper=bias, seeds=range(80, 144)) for shape in shapes]
    return {
        "trained": Sweep(reduce(or_, grids), network, num_steps=2000),
        "random": Sweep(reduce(or_, random), untrained, num_steps=0),
        "built": Sweep(grid(seeds=seeds), built, num_steps=0),
    }


def fits(results: Results) -> Figure:
    """The fit of median loss to the tent folded 4 and 6 times, by depth."""
    look: dict[str, Any] = {"x": "layer", "place": lambda entries: (entries - 1) * COARSE / (FINE - 1), "xlabel": "x"}
    look |= {"clip": (-0.3, 1.3), "ylim": (-0.35, 1.35), "ylabel": ""}
    trained, drawn = pick(_by_size(results), {"parameters": 200}), []
    for k, hidden in product(SHOWN, HIDDEN):
        title, tent = f"k = {k}: {hidden} x {WIDTHS[200][hidden]} units", partial(_draw_tent, folds=k)
        drawn += lines(trained, None, MEDIAN_FIT, fixed={"hidden": hidden, "folds": k}, title=title, also=tent, **look)
    note = "grey: the tent map folded k times; blue: the trained network of median loss, about 200 parameters"
    uncounted = [Panel(panel.draw) for panel in drawn]  # each shows one run
    return side_by_side(*uncounted, note=note, legend=False, num_rows=len(SHOWN), width=3.6, height=2.4)


def _draw_tent(axes: Axes, runs: Table, folds: int) -> None:
    fine = np.linspace(0, 1, 2**folds + 1)
    axes.plot(fine, counting.tent(fine, folds), color=style.LESSON, linewidth=1.5, zorder=1)


def error_by_size(results: Results) -> Figure:
    """Errors of trained networks over their parameters, and their pieces."""
    trained = _by_size(results)
    axis: dict[str, Any] = {"x": "parameters", "xscale": "log", "ylabel": "share of wrong labels", "ylim": (-0.03, 0.6)}
    axis["also"] = lambda axes, runs: axes.axhline(0.5, color="#666666", linewidth=1)
    panels: list[Panel] = []
    for k in SHOWN:
        bounds = [counting.smallest_shallow_error(widths[1], k) for widths in WIDTHS.values()]
        look: dict[str, Any] = {"hue": by("hidden", HIDDEN), "title": f"Trained on the tent folded {k} times", **axis}
        look["theory"] = {"least possible with 1 hidden layer": (list(WIDTHS), bounds)}
        panels += lines(trained, None, WRONG, fixed={"folds": k}, **look)
    return side_by_side(*panels, _piece_counts(trained), lost="half of the labels wrong", width=4.8, height=4.0)


def _piece_counts(trained: Table) -> list[Panel]:
    """Linear pieces over the number of units, before and after training on the tent folded 4 times."""
    try:
        folded = pick(trained, {"folds": SHOWN[0]})
    except NotMeasuredError:
        return []

    def draw(axes: Axes) -> None:
        for hidden, width in sorted(set(_shapes(folded.frame))):
            counts = _at_best(folded.select(hidden=hidden, width=width)).curves("pieces/count").mean(axis=0)
            look: dict[str, Any] = {"marker": "o", "color": style.COLORS[list(HIDDEN).index(hidden)]}
            axes.plot(hidden * width, counts[0], markerfacecolor="white", **look)
            axes.plot(hidden * width, counts[-1], **look)
        units = np.array([8, 220])
        axes.plot(units, units + 1, color="#666666", linewidth=1)
        axes.text(60, 75, "units + 1", color="#666666", ha="right")
        axes.set(xscale="log", yscale="log", xlabel="hidden units", ylabel="linear pieces on [0, 1]")
        axes.set(title="Pieces at the start (open) and trained")

    return [Panel(draw, (folded,))]


def pieces(results: Results) -> Figure:
    """Pieces of networks built by hand and of random ones; the best fit of a sine by m pieces."""
    hand: dict[str, Any] = {"theory": {"theory: 2^(layers / 2)": lambda layers: 2.0 ** (layers / 2)}, "points": True}
    hand |= {"place": lambda k: 2 * k, "also": lambda axes, runs: axes.set_yscale("log", base=2)}
    hand |= {
        "xlabel": "hidden layers, of two and one units in turn",
        "ylabel": "linear pieces",
        "title": "Built by hand",
    }
    random: dict[str, Any] = {"marks": {"theory: most with 1 x 32": counting.max_pieces(32)}, "points": True}
    random |= {"xlabel": "hidden layers x units", "ylabel": "linear pieces", "ylim": (0, 40)}
    shaped = with_axis(results["random"], "shape", lambda frame: [f"{h} x {w}" for h, w in _shapes(frame)])
    sine: dict[str, Any] = {"place": lambda entries: 2 ** (entries + 1), "log": True, "markers": True}
    sine |= {"theory": {"theory: 1.0823 / m^4": lambda m: counting.piecewise_linear_error(m, 8 * np.pi**4)}}
    sine |= {"also": lambda axes, runs: axes.set_xscale("log", base=2), "xticks": NUM_PIECES, "xticklabels": NUM_PIECES}
    sine |= {"xlabel": "linear pieces m", "ylabel": "mean squared error", "title": "One sine"}
    count = {"random networks, 32 units": last("pieces/count")}
    return side_by_side(
        lines(results, "built", {"built by hand": "built/pieces"}, x="layer", **hand),
        lines(shaped, None, count, x="shape", title="Random: depth adds none", first_color=1, **random),
        lines(results, "built", {"least squares": "sine/error"}, x="layer", first_color=2, **sine),
        width=4.6,
        height=3.9,
    )


def claims(results: Results) -> list[Claim]:
    """What the lesson says of depth, what the theorems say, and whether training finds it."""
    lesson, trained = text("003", "Why Depth Works"), _by_size(results)
    telgarsky = (
        "Telgarsky, Representation Benefits of Deep Feedforward Networks, 2015, https://arxiv.org/abs/1509.08101"
    )
    exact = "whether a network built by hand has exactly 2^k pieces and no error (1 or 0)"
    right = Effect(exact, each("k = {}", range(1, MOST_FOLDS + 1), partial(_right, results)))
    wide, narrow = (
        _most_folds(trained, None, {"one hidden layer": {"hidden": 1}}, width=WIDTHS[size][1]) for size in (600, 75)
    )
    folds, sizes = {k: f"k = {k}" for k in SHOWN}, {size: f"{size} parameters" for size in WIDTHS}
    wrong = WRONG.with_words("share of wrong labels, each at its own best rate by training loss")
    one, four = (
        wrong(trained, None, {"": {"hidden": hidden}}, parameters=sizes, folds=folds).called(f"with {HIDDEN[hidden]}")
        for hidden in (1, 4)
    )
    found = WRONG.with_words(FOUND)(trained, None, {"": {"hidden": 4, "parameters": 600}}, folds=folds)
    shallow, deep = last("pieces/count"), last("pieces/count").with_words("those of the deeper network, both random")
    shallow = shallow.with_words("pieces on [-3, 3] of one hidden layer of 32 units")
    deeper = {name: shape for name, shape in SHAPES.items() if shape["hidden"] > 1}
    fewer = shallow(results, "random", {"": SHAPES["1 x 32"]}) - deep(results, "random", deeper)
    return [
        judge(
            "A deep network of three units a fold cuts the line into 2^k pieces and labels every point right.",
            telgarsky,
            right,
            least=0.5,
        ),
        judge(
            "One hidden layer needs exponentially many neurons for it: eight times as many buy less than two folds.",
            f"{lesson}; {telgarsky}",
            wide - narrow,
            most=2,
        ),
        judge(
            "At equal parameters a trained network of four hidden layers makes fewer errors than one of one.",
            lesson,
            one - four,
            least=0.05,
        ),
        judge("What a deep network can represent, training finds.", lesson, found, most=0.05),
        judge(
            "Random deep networks have no more pieces than shallow ones with as many units.",
            "Hanin and Rolnick, Complexity of Linear Regions in Deep Networks, 2019, https://arxiv.org/abs/1901.09021",
            fewer,
            least=-1,
        ),
        judge(
            "One hidden layer approximates any function: its error on a sine falls as 1 / m^4 in m pieces.",
            f"{lesson}; de Boor, A Practical Guide to Splines, 1978, https://doi.org/10.1007/978-1-4612-6333-3",
            _slope_from_minus_4(results, "built", {"best fit": {}}),
            most=0.1,
        ),
    ]


def _shapes(frame: pd.DataFrame) -> Iterable[tuple[int, int]]:
    return zip(frame["hidden"], frame["width"], strict=True)


def _by_size(results: Results) -> Table:
    """The trained networks with one more axis, about how many parameters they have."""
    sizes = {shape: size for size, widths in WIDTHS.items() for shape in widths.items()}
    return with_axis(results["trained"], "parameters", lambda frame: [sizes[shape] for shape in _shapes(frame)])


def _right(results: Results, folds: int) -> np.ndarray:
    found, errors = (results["built"].curves(f"built/{name}")[:, 0, folds - 1] for name in ("pieces", "error"))
    return ((found == 2**folds) & (errors == 0)).astype(float)


def _at_best(runs: Table) -> Table:
    return runs.select(**statistics.chosen(runs, "learning_rate", choose_by="train/loss"))


def _median_run(runs: Table) -> dict[str, Any]:
    """The run of median loss at the best rate."""
    ranked = _at_best(runs).frame.sort_values("train/loss", kind="stable")
    return dict(ranked[["learning_rate", "seed"]].iloc[len(ranked) // 2])


@measure(
    "most folds that one trained hidden layer learns with at most 5% wrong labels (1 where there is none), each at its "
    "own best rate by training loss"
)
def _most_folds(runs: Table) -> np.ndarray:
    return np.max([np.where(np.asarray(WRONG.of(pick(runs, {"folds": k}))) <= 0.05, k, 1) for k in FOLDS], axis=0)


@measure("distance from -4 of the slope of log error over log m, m from 16")
def _slope_from_minus_4(runs: Table) -> np.ndarray:
    errors = np.log(runs.curves("sine/error")[:, 0, 2:])
    return np.abs(np.polyfit(np.log(NUM_PIECES[2:]), errors.T, 1)[0] + 4)


MEDIAN_FIT = Measure("trained network", last("fit/curve").of, "fit/curve", _median_run)
EXPERIMENT = Experiment("depth.sawtooth", 1, __doc__, sweeps, (fits, error_by_size, pieces), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
