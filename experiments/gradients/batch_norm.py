"""Which of batch normalization's four benefits are there, and what does it cost?

The lesson names four: faster training, higher learning rates, less sensitivity to initialization, and regularization
(text 000, "4. Batch Normalization"), and places it between the linear layer and the activation (text 004). Each is
measured here on its own, on MNIST-1D, each network at its own best rate by validation.

Theory: the weights' scale has no effect before a normalization, so a poor scale costs nothing. But in deep plain
networks it makes gradients grow, by 1.21 a ReLU layer, 10^4 over 50 layers (Yang et al., "A Mean Field Theory of Batch
Normalization", 2019, https://arxiv.org/abs/1902.08129). Published: the same accuracy in 14 times fewer steps (Ioffe and
Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167, abstract).

    python -m experiments.gradients.batch_norm
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.claims import Claim, each, judge
from dlexp.data import mnist1d
from dlexp.learners.propagation import propagation
from dlexp.results import Results, Table
from dlexp.sweep import geomspace, grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Figures, Learner, Sweep

CHANCE = 0.1
PLACEMENTS = {"none": "without", "before": "before the activation", "after": "after the activation"}
DEPTHS, BATCH_SIZES = (2, 10), (8, 32, 128)
INIT_SCALES = (0.1, 0.3, 3.0, 10.0)
COARSE_RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # where all scales are compared
USABLE = 0.05  # a rate is usable within five points of the best one's validation accuracy


def network(config: Config, num_steps: int) -> Learner:
    """ReLU layers of width 64 on MNIST-1D, trained by SGD."""
    placement = config["placement"]
    model = models.mlp(
        width=64,
        num_layers=config["num_layers"],
        num_outputs=10,
        normalization="none" if placement == "none" else "batch",
        placement="after" if placement == "after" else "before",
    )
    batch_size = config.get("batch_size", 64)
    return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), mnist1d.load(), batch_size=batch_size)


def untrained(config: Config, num_steps: int) -> Learner:
    """50 layers of width 256 with batch normalization at initialization."""
    inputs = mnist1d.load().train.inputs[:256]
    return propagation(inputs, width=256, num_layers=50, activation=config["activation"], normalization="batch")


def sweeps(scale: str) -> dict[str, Sweep]:
    """Placement x depth x rate, initial scales, batch sizes, and gradients at initialization."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    if scale == "smoke":
        plain = {"learning_rate": (0.01, 0.1), "init_scale": (1.0,)}
        rates = grid(config={"placement": ("none", "before"), "num_layers": (2,)}, hyper=plain, seeds=seeds)
        profile = grid(config={"activation": ("relu",)}, hyper={"init_scale": (1.0,)}, seeds=seeds)
        return {
            "rates": Sweep(rates, network, num_steps=40, num_evals=4),
            "initialization": Sweep(profile, untrained, num_steps=0),
        }
    wide = {"learning_rate": geomspace(1e-3, 10.0, 9 if scale == "cpu" else 33), "init_scale": (1.0,)}
    rates = grid(config={"placement": PLACEMENTS, "num_layers": DEPTHS}, hyper=wide, seeds=seeds)
    scales = {"learning_rate": COARSE_RATES, "init_scale": INIT_SCALES}
    few = {"learning_rate": geomspace(1e-2, 10**0.5, 4)}
    rates |= grid(config={"placement": ("none", "before"), "num_layers": (10,)}, hyper=scales, seeds=seeds)
    batches = {"placement": ("none", "before"), "num_layers": (2,), "batch_size": BATCH_SIZES}
    profile = grid(config={"activation": ("relu", "tanh")}, hyper={"init_scale": (2**0.5,)}, seeds=seeds)
    return {
        "rates": Sweep(rates, network, num_steps=600, num_evals=20),
        "batches": Sweep(grid(config=batches, hyper=few, seeds=seeds), network, num_steps=2000, num_evals=4),
        "initialization": Sweep(profile, untrained, num_steps=0),
    }


def figures(results: Results) -> Figures:
    """Accuracy by rate, sensitivity to the initial scale, and gradients by layer."""
    drawn: Figures = {"accuracy_by_rate": lambda: _accuracy_by_rate(results["rates"])}
    return {**drawn, "scales_and_gradients": lambda: _scales_and_gradients(results)}


def claims(results: Results) -> list[Claim]:
    """The lesson's four benefits, its placement, and what theory says of deep networks."""
    lesson, rates = 'text 000, "Deep Learning Basics", 4. Batch Normalization', results["rates"]
    return [
        judge(
            "Batch normalization makes training faster.",
            source=lesson,
            rule="log2 of the steps to 90% of the plain network's final training accuracy, without over with, each "
            "at its own best rate by validation, paired by seed; at least log2(1.5) = 0.585",
            effects=each("{} layers", DEPTHS, lambda n: _speed_up(rates, n)),
            smallest=0.585,
        ),
        judge(
            "It makes higher learning rates possible.",
            source=lesson,
            rule="log10 of the highest rate within five points of the own best validation accuracy, with over "
            "without, paired by seed; at least log10(3) = 0.477",
            effects=each(
                "{} layers", DEPTHS, lambda n: _highest_rate(rates, "before", n) - _highest_rate(rates, "none", n)
            ),
            smallest=0.477,
        ),
        judge(
            "It makes training less sensitive to initialization.",
            source=lesson,
            rule="test accuracy at the best minus at the worst of five scales of the weights from 0.1 to 10 times "
            "He's, each at its own best of five rates, all chosen on validation, without minus with, paired by seed; "
            "at least 0.1",
            effects={"10 layers": lambda: _spread(rates, "none") - _spread(rates, "before")},
            smallest=0.1,
        ),
        judge(
            "It acts as a regularizer.",
            source=lesson,
            rule="training minus test accuracy after 2000 steps, without minus with, each at its own best rate by "
            "validation, paired by seed; at least two points (0.02)",
            effects=each(
                "batches of {}", BATCH_SIZES, lambda size: _gap(results, "none", size) - _gap(results, "before", size)
            ),
            smallest=0.02,
        ),
        judge(
            "Its place is before the activation rather than after it.",
            source='text 004, "ML Deep Learning Introduction", Batch Normalization',
            rule="test accuracy before minus after, each at its own best rate by validation, paired by seed; at "
            "least one point (0.01)",
            effects=each("{} layers", DEPTHS, lambda n: _accuracy(rates, "before", n) - _accuracy(rates, "after", n)),
            smallest=0.01,
        ),
        judge(
            "It keeps the gradients of deep plain networks from exploding.",
            source='text 003, "Deep Learning Overview", Training Deep Networks',
            rule="1 minus the decades by which the gradient grows over 49 layers at initialization; more than 0",
            effects=each("{}", ("relu", "tanh"), lambda activation: 1 - _decades(results, activation)),
        ),
    ]


def _runs(table: Table, placement: str, num_layers: int, init_scale: float = 1.0) -> Table:
    return table.select(placement=placement, num_layers=num_layers, init_scale=init_scale)


def _accuracy(table: Table, placement: str, num_layers: int, init_scale: float = 1.0) -> np.ndarray:
    runs = _runs(table, placement, num_layers, init_scale)
    return analysis.at_best(runs, "learning_rate", "test/accuracy", failed=CHANCE)


def _speed_up(table: Table, num_layers: int) -> np.ndarray:
    def at_best(placement: str) -> Table:
        runs = _runs(table, placement, num_layers)
        return runs.select(**analysis.chosen(runs, "learning_rate"))

    plain, normalized = at_best("none"), at_best("before")
    target = 0.9 * plain.frame["train/accuracy"].mean()
    without = analysis.first_step(plain, "train/accuracy", target, never=table.num_steps)
    within = analysis.first_step(normalized, "train/accuracy", target, never=10 * table.num_steps)
    return np.log2(without / within)


def _highest_rate(table: Table, placement: str, num_layers: int) -> np.ndarray:
    """log10 of the highest usable rate, `[seed]`."""
    runs = _runs(table, placement, num_layers)
    accuracy = analysis.by_seed(runs, "validation/accuracy", "learning_rate", failed=0.0)
    return analysis.highest_good(accuracy, USABLE)


def _spread(table: Table, placement: str) -> np.ndarray:
    """Test accuracy `[seed]` at the best minus at the worst scale of the weights by validation, 10 layers."""
    runs = table.select(placement=placement, num_layers=10, learning_rate=COARSE_RATES)

    def at_best(scale: float, split: str) -> np.ndarray:
        return analysis.at_best(runs.select(init_scale=scale), "learning_rate", f"{split}/accuracy", failed=CHANCE)

    scales = sorted((1.0, *INIT_SCALES), key=lambda scale: at_best(scale, "validation").mean())
    return at_best(scales[-1], "test") - at_best(scales[0], "test")


def _gap(results: Results, placement: str, batch_size: int) -> np.ndarray:
    runs = results["batches"].select(placement=placement, batch_size=batch_size)
    train, test = (
        analysis.at_best(runs, "learning_rate", f"{split}/accuracy", failed=CHANCE) for split in ("train", "test")
    )
    return train - test


def _decades(results: Results, activation: str) -> np.ndarray:
    logs = results["initialization"].select(activation=activation).curves("layer/log_gradient")[:, 0]
    return logs[:, 0] / 2 / np.log(10)


def _accuracy_by_rate(table: Table) -> Figure:
    depths = [depth for depth in DEPTHS if depth in set(table.frame["num_layers"])]
    figure, panels = plots.subplots(1, len(depths), width=5.6, height=4.2)
    for axes, num_layers in zip(np.atleast_1d(panels), depths, strict=True):
        for color, (placement, title) in zip(plots.COLORS, PLACEMENTS.items(), strict=False):
            if placement in set(table.frame["placement"]):
                runs, over = _runs(table, placement, num_layers), "learning_rate"
                plots.points_band(axes, runs, "test/accuracy", over=over, label=title, color=color, failed=CHANCE)
        axes.set(xscale="log", xlabel="learning rate of SGD", ylabel="test accuracy", ylim=(0, 0.8))
        axes.set(title=f"{num_layers} layers on MNIST-1D, batch norm:")
    counted = plots.counts([table], failed_as="chance, one class of ten")
    plots.legend_below(figure, np.atleast_1d(panels)[0], counted)
    return figure


def _scales_and_gradients(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    table = results["rates"]
    scales = np.unique(table.frame["init_scale"])
    num_layers = int(table.frame["num_layers"].max())
    for color, placement in zip(plots.COLORS, ("none", "before"), strict=False):
        coarse = table.select(learning_rate=COARSE_RATES)
        values = np.array([_accuracy(coarse, placement, num_layers, scale) for scale in scales]).T
        label = "without" if placement == "none" else "with batch norm"
        plots.band(left, scales, values, label=label, color=color, marker="o")
    left.set(xscale="log", xlabel="scale of the weights, He = 1", ylabel="test accuracy", ylim=(0, 0.8))
    left.set(title=f"{num_layers} layers, each at its own best rate")
    left.legend()
    for color, activation in zip(plots.COLORS[2:], ("relu", "tanh"), strict=False):
        if activation in set(results["initialization"].frame["activation"]):
            runs = results["initialization"].select(activation=activation)
            values = np.exp(runs.curves("layer/log_gradient")[:, 0] / 2)
            layers = np.arange(1, values.shape[1] + 1)
            label = {"relu": "ReLU", "tanh": "tanh"}[activation]
            plots.band(right, layers, values, label=label, color=color, log=True)
            factor = mean_field.batch_norm_chi(activation) ** 0.5
            name = f"theory: {factor:.3f} a layer"
            plots.theory_line(right, layers, factor ** (len(layers) - layers), name)
    right.set(yscale="log", xlabel="layer", ylabel="gradient norm, last layer = 1")
    right.set(title="50 layers with batch norm, untrained")
    right.legend()
    plots.note(figure, plots.counts([table, results["initialization"]], failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="gradients.batch_norm",
    version=1,
    question="Which of batch normalization's four benefits are there, and what does it cost?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
