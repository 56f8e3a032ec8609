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

from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import Dataset, Split
from dlexp.results import Results, Table
from dlexp.study import FRESH_SEEDS, Claim, at_best, judge, lines, measure, share, side_by_side, style, text
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

GUESS = 1 / 6  # squared error of the best constant prediction
LENGTH = 50
CLIFF_STEPS = 100  # layers of the network of one weight
CLIPPINGS = {"none": (), "norm": (optim.clip_by_global_norm(),), "value": (optim.clip_by_value(),)}
ADDRESS = "https://arxiv.org/abs/1211.5063"
NORMS, VALUES, STEEP_RATES = (0.01, 0.1, 1.0, 10.0), (0.01, 0.1), (1e-4, 1e-3)


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


def one_weight(config: Config, num_steps: int) -> Learner:
    """One weight w, applied 100 times to the number 1, that should give 1: the loss is (w^100 - 1)^2 / 2."""
    tx = optim.chain(*CLIPPINGS[config["clipping"]], optim.sgd())

    def init(key: Key, hyper: Hyper, data: PyTree) -> jax.Array:
        return 1.02 + 0.03 * jax.random.uniform(key)

    def loss(key: Key, hyper: Hyper, data: PyTree, weight: jax.Array) -> jax.Array:
        return cliff_loss(weight)

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.DescentState) -> Metrics:
        return {"cliff/weight": state.params, "train/loss": cliff_loss(state.params)}

    return learners.descent(init, loss, tx, evaluate=evaluate)


def cliff_loss(weight: Any) -> Any:
    """Returns half the squared error of the network of one weight."""
    return 0.5 * (weight**CLIFF_STEPS - 1) ** 2


def sweeps() -> dict[str, Sweep]:
    """Clipping x threshold x rate on the adding problem; the cliff with and without."""
    none, norm, value = ({"clipping": (name,)} for name in CLIPPINGS)
    rates = {"learning_rate": geomspace(1e-3, 10**0.5, 8), "recurrent_scale": (1.3,)}
    adding = grid(config=norm, hyper={**rates, "clip_norm": NORMS}, seeds=FRESH_SEEDS)
    adding |= grid(config=none, hyper=rates, seeds=FRESH_SEEDS)
    adding |= grid(config=value, hyper={**rates, "clip_value": VALUES}, seeds=FRESH_SEEDS)
    edge = grid(config=norm, hyper={"learning_rate": STEEP_RATES, "clip_norm": (1.0,)}, seeds=FRESH_SEEDS)
    edge |= grid(config=none, hyper={"learning_rate": STEEP_RATES}, seeds=FRESH_SEEDS)
    return {
        "adding": Sweep(adding, network, num_steps=600, num_evals=6),
        "cliff": Sweep(edge, one_weight, num_steps=600, num_evals=60),
    }


@measure(
    "log10 of the highest learning rate that ends below twice a constant guess's training loss (the lowest rate of all "
    "where none does)"
)
def _highest_rate(runs: Table) -> np.ndarray:
    rates, is_good = runs.frame["learning_rate"], runs.frame["train/loss"] < 2 * GUESS
    return np.log10(rates.where(is_good, rates.min()).groupby(runs.frame["seed"]).max()).to_numpy()


@partial(share, "diverge (end with a training loss that is non-finite or not below the first one), over all rates")
def _diverged(runs: Table) -> np.ndarray:
    over_time = runs.curves("train/loss")
    return ~(over_time[:, -1] < over_time[:, 0])


def loss_by_rate(results: Results) -> Figure:
    """How the runs end over rate and threshold."""
    norms = {f"norm {norm:g}": {"clipping": "norm", "clip_norm": norm} for norm in NORMS[::-1]}
    hue = {"no clipping": {"clipping": "none"}} | norms | {"value 0.01": {"clipping": "value", "clip_value": 0.01}}
    adding = partial(lines, results, "adding", x="learning_rate", hue=hue, xscale="log", xlabel="learning rate of SGD")
    guess = {"a constant guess, 1/6": GUESS}
    ends: Any = {"title": "Adding problem, 50 steps", "ylabel": "final training loss, geometric mean"}
    shares: Any = {"title": "Runs that end worse than they began", "ylabel": "share of diverged runs"}
    return side_by_side(
        adding("train/loss", log=True, failed=1e5, clip=(0, 1e5), marks=guess, ylim=(0.05, 2e5), **ends),
        adding(_diverged, ylim=(-0.03, 1.03), **shares),
        lost="10^5",
    )


def cliff(results: Results) -> Figure:
    """The walk of one weight towards the cliff."""
    runs = results["cliff"].select(learning_rate=max(STEEP_RATES))
    figure, (left, right) = style.subplots(1, 2, width=5.6, height=4.2)
    weights = np.linspace(0.9, 1.06, 400)
    left.plot(weights, cliff_loss(weights) + 1e-3, color="#666666")
    left.set(yscale="log", xlabel="weight w", ylabel="loss + 0.001", title=f"The cliff: (w^{CLIFF_STEPS} - 1)^2 / 2")
    for clipping, color, label in (("none", "C1", "no clipping"), ("norm", "C2", "clipped to norm 1")):
        walks = runs.curves("cliff/weight")[(runs.frame["clipping"] == clipping).to_numpy()]
        seen = np.where(np.abs(walks - 1) < 0.5, walks, np.nan)
        right.plot([], [], color=color, label=label)
        right.plot(runs.steps("cliff/weight"), seen.T, color=color, linewidth=1)
        gone = walks[np.isnan(seen).any(axis=1), 0]
        right.plot(np.zeros_like(gone), gone, "x", color=color, markersize=8)
    style.theory_line(right, [0, 160], [1, 1], "the minimum")
    right.set(xlabel="step", ylabel="weight w", xlim=(-4, 160), ylim=(0.97, 1.06), title="Steps at rate 0.001")
    right.legend()
    style.note(figure, "a path a seed; a cross: gone from the picture after the first step, or not finite")
    return figure


def claims(results: Results) -> list[Claim]:
    """What the lesson and the paper say of clipping."""
    lesson = text("004", "The Vanishing and Exploding Gradient Problems")
    paper = "Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013, " + ADDRESS
    own = at_best("test/loss", over=("clip_norm", "clip_value", "learning_rate"), by="validation/loss", failed=np.inf)
    diverged, highest, best = (partial(each, results, "adding") for each in (_diverged, _highest_rate, own))
    lands = share("end with a loss below 1/2", lambda runs: runs.frame["train/loss"] < 0.5)
    lands_at = partial(lands, results, "cliff", learning_rate=STEEP_RATES)
    none, norm, norms = {"clipping": "none"}, {"clipping": "norm"}, {"clipping": "norm", "clip_norm": NORMS}
    mended, raised = diverged(**none) - diverged(**norms), highest(**norms) - highest(**none)
    clipped = best(clipping=("norm", "value")).called("with clipping") / best(**none)
    directed = best(**norm) / best(clipping="value")
    stays = lands_at(**norm) - lands_at(**none)
    return [
        judge("Exploding gradients make training unstable, and clipping mends it.", lesson, mended, least=0.25),
        judge("Clipping allows learning rates ten times as high.", f"{paper}; the number is ours", raised, least=1),
        judge("With clipping the adding problem is solved better.", lesson, 1 - clipped, least=0.1),
        judge(
            "Clipping the norm, which keeps the direction, is better than clipping every number.",
            f"{paper}, section 3.2",
            1 - directed,
            least=0.02,
        ),
        judge(
            "At a cliff one step of gradient descent flies away, a clipped one does not.",
            f"{paper}, figure 6",
            stays,
            least=0.5,
        ),
    ]


EXPERIMENT = Experiment("gradients.clipping", 1, __doc__, sweeps, (loss_by_rate, cliff), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
