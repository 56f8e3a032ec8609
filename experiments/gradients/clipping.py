"""When does gradient clipping save a run?

The lesson's remedy for exploding gradients is to scale a gradient down that is longer than a threshold (text 004, "The
Vanishing and Exploding Gradient Problems"). A recurrent network learns the adding problem over 50 steps here, at every
threshold and learning rate; and a network of one weight walks to the edge of a cliff.

Theory: the derivative of w^100 at w = 1.1 is 100 x 1.1^99 = 1.25 million, so one step of gradient descent lands far
away; a step of clipped length does not (Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
networks", 2013, https://arxiv.org/abs/1211.5063). On the adding problem a constant guess has squared error 1/6. A run
counts as diverged where its training loss ends non-finite or above what it began with.

    python -m experiments.gradients.clipping
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import Dataset, Split
from dlexp.results import Results, Table
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

GUESS = 1 / 6  # squared error of the best constant prediction
LENGTH = 50
CLIFF_STEPS = 100  # layers of the network of one weight
CLIPPINGS = {"none": (), "norm": (optim.clip_by_global_norm(),), "value": (optim.clip_by_value(),)}
NORMS, VALUES = (0.01, 0.1, 1.0, 10.0), (0.01, 0.1)
NAMES = {"norm": "clip_norm", "value": "clip_value"}


def adding_problem(num_examples: int, seed: int) -> Split:
    """Sequences `[example, 50, 2]` of uniform numbers and two marks; the target is the sum of the marked numbers.

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, task 4, with numbers in [0, 1].
    """
    rng = np.random.default_rng(seed)
    numbers, marks = rng.random((num_examples, LENGTH)), np.zeros((num_examples, LENGTH))
    rows, half = np.arange(num_examples), LENGTH // 2
    marks[rows, rng.integers(0, half, num_examples)] = 1
    marks[rows, rng.integers(half, LENGTH, num_examples)] = 1
    inputs = np.stack([numbers, marks], axis=-1).astype(np.float32)
    return Split(inputs, (numbers * marks).sum(axis=1).astype(np.float32))


def network(config: Config, num_steps: int) -> Learner:
    """32 recurrent tanh units, trained by SGD behind the clipping."""
    model = models.rnn(width=32, num_outputs=1)
    tx = optim.chain(*CLIPPINGS[config["clipping"]], optim.sgd())
    data = Dataset(*(adding_problem(num, seed) for seed, num in enumerate((4000, 1000, 1000))))
    return learners.supervised(model, losses.squared_error, tx, data, batch_size=32)


def cliff(config: Config, num_steps: int) -> Learner:
    """One weight w, applied 100 times to the number 1, that should give 1: the loss is (w^100 - 1)^2 / 2."""
    tx = optim.chain(*CLIPPINGS[config["clipping"]], optim.sgd())

    def loss(weight: jax.Array) -> jax.Array:
        return 0.5 * (weight**CLIFF_STEPS - 1) ** 2

    def init(key: Key, hyper: Hyper, data: PyTree) -> learners.State:
        weight = 1.02 + 0.03 * jax.random.uniform(key)
        return learners.State(weight, {}, tx.make_tx(hyper).init(weight))

    def update(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> tuple[learners.State, Metrics]:
        value, grad = jax.value_and_grad(loss)(state.params)
        updates, opt_state = tx.make_tx(hyper).update(grad, state.opt_state, state.params)
        return learners.State(optax.apply_updates(state.params, updates), {}, opt_state), {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> Metrics:
        return {"cliff/weight": state.params, "train/loss": loss(state.params)}

    return Learner({"unused": np.zeros(1)}, tx.hyper, init, update, evaluate)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Clipping x threshold x rate on the adding problem; the cliff with and without."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    num_rates = {"smoke": 2, "cpu": 8, "gpu": 22}[scale]
    shared = {"learning_rate": geomspace(1e-3, 10**0.5, num_rates), "recurrent_scale": (1.3,)}
    norms = NORMS if scale != "smoke" else (1.0,)
    adding = grid(config={"clipping": ("norm",)}, hyper={**shared, "clip_norm": norms}, seeds=seeds)
    steep = {"learning_rate": (1e-4, 1e-3)}
    edge = grid(config={"clipping": ("norm",)}, hyper={**steep, "clip_norm": (1.0,)}, seeds=seeds)
    if scale == "smoke":
        return {"adding": Sweep(adding, network, 10), "cliff": Sweep(edge, cliff, num_steps=600, num_evals=60)}
    adding |= grid(config={"clipping": ("none",)}, hyper=shared, seeds=seeds)
    adding |= grid(config={"clipping": ("value",)}, hyper={**shared, "clip_value": VALUES}, seeds=seeds)
    edge |= grid(config={"clipping": ("none",)}, hyper=steep, seeds=seeds)
    return {
        "adding": Sweep(adding, network, num_steps=600, num_evals=6),
        "cliff": Sweep(edge, cliff, num_steps=600, num_evals=60),
    }


def figures(results: Results) -> Figures:
    """How the runs end over rate and threshold; the walk of one weight towards the cliff."""
    return {"loss_by_rate": lambda: _loss_by_rate(results["adding"]), "cliff": lambda: _cliff(results["cliff"])}


def claims(results: Results) -> list[Claim]:
    """What the lesson and the paper say of clipping."""
    lesson = 'text 004, "ML Deep Learning Introduction", The Vanishing and Exploding Gradient Problems'
    paper = "Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013, "
    adding, edge = results["adding"], results["cliff"]
    return [
        judge(
            "Exploding gradients make training unstable, and clipping mends it.",
            source=lesson,
            rule="share of the learning rates at which a run diverges, without minus with clipping by norm; at least "
            "a quarter",
            effects=each(
                "norm {:g}", NORMS, lambda n: _share_diverged(adding, "none") - _share_diverged(adding, "norm", n)
            ),
            smallest=0.25,
        ),
        judge(
            "Clipping allows learning rates ten times as high.",
            source=paper + "https://arxiv.org/abs/1211.5063; the number is ours",
            rule="log10 of the highest rate that ends below twice a constant guess's training loss (the grid's lowest "
            "where none does), with clipping by norm over without, paired by seed; at least 1",
            effects=each(
                "norm {:g}", NORMS, lambda n: _highest_rate(adding, "norm", n) - _highest_rate(adding, "none")
            ),
            smallest=1.0,
        ),
        judge(
            "With clipping the adding problem is solved better.",
            source=lesson,
            rule="1 minus the test loss with clipping over without, rate and threshold of each chosen on validation, "
            "paired by seed; at least 0.1",
            effects=each("by {}", NAMES, lambda way: 1 - _best_loss(adding, way) / _best_loss(adding, "none")),
            smallest=0.1,
        ),
        judge(
            "Clipping the norm, which keeps the direction, is better than clipping every number.",
            source=paper + "https://arxiv.org/abs/1211.5063, section 3.2",
            rule="1 minus the test loss by norm over by value, rate and threshold of each chosen on validation, "
            "paired by seed; at least 0.02",
            effects={"adding problem": lambda: 1 - _best_loss(adding, "norm") / _best_loss(adding, "value")},
            smallest=0.02,
        ),
        judge(
            "At a cliff one step of gradient descent flies away, a clipped one does not.",
            source=paper + "https://arxiv.org/abs/1211.5063, figure 6",
            rule="whether the loss of the one weight ends below 1/2 with clipping (1 or 0) minus without; above 0.5",
            effects=each("rate {:g}", (1e-4, 1e-3), lambda r: _lands(edge, "norm", r) - _lands(edge, "none", r)),
            smallest=0.5,
        ),
    ]


def _runs(table: Table, clipping: str, threshold: float | None = None) -> Table:
    return table.select(clipping=clipping, **({NAMES[clipping]: threshold} if threshold else {}))


def _diverged(table: Table) -> np.ndarray:
    """Which runs ended worse than they began, `[run]`."""
    losses_over_time = table.curves("train/loss")
    return ~(losses_over_time[:, -1] < losses_over_time[:, 0])


def _share_diverged(table: Table, clipping: str, threshold: float | None = None) -> np.ndarray:
    runs = _runs(table, clipping, threshold)
    return runs.frame.assign(lost=_diverged(runs)).groupby("seed")["lost"].mean().to_numpy()


def _highest_rate(table: Table, clipping: str, threshold: float | None = None) -> np.ndarray:
    """log10 of the highest rate that ends below twice a guess's loss, `[seed]`."""
    losses_by_rate = analysis.by_seed(_runs(table, clipping, threshold), "train/loss", "learning_rate", failed=np.inf)
    rates = np.log10(losses_by_rate.columns.to_numpy(float))
    return np.where(losses_by_rate < 2 * GUESS, rates, rates[0]).max(axis=1)


def _best_loss(table: Table, clipping: str) -> np.ndarray:
    """Test loss `[seed]` at the threshold and rate that are best on validation."""
    axes = [*([NAMES[clipping]] if clipping in NAMES else []), "learning_rate"]
    runs = _runs(table, clipping)
    return analysis.at_best(runs, axes, "test/loss", failed=np.inf, choose_by="validation/loss")


def _lands(table: Table, clipping: str, rate: float) -> np.ndarray:
    runs = table.select(clipping=clipping, learning_rate=rate).frame
    return (runs["train/loss"] < 0.5).to_numpy(float)


def _loss_by_rate(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.8, height=4.4)
    there = set(table.frame["clipping"])
    settings = [("none", None)] + [("norm", norm) for norm in NORMS[::-1]] + [("value", VALUES[0])]
    for color, (clipping, threshold) in zip(plots.COLORS, settings, strict=False):
        if clipping not in there or (threshold and not np.isclose(table.frame[NAMES[clipping]], threshold).any()):
            continue
        label = f"{clipping} {threshold:g}" if threshold else "no clipping"
        runs = _runs(table, clipping, threshold)
        final = analysis.by_seed(runs, "train/loss", "learning_rate", failed=1e5).clip(upper=1e5)
        rates = final.columns.to_numpy(float)
        left.plot(rates, final.median(), color=color, label=label, marker="o", markersize=3.5)
        lost = runs.frame.assign(lost=_diverged(runs)).groupby("learning_rate")["lost"].mean()
        right.plot(lost.index, lost, color=color, label=label, marker="o", markersize=3.5)
    left.axhline(GUESS, color="black", linestyle="--", linewidth=1.5, label="a constant guess, 1/6")
    left.set(xscale="log", yscale="log", ylim=(0.05, 2e5), ylabel="final training loss, median")
    left.set(xlabel="learning rate of SGD", title="Adding problem, 50 steps")
    right.set(xscale="log", ylabel="share of diverged runs", xlabel="learning rate of SGD", ylim=(-0.03, 1.03))
    right.set(title="Runs that end worse than they began")
    lost = int((table.frame["status"] != "ok").sum())
    note = f"{len(table)} runs, {table.frame['seed'].nunique()} seeds a point; {lost} non-finite, drawn at 10^5"
    plots.legend_below(figure, left, note)
    return figure


def _cliff(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.4, height=4.0)
    weights = np.linspace(0.9, 1.06, 400)
    left.plot(weights, 0.5 * (weights**CLIFF_STEPS - 1) ** 2 + 1e-3, color="#666666")
    left.set(yscale="log", xlabel="weight w", ylabel="loss + 0.001", title=f"The cliff: (w^{CLIFF_STEPS} - 1)^2 / 2")
    rate = table.frame["learning_rate"].max()
    for color, clipping in zip(plots.COLORS[1:], ("none", "norm"), strict=False):
        if clipping not in set(table.frame["clipping"]):
            continue
        runs = table.select(clipping=clipping, learning_rate=rate)
        label = "clipped to norm 1" if clipping == "norm" else "no clipping"
        for number, path in enumerate(runs.curves("cliff/weight")):
            seen = np.where(np.abs(path - 1) < 0.5, path, np.nan)
            right.plot(runs.steps("cliff/weight"), seen, color=color, label=None if number else label, linewidth=1)
            if np.isnan(seen).any():
                right.plot(0, path[0], marker="x", color=color, markersize=8)
    right.axhline(1, color="black", linestyle="--", linewidth=1.5, label="the minimum")
    right.set(xlabel="step", ylabel="weight w", xlim=(-4, 160), ylim=(0.97, 1.06), title=f"Steps at rate {rate:g}")
    right.legend(loc="upper right")
    plots.note(figure, "a path a seed; a cross: gone from the picture after the first step, or not finite")
    return figure


EXPERIMENT = Experiment(
    name="gradients.clipping",
    version=1,
    question="When does gradient clipping save a run?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
