"""Which networks of 10, 50, 200 and 1000 layers train at all?

The lesson begins with networks of 10, 50, or even 1000 layers (text 000, "Introduction: Beyond Shallow Networks") and
warns that those of 50 and more need careful tuning (text 003, "How deep should my network be?"). Here they are
trained for 200 steps (1000 layers for 100) over the scale sigma_w of their initial weights, and in the variants meant
to save them.

Theory: a random tanh network forgets its input over xi layers, xi = -1 / ln chi, and trains up to a depth of about
6 xi: 50 layers at sigma_b^2 = 0.05 from sigma_w^2 = 1.32 (1.17 if 9 xi will do, 1.51 if only 3 xi) to beyond the edge
of chaos at 1.76 (Schoenholz et al., "Deep Information Propagation", 2017, https://arxiv.org/abs/1611.01232). In
narrow networks what counts is depth over width (Hanin, 2018, https://arxiv.org/abs/1801.03744). Digits, momentum 0.9,
batches as large as the layers are wide; each setting at the best of three learning rates by validation, 200 layers and
the wider network at 0.001, the best rate for 50 layers here.

    python -m experiments.depth.trainability
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import bundled
from dlexp.learners.propagation import propagation
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.sweep.grids import Grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Figures, Learner, Sweep

BIAS_VARIANCE = 0.05
CHANCE = 0.1
SIZES, SCALED = (("variants", 50), ("thousand", 1000)), "scaled by 1 / sqrt(layers)"
WEIGHT_VARIANCES = (0.5, 0.8, 1.0, 1.2, 1.4, 1.6, 1.76, 2.0, 2.5, 4.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "tanh_orthogonal": {"activation": "tanh", "initializer": "orthogonal"},
    "relu_he": {"activation": "relu", "initializer": "he"},
    "sigmoid_lecun": {"activation": "sigmoid", "initializer": "lecun"},
    "relu_batch_norm": {"activation": "relu", "normalization": "batch"},
    "relu_residual": {"activation": "relu", "residual": True, "preactivation": True, "scaled_branches": True},
}
TITLES = {
    "tanh_orthogonal": "tanh, orthogonal weights",
    "relu_he": "ReLU, He weights",
    "sigmoid_lecun": "sigmoid, LeCun weights",
    "relu_batch_norm": "ReLU, batch norm",
    "relu_residual": "ReLU, skips",
}


def network(config: Config, num_steps: int) -> Learner:
    """A perceptron on digits: tanh with Gaussian weights, or one of the variants."""
    choices = VARIANTS.get(config.get("variant", ""), {"activation": "tanh", "initializer": "lecun"})
    model = models.mlp(width=config["width"], num_layers=config["num_layers"], num_outputs=10, **choices)
    return learners.supervised(
        model,
        losses.softmax_cross_entropy,
        optim.momentum(),
        bundled.load("digits"),
        batch_size=config["width"],
        num_train_evaluated=300,
    )


def untrained(config: Config, num_steps: int) -> Learner:
    """50 tanh layers of width 256 at initialization."""
    return propagation(bundled.load("digits").train.inputs[:128], width=256, num_layers=50, activation="tanh")


def sweeps(scale: str) -> dict[str, Sweep]:
    """Depth x sigma_w, the boundary in a wider network, the variants, and the theory's own quantities."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 48)}[scale]  # rules were tried on 0 to 15
    variances = np.array({"smoke": (0.5, 1.76), "cpu": WEIGHT_VARIANCES, "gpu": np.linspace(0.4, 4.0, 37)}[scale])
    sigmas = {"init_scale": tuple(np.sqrt(variances)), "bias_scale": (BIAS_VARIANCE**0.5,)}
    rates = {"learning_rate": (3e-4, 1e-3, 1e-2)}
    if scale == "smoke":
        shallow = grid(config={"width": (16,), "num_layers": (10,)}, hyper={**sigmas, **rates}, seeds=seeds)
        skips = {"branch_scale": (1.0,), **rates}
        saved = grid(config={"variant": ("relu_residual",), "width": (16,), "num_layers": (10,)}, hyper=skips, seeds=2)
        return {
            "depths": Sweep(shallow, network, num_steps=20),
            "variants": Sweep(saved, network, num_steps=20),
            "initialization": Sweep(grid(hyper=sigmas, seeds=seeds), untrained, num_steps=0),
        }
    depths = grid(config={"width": (32,), "num_layers": (10, 50)}, hyper={**sigmas, **rates}, seeds=seeds)
    slow = {**sigmas, "learning_rate": (1e-3,)}
    depths |= grid(config={"width": (32,), "num_layers": (200,)}, hyper=slow, seeds=seeds)
    boundary = grid(config={"width": (64,), "num_layers": (50,)}, hyper=slow, seeds=seeds)
    return {
        "depths": Sweep(depths, network, num_steps=200, num_evals=4),
        "boundary": Sweep(boundary, network, num_steps=200, num_evals=4),
        "variants": Sweep(_variants(50, seeds), network, num_steps=200, num_evals=10),
        "thousand": Sweep(_variants(1000, seeds), network, num_steps=100, num_evals=5),
        "initialization": Sweep(grid(hyper=sigmas, seeds=seeds), untrained, num_steps=0),
    }


def _variants(num_layers: int, seeds: Sequence[int]) -> Grid:
    rates, names = (1e-4, 1e-3, 1e-2), [name for name in VARIANTS if name != "relu_residual"]
    if num_layers == 1000:
        names = ["tanh_orthogonal", "relu_he"]
    config = {"width": (32,), "num_layers": (num_layers,)}
    plain = grid(config={"variant": names, **config}, hyper={"learning_rate": rates}, seeds=seeds)
    scales = (1.0, num_layers**-0.5) if num_layers < 1000 else (num_layers**-0.5,)
    skips = {"branch_scale": scales, "learning_rate": rates}
    return plain | grid(config={"variant": ("relu_residual",), **config}, hyper=skips, seeds=seeds)


def figures(results: Results) -> Figures:
    """Training accuracy over sigma_w^2 with the theory's boundary; training curves of the variants."""
    return {"accuracy_by_scale": lambda: _accuracy_by_scale(results), "variants": lambda: _variant_curves(results)}


def claims(results: Results) -> list[Claim]:
    """What the lesson says of deep networks, and what the theory says of where they train."""
    low, high = _predicted()
    lesson, overview = 'text 000, "Deep Learning Basics", Introduction', 'text 003, "Deep Learning Overview", How deep'
    return [
        judge(
            "Deep networks need careful tuning: 50 tanh layers train at fewer scales of the weights than 10.",
            source=overview,
            rule="share of the grid's sigma_w with a training accuracy above half the best of its depth, 10 layers "
            "minus 50 layers; at least a quarter",
            effects={"width 32": lambda: _share(results["depths"], 10) - _share(results["depths"], 50)},
            smallest=0.25,
        ),
        judge(
            "50 tanh layers begin to train where the depth scale of the theory is between 50/9 and 50/3 layers.",
            source="Schoenholz et al., Deep Information Propagation, 2017, https://arxiv.org/abs/1611.01232",
            rule=f"distance of the sigma_w^2 where training accuracy passes the middle between chance and the best "
            f"from the nearer end of the predicted {low:.2f} to {high:.2f}, positive inside",
            effects={"width 64": lambda: _inside(_boundary(results["boundary"]), low, high)},
        ),
        judge(
            "Skip connections let a network of 50 layers train, and one of 1000.",
            source=f"{lesson}; text 003, Training Deep Networks",
            rule="final training accuracy of ReLU layers with skips, their branches as they are or scaled, minus "
            "without, each at its own best rate by validation; at least 0.3",
            effects=each(
                "{2} layers, {0}",
                (("plain skips", "variants", 50, 1.0), *((SCALED, name, n, n**-0.5) for name, n in SIZES)),
                lambda _, name, layers, scale: (
                    _accuracy(results[name], "relu_residual", scale) - _accuracy(results[name], "relu_he")
                ),
            ),
            smallest=0.3,
        ),
        judge(
            "Batch normalization alone lets a plain network of 50 layers train.",
            source="text 003, Training Deep Networks: batch normalization among the solutions",
            rule="final training accuracy of ReLU layers with batch normalization minus without, each at its own best "
            "rate by validation; at least 0.3",
            effects={
                "50 layers": lambda: (
                    _accuracy(results["variants"], "relu_batch_norm") - _accuracy(results["variants"], "relu_he")
                )
            },
            smallest=0.3,
        ),
        judge(
            "The gradient of a wide random tanh network changes by the predicted factor a layer.",
            source="Schoenholz et al., Deep Information Propagation, 2017, https://arxiv.org/abs/1611.01232",
            rule="0.02 minus the relative distance of the squared gradient's factor a layer, layers 15 to 35 of 50, "
            "from chi; more than 0 at every sigma_w^2",
            effects={
                f"sigma_w^2 = {scale**2:.3g}": 0.02 - abs(factors / _chi(scale) - 1)
                for scale, factors in _factors(results["initialization"]).items()
            },
        ),
    ]


def _predicted() -> tuple[float, float]:
    """sigma_w^2 at which the depth scale is a ninth and a third of 50 layers."""
    low, high = (mean_field.shallowest_weight_variance("tanh", 50 / many, BIAS_VARIANCE) for many in (9, 3))
    return low, high


def _by_scale(table: Table, num_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """sigma_w^2 `[scale]` and training accuracy `[seed, scale]`, each at its best rate."""
    runs = table.select(num_layers=num_layers)
    scales = np.unique(runs.frame["init_scale"])
    values = [
        analysis.at_best(runs.select(init_scale=scale), "learning_rate", "train/accuracy", failed=CHANCE)
        for scale in scales
    ]
    return scales**2, np.stack(values, axis=1)


def _share(table: Table, num_layers: int) -> np.ndarray:
    _, accuracy = _by_scale(table, num_layers)
    return (accuracy > accuracy.mean(axis=0).max() / 2).mean(axis=1)


def _boundary(table: Table) -> np.ndarray:
    """Smallest sigma_w^2 `[seed]` where training accuracy passes the middle between chance and the best mean.

    The grid's largest where it never does.
    """
    variances, accuracy = _by_scale(table, 50)
    middle = (CHANCE + accuracy.mean(axis=0).max()) / 2
    passed = [np.flatnonzero(row > middle) for row in accuracy]
    return np.array([_crossing(variances, row, middle, at) for row, at in zip(accuracy, passed, strict=True)])


def _crossing(variances: np.ndarray, accuracy: np.ndarray, middle: float, passed: np.ndarray) -> float:
    if not len(passed) or passed[0] == 0:
        return float(variances[0] if len(passed) else variances[-1])
    ends = slice(passed[0] - 1, passed[0] + 1)
    return float(np.interp(middle, accuracy[ends], variances[ends]))


def _inside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.minimum(values - low, high - values)


def _accuracy(table: Table, variant: str, branch_scale: float | None = None) -> np.ndarray:
    runs = table.select(variant=variant, **({} if branch_scale is None else {"branch_scale": branch_scale}))
    return analysis.at_best(runs, "learning_rate", "train/accuracy", failed=CHANCE)


def _factors(table: Table) -> dict[float, np.ndarray]:
    """sigma_w -> the squared gradient's factor a layer, `[seed]`, away from both ends."""
    scales = np.unique(table.frame["init_scale"])
    logs = {scale: table.select(init_scale=scale).curves("layer/log_gradient")[:, 0] for scale in scales}
    return {scale: np.exp((log[:, 15] - log[:, 35]) / 20) for scale, log in logs.items()}


def _chi(scale: float) -> float:
    return mean_field.chi_at_fixed_point("tanh", float(scale) ** 2, BIAS_VARIANCE)


def _accuracy_by_scale(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=6.0, height=4.4)
    shown = [("depths", 32, 10), ("depths", 32, 50), ("boundary", 64, 50), ("depths", 32, 200)]
    for (name, width, layers), color in zip(shown, plots.COLORS, strict=False):
        if name in results and layers in set(results[name].frame["num_layers"]):
            label = f"{layers} layers, width {width}"
            plots.band(left, *_by_scale(results[name], layers), label=label, color=color, marker="o")
    left.axvspan(
        *_predicted(), color=plots.LESSON, alpha=0.35, linewidth=0, zorder=0, label="theory: 50 layers begin to train"
    )
    edge = mean_field.critical_weight_variance("tanh", BIAS_VARIANCE)
    for axes in (left, right):
        axes.axvline(edge, color="black", linestyle="--", linewidth=1.5, label="theory: edge of chaos")
        axes.set(xlabel=r"$\sigma_w^2$, variance of the weights x width")
    left.set(ylabel="training accuracy after 200 steps", ylim=(0, 1.02), title="Plain tanh networks on digits")
    _draw_factors(right, results["initialization"])
    plots.legend_below(figure, left, plots.counts(results.values(), failed_as="chance, one class of ten"))
    return figure


def _draw_factors(axes: Axes, table: Table) -> None:
    factors = _factors(table)
    variances = np.array(list(factors)) ** 2
    dense = np.linspace(variances.min(), variances.max(), 50)
    plots.theory_line(axes, dense, [_chi(value**0.5) for value in dense], "theory: chi")
    plots.interval_points(axes, variances, np.array(list(factors.values())).T, label="width 256", color=plots.COLORS[0])
    axes.axhline(1.0, color="#666666", linewidth=1)
    axes.set(ylabel="squared gradient, factor a layer", title="The same at initialization, 50 layers")
    axes.text(variances.max(), 1.01, "explodes above", ha="right", va="bottom", color="#666666")
    axes.text(variances.max(), 0.99, "vanishes below", ha="right", va="top", color="#666666")
    axes.legend()


def _variant_curves(results: Results) -> Figure:
    there = [(name, layers) for name, layers in SIZES if name in results]
    figure, panels = plots.subplots(1, len(there), width=6.0, height=4.4)
    for axes, (name, layers) in zip(np.atleast_1d(panels), there, strict=True):
        for color, variant in zip(plots.COLORS, VARIANTS, strict=False):
            if variant in set(results[name].frame["variant"]):
                _draw_variant(axes, results[name], variant, color)
        axes.set(xlabel="step", ylabel="training accuracy", ylim=(0, 1.02), title=f"{layers} layers of width 32")
    tables = [results[name] for name, _ in there]
    plots.legend_below(figure, np.atleast_1d(panels)[0], plots.counts(tables, failed_as="chance, one class of ten"))
    return figure


def _draw_variant(axes: Axes, table: Table, variant: str, color: str) -> None:
    runs, label = table.select(variant=variant), TITLES[variant]
    scales = np.unique(runs.frame["branch_scale"]) if variant == "relu_residual" else np.array([])
    if len(scales) == 2:
        plain, style = runs.select(branch_scale=scales[1]), {"label": f"{label}, unscaled", "color": plots.COLORS[5]}
        plots.curve_at_best(axes, plain, "train/accuracy", **style, failed=CHANCE)
    if len(scales):
        runs, label = runs.select(branch_scale=scales[0]), f"{label} scaled by 1 / sqrt(layers)"
    plots.curve_at_best(axes, runs, "train/accuracy", label=label, color=color, failed=CHANCE)


EXPERIMENT = Experiment(
    name="depth.trainability",
    version=1,
    question="Which networks of 10, 50, 200 and 1000 layers train at all?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
