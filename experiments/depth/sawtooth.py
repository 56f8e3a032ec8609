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

from functools import reduce
from itertools import product
from operator import or_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from dlexp.claims import Claim, each, judge
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import analysis, cli, models, optim, plots
from dlexp.learners import State
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.theory import counting
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Range, Sweep

FOLDS, SHOWN = (2, 3, 4, 5, 6), (4, 6)
WIDTHS = {  # parameters, up to a tenth -> hidden layers -> units a layer
    75: {1: 24, 2: 7, 4: 4},
    200: {1: 66, 2: 12, 4: 7},
    600: {1: 200, 2: 22, 4: 13},
}
SHAPES = ((1, 32), (2, 16), (4, 8), (8, 4))  # hidden layers x units: 32 in all
NUM_PIECES = (4, 8, 16, 32, 64)
MOST_FOLDS = 6
FINE, COARSE = 4096, 40  # points that pieces are counted on; every COARSE-th is kept for the figure
_BY_LOSS = {"choose_by": "train/loss"}


def network(config: Config, num_steps: int) -> Learner:
    """Trains on the 2^k points, all at once, by Adam; k is swept."""
    model = models.mlp(width=config["width"], num_layers=config["hidden"] + 1, num_outputs=1)
    tx = optim.adam()
    points = [np.resize(np.arange(2**k) / 2**k, 2**MOST_FOLDS) for k in range(1, MOST_FOLDS + 1)]
    targets = [counting.tent(x, k) for k, x in enumerate(points, start=1)]
    data = {"inputs": np.array(points, np.float32)[..., None], "targets": np.array(targets, np.float32)}

    def init(key: Key, hyper: Hyper, data: PyTree) -> State:
        params = model.init(key, hyper, data["inputs"][0])["params"]
        return State(params, {}, tx.make_tx(hyper).init(params))

    def predict(params: PyTree, hyper: Hyper, inputs: jax.Array) -> jax.Array:
        return model.apply({"params": params}, hyper, 2 * inputs - 1, key=jax.random.key(0), train=False)[0][:, 0]

    def task(hyper: Hyper, data: PyTree) -> tuple[jax.Array, jax.Array]:
        return data["inputs"][hyper["folds"] - 1], data["targets"][hyper["folds"] - 1]

    def update(key: Key, hyper: Hyper, data: PyTree, state: State) -> tuple[State, Metrics]:
        inputs, targets = task(hyper, data)
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((predict(p, hyper, inputs) - targets) ** 2))(state.params)
        updates, opt_state = tx.make_tx(hyper).update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), {}, opt_state), {"batch/loss": loss}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: State) -> Metrics:
        inputs, targets = task(hyper, data)
        predictions = predict(state.params, hyper, inputs)
        fine = jnp.linspace(0, 1, FINE)
        return {
            "train/loss": jnp.mean((predictions - targets) ** 2),
            "train/error": jnp.mean((predictions >= 0.5) != (targets >= 0.5)),
            "pieces/count": num_pieces(state.params, 2 * fine - 1),
            "fit/curve": predict(state.params, hyper, fine[::COARSE, None]),
        }

    swept = {**model.hyper, **tx.hyper, "folds": Range(1, MOST_FOLDS, integer=True)}
    return Learner(data, swept, init, update, evaluate)


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

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> Metrics:
        return {"pieces/count": num_pieces(state["params"], data)}

    data = np.linspace(-3, 3, FINE, dtype=np.float32)
    return Learner(data, model.hyper, lambda key, hyper, x: model.init(key, hyper, x[:1, None]), None, evaluate)


def built(config: Config, num_steps: int) -> Learner:
    """A deep network with two ReLUs in every other layer, `m(x) = s(2 s(x) - 4 s(x - 1/2))`, folded 1 to 6 times.

    Each seed scales the layers by other powers of two, which ReLUs let through. And the best fit with m linear
    pieces to a sine whose phase is the seed's.
    """
    x = np.float32(np.arange(FINE + 1) / FINE)

    def init(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        target = jnp.sin(2 * jnp.pi * (data + jax.random.uniform(key)))
        scales = 2.0 ** jax.random.randint(jax.random.fold_in(key, 1), (MOST_FOLDS,), -3, 4)
        return {"scales": scales, "errors": jnp.stack([_best_fit_error(data, target, num) for num in NUM_PIECES])}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> Metrics:
        hidden, errors, pieces = data, [], []
        for k in range(1, MOST_FOLDS + 1):
            scale = state["scales"][k - 1]
            first, second = jax.nn.relu(scale * hidden), jax.nn.relu(scale * hidden - scale / 2)
            hidden = jax.nn.relu(2 / scale * first - 4 / scale * second)
            on_points = hidden[: -1 : FINE // 2**k]
            errors.append(jnp.mean((on_points >= 0.5) != (jnp.arange(2**k) % 2 == 1)))
            pieces.append(1.0 + jnp.sum(jnp.diff(jnp.sign(jnp.diff(hidden))) != 0))
        return {"built/error": jnp.stack(errors), "built/pieces": jnp.stack(pieces), "sine/error": state["errors"]}

    return Learner(x, {}, init, None, evaluate)


def _best_fit_error(x: jax.Array, target: jax.Array, num: int) -> jax.Array:
    """Mean squared error of least squares over continuous functions with `num` equal linear pieces."""
    hats = jnp.maximum(0, 1 - jnp.abs(x[:, None] * num - jnp.arange(num + 1)))
    weights = jnp.linalg.solve(hats.T @ hats, hats.T @ target)
    return jnp.mean((hats @ weights - target) ** 2)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Trained networks by size and depth, random ones, and what is known exactly."""
    seeds = {"smoke": range(2), "cpu": range(32, 48), "gpu": range(32, 288)}[scale]  # rules were tried on 0 to 31
    num_rates = {"smoke": 2, "cpu": 3, "gpu": 7}[scale]
    hyper: dict[str, Any] = {"learning_rate": np.geomspace(1e-3, 1e-1, num_rates), "bias_scale": (0.5,), "folds": FOLDS}
    shapes = [(hidden, width) for widths in WIDTHS.values() for hidden, width in widths.items()]
    random = SHAPES[1:2] if scale == "smoke" else SHAPES
    shapes = shapes[1:2] if scale == "smoke" else shapes
    trained, untrained_ones = (
        [grid(config={"hidden": (h,), "width": (w,)}, hyper=values, seeds=num) for h, w in chosen]
        for chosen, values, num in (
            (shapes, hyper, seeds),
            (random, {"bias_scale": (0.5,)}, range(80, 80 + 4 * len(seeds))),
        )
    )
    num_steps = 100 if scale == "smoke" else 2000
    return {
        "trained": Sweep(reduce(or_, trained), network, num_steps),
        "random": Sweep(reduce(or_, untrained_ones), untrained, num_steps=0),
        "built": Sweep(grid(seeds=seeds), built, num_steps=0),
    }


def figures(results: Results) -> Figures:
    """The fits, their errors by size and depth, the pieces, and the best piecewise linear fit of a sine."""
    return {
        "fits": lambda: _fits(results["trained"]),
        "error_by_size": lambda: _error_by_size(results["trained"]),
        "pieces": lambda: _pieces(results),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of depth, what the theorems say, and whether training finds it."""
    lesson = 'text 003, "Deep Learning Overview", Why Depth Works'
    telgarsky = (
        "Telgarsky, Representation Benefits of Deep Feedforward Networks, 2015, https://arxiv.org/abs/1509.08101"
    )
    trained, built_ones = results["trained"], results["built"]
    return [
        judge(
            "A deep network of three units a fold cuts the line into 2^k pieces and labels every point right.",
            source=telgarsky,
            rule="whether a network built by hand has exactly 2^k pieces and no error (1 or 0); above 0.5",
            effects=each("k = {}", range(1, MOST_FOLDS + 1), lambda k: _right(built_ones, k)),
            smallest=0.5,
        ),
        judge(
            "One hidden layer needs exponentially many neurons for it: eight times as many buy less than two folds.",
            source=f"{lesson}; {telgarsky}",
            rule="2 minus the difference, between 200 and 24 units in one trained hidden layer, of the most folds with "
            "at most 5% wrong labels (1 where there is none), each at its own best rate by training loss; more than 0",
            effects={"one hidden layer": lambda: 2 - (_most_folds(trained, 600) - _most_folds(trained, 75))},
        ),
        judge(
            "At equal parameters a trained network of four hidden layers makes fewer errors than one of one.",
            source=lesson,
            rule="share of wrong labels with one hidden layer minus with four, each at its own best rate by training "
            "loss; at least 0.05",
            effects=each(
                "{} parameters, k = {}",
                product(WIDTHS, SHOWN),
                lambda size, k: _errors(trained, size, 1, k) - _errors(trained, size, 4, k),
            ),
            smallest=0.05,
        ),
        judge(
            "What a deep network can represent, training finds.",
            source=lesson,
            rule="0.05 minus the share of wrong labels of four hidden layers with 600 parameters (built by hand, 2k "
            "hidden layers with fewer than 100 make no error), at the best rate by training loss; more than 0",
            effects=each("k = {}", SHOWN, lambda k: 0.05 - _errors(trained, 600, 4, k)),
        ),
        judge(
            "Random deep networks have no more pieces than shallow ones with as many units.",
            source="Hanin and Rolnick, Complexity of Linear Regions in Deep Networks, 2019, "
            "https://arxiv.org/abs/1901.09021",
            rule="pieces on [-3, 3] of one hidden layer of 32 units minus those of the deeper network, both random; "
            "not below -1",
            effects=each(
                "{} x {}", SHAPES[1:], lambda *shape: _random_pieces(results, 1, 32) - _random_pieces(results, *shape)
            ),
            smallest=-1.0,
        ),
        judge(
            "One hidden layer approximates any function: its error on a sine falls as 1 / m^4 in m pieces.",
            source=f"{lesson}; de Boor, A Practical Guide to Splines, 1978, https://doi.org/10.1007/978-1-4612-6333-3",
            rule="0.1 minus the distance from -4 of the slope of log error over log m, m from 16; more than 0",
            effects={"best fit": lambda: 0.1 - abs(_slope(built_ones) + 4)},
        ),
    ]


def _runs(table: Table, size: int, hidden: int, folds: int) -> Table:
    return table.select(hidden=hidden, width=WIDTHS[size][hidden], folds=folds)


def _errors(table: Table, size: int, hidden: int, folds: int) -> np.ndarray:
    runs = _runs(table, size, hidden, folds)
    return analysis.at_best(runs, "learning_rate", "train/error", failed=0.5, **_BY_LOSS)


def _most_folds(table: Table, size: int) -> np.ndarray:
    """The most folds that one hidden layer learns with at most 5% wrong labels, 1 where it learns none, `[seed]`."""
    learned = [np.where(_errors(table, size, 1, k) <= 0.05, k, 1) for k in FOLDS]
    return np.max(learned, axis=0)


def _right(table: Table, folds: int) -> np.ndarray:
    pieces, errors = (table.curves(f"built/{name}")[:, 0, folds - 1] for name in ("pieces", "error"))
    return ((pieces == 2**folds) & (errors == 0)).astype(float)


def _random_pieces(results: Results, hidden: int, width: int) -> np.ndarray:
    return results["random"].select(hidden=hidden, width=width).frame["pieces/count"].to_numpy()


def _slope(table: Table) -> np.ndarray:
    """Slope of log error over log m `[seed]`, m from 16."""
    errors = np.log(table.curves("sine/error")[:, 0, 2:])
    return np.polyfit(np.log(NUM_PIECES[2:]), errors.T, 1)[0]


def _fits(table: Table) -> Figure:
    there = [hidden for hidden in (1, 2, 4) if hidden in set(table.frame["hidden"])]
    size = 200 if len(there) > 1 else 75
    figure, panels = plots.subplots(len(SHOWN), len(there), width=3.6, height=2.4)
    for row, k in zip(np.atleast_2d(panels.reshape(len(SHOWN), -1)), SHOWN, strict=True):
        for axes, hidden in zip(row, there, strict=True):
            runs = _runs(table, size, hidden, k)
            runs = runs.select(**analysis.chosen(runs, "learning_rate", **_BY_LOSS))
            order = np.argsort(runs.frame["train/loss"].to_numpy())
            curve = runs.curves("fit/curve")[order[len(order) // 2], -1]
            x = np.linspace(0, 1, FINE)[::COARSE]
            fine = np.linspace(0, 1, 2**k + 1)
            axes.plot(fine, counting.tent(fine, k), color=plots.LESSON, linewidth=1.5)
            axes.plot(x, np.clip(curve, -0.3, 1.3), color=plots.COLORS[0], linewidth=1.5)
            axes.set(title=f"k = {k}: {hidden} x {WIDTHS[size][hidden]} units", ylim=(-0.35, 1.35))
    for axes in np.atleast_2d(panels.reshape(len(SHOWN), -1))[-1]:
        axes.set(xlabel="x")
    text = f"grey: the tent map folded k times; blue: the trained network of median loss, about {size} parameters"
    plots.note(figure, text)
    return figure


def _error_by_size(table: Table) -> Figure:
    figure, panels = plots.subplots(1, len(SHOWN) + 1, width=4.8, height=4.0)
    _draw_trained_pieces(panels[-1], table)
    for axes, k in zip(panels, SHOWN, strict=False):
        for color, hidden in zip(plots.COLORS, (1, 2, 4), strict=False):
            sizes = [size for size in WIDTHS if _there(table, hidden, WIDTHS[size][hidden])]
            if sizes:
                values = np.array([_errors(table, size, hidden, k) for size in sizes]).T
                label = f"{hidden} hidden layer{'s' * (hidden > 1)}"
                plots.band(axes, np.array(sizes), values, label=label, color=color, marker="o")
        every = np.array(list(WIDTHS))
        bounds = [counting.smallest_shallow_error(WIDTHS[size][1], k) for size in WIDTHS]
        plots.theory_line(axes, every, bounds, "least possible with 1 hidden layer")
        axes.axhline(0.5, color="#666666", linewidth=1)
        axes.set(xscale="log", xlabel="parameters", ylabel="share of wrong labels", ylim=(-0.03, 0.6))
        axes.set_xticks(every, [str(size) for size in every])
        axes.minorticks_off()
        axes.set(title=f"Trained on the tent folded {k} times")
    plots.legend_below(figure, panels[0], plots.counts([table], failed_as="half of the labels wrong"))
    return figure


def _draw_trained_pieces(axes: Axes, table: Table) -> None:
    """Linear pieces over the number of units, before and after training on the tent folded 4 times."""
    for color, hidden in zip(plots.COLORS, (1, 2, 4), strict=False):
        for size in WIDTHS:
            width = WIDTHS[size][hidden]
            if _there(table, hidden, width):
                runs = _runs(table, size, hidden, SHOWN[0])
                runs = runs.select(**analysis.chosen(runs, "learning_rate", **_BY_LOSS))
                counted = runs.curves("pieces/count").mean(axis=0)
                axes.plot(hidden * width, counted[0], "o", markerfacecolor="white", color=color)
                axes.plot(hidden * width, counted[-1], "o", color=color)
    units = np.array([8, 220])
    axes.plot(units, units + 1, color="#666666", linewidth=1)
    axes.text(60, 75, "units + 1", color="#666666", ha="right")
    axes.set(xscale="log", yscale="log", xlabel="hidden units", ylabel="linear pieces on [0, 1]")
    axes.set(title="Pieces at the start (open) and trained")


def _there(table: Table, hidden: int, width: int) -> bool:
    return bool(((table.frame["hidden"] == hidden) & (table.frame["width"] == width)).any())


def _pieces(results: Results) -> Figure:
    figure, (left, middle, right) = plots.subplots(1, 3, width=4.6, height=3.9)
    folds = np.arange(1, MOST_FOLDS + 1)
    plots.theory_line(left, 2 * folds, 2.0**folds, "theory: 2^(layers / 2)")
    pieces = results["built"].curves("built/pieces")[0, 0]
    left.plot(2 * folds, pieces, "o", color=plots.COLORS[0], label="built by hand")
    left.set(
        yscale="log",
        xlabel="hidden layers, of two and one units in turn",
        ylabel="linear pieces",
        title="Built by hand",
    )
    left.set_yscale("log", base=2)
    left.legend()
    shapes = [shape for shape in SHAPES if _there(results["random"], *shape)]
    counted = np.array([_random_pieces(results, *shape) for shape in shapes]).T
    places = np.arange(len(shapes))
    plots.interval_points(middle, places, counted, label="random networks, 32 units", color=plots.COLORS[1])
    middle.axhline(
        counting.max_pieces(32), color="black", linestyle="--", linewidth=1.5, label="theory: most with 1 x 32"
    )
    middle.set_xticks(places, [f"{hidden} x {width}" for hidden, width in shapes])
    middle.set(ylim=(0, 40), xlabel="hidden layers x units", ylabel="linear pieces", title="Random: depth adds none")
    middle.legend(loc="lower left")
    num = np.array(NUM_PIECES)
    label, color = "least squares", plots.COLORS[2]
    plots.band(right, num, results["built"].curves("sine/error")[:, 0], label=label, color=color, log=True, marker="o")
    plots.theory_line(right, num, counting.piecewise_linear_error(num, 8 * np.pi**4), "theory: 1.0823 / m^4")
    right.set(xscale="log", yscale="log", xlabel="linear pieces m", ylabel="mean squared error", title="One sine")
    right.set_xticks(num, [str(value) for value in num])
    right.minorticks_off()
    right.legend()
    plots.note(figure, plots.counts([results["random"], results["built"]], failed_as="missing"))
    return figure


EXPERIMENT = Experiment(
    name="depth.sawtooth",
    version=1,
    question="What does depth buy at equal parameters?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
