"""The vocabulary of experiments on tables made by hand: effects, measures, lines and panels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dlexp.results import NotMeasuredError, Table
from dlexp.results.table import Part
from dlexp.study import (
    Among,
    Effect,
    at_best,
    by,
    heat,
    intervals,
    judge,
    last,
    lines,
    measure,
    side_by_side,
    spread_over,
    style,
    text,
    train_minus_test,
)
from dlexp.sweep import geomspace, grid, scales
from dlexp.types import Experiment, Sweep

KINDS, RATES, SEEDS = ("plain", "deep"), (0.01, 0.1, 1.0), (3, 1, 2)


def table(*, steps=20, lost=()):
    """Test accuracy 0.1 a decade of rate, 0.3 more for deep, 0.01 a seed; validation agrees; training is 0.2 above."""
    rows = [(kind, rate, seed) for kind in KINDS for rate in RATES for seed in SEEDS]
    frame = pd.DataFrame(rows, columns=["kind", "learning_rate", "seed"])
    frame["run_id"] = [f"{kind}{rate}{seed}" for kind, rate, seed in rows]
    frame["status"] = ["nonfinite" if row in lost else "ok" for row in rows]
    final = 0.5 + 0.1 * np.log10(frame["learning_rate"]) + 0.3 * (frame["kind"] == "deep") + 0.01 * frame["seed"]
    curve = np.stack([0.5 * final, final], axis=1)
    curve[frame["status"] != "ok", -1] = np.nan
    layers = np.repeat(curve[:, :, None], 4, axis=2)
    metrics = {f"{split}/accuracy": curve for split in ("test", "validation")}
    metrics |= {"train/accuracy": curve + 0.2, "layer/size": layers}
    return Table("main", (Part(frame, metrics),), ("kind", "learning_rate"), num_steps=steps, num_evals=1)


def values(effect, *labels):
    return np.asarray(effect.conditions[labels]())


def test_a_measure_is_taken_seed_by_seed_at_its_own_best_rate():
    accuracy = at_best("test/accuracy")(table(), kind="deep")
    np.testing.assert_allclose(values(accuracy), [0.81, 0.82, 0.83])  # seeds 1, 2, 3 at rate 1
    assert accuracy.words == "test accuracy at the best learning rate by validation (kind deep)"


def test_several_values_of_an_axis_are_several_conditions_and_among_is_one():
    several = at_best("test/accuracy")(table(), kind={"plain": "Plain", "deep": "Deep"})
    assert list(several.conditions) == [("Plain",), ("Deep",)]
    low = at_best("test/accuracy")(table(), kind="plain", learning_rate=Among((0.01, 0.1)))
    np.testing.assert_allclose(values(low), [0.41, 0.42, 0.43])


def test_effects_are_subtracted_and_say_what_differs():
    accuracy = at_best("test/accuracy")
    effect = accuracy(table(), kind="deep") - accuracy(table(), kind="plain")
    np.testing.assert_allclose(values(effect), 0.3)
    assert effect.words == "test accuracy at the best learning rate by validation, kind deep minus kind plain"
    np.testing.assert_allclose(values(1 - effect / 0.6), 0.5)
    np.testing.assert_allclose(values(effect.off(0.6)), 0.5)
    np.testing.assert_allclose(values(abs(effect - 1)), 0.7)


def test_conditions_are_paired_by_their_labels_and_one_alone_goes_with_all():
    accuracy = last("test/accuracy")
    deep, plain = (accuracy(table(), kind=kind, learning_rate=RATES) for kind in KINDS[::-1])
    assert list((deep - plain).conditions) == [(f"learning rate {rate:g}",) for rate in RATES]
    alone = accuracy(table(), kind="plain", learning_rate=0.01)
    np.testing.assert_allclose(values(deep - alone, "learning rate 1"), 0.5)
    other = accuracy(table(), kind="plain", learning_rate=(0.01, 0.1))
    with pytest.raises(ValueError, match="cannot be paired"):
        deep - other


def test_both_seeds_must_be_there_to_compare():
    effect = Effect("a", {"": lambda: [1.0, 2.0]}) - Effect("b", {"": lambda: [1.0]})
    with pytest.raises(ValueError, match="a has 2 seeds, b has 1"):
        effect.conditions[()]()


def test_a_lost_run_counts_as_a_guess_and_never_wins():
    lost = [("deep", 1.0, 1)]
    accuracy = at_best("test/accuracy")(table(lost=lost), kind="deep", learning_rate=1.0)
    np.testing.assert_allclose(values(accuracy), [0.1, 0.82, 0.83])
    chosen = at_best("test/accuracy")(table(lost=lost), kind="deep")
    np.testing.assert_allclose(values(chosen), [0.71, 0.72, 0.73])  # at rate 0.1


def test_gaps_and_spreads_are_measured_at_the_best():
    np.testing.assert_allclose(values(train_minus_test()(table(), kind="deep")), 0.2)
    np.testing.assert_allclose(values(spread_over("kind")(table())), 0.3)
    np.testing.assert_allclose(values(spread_over("learning_rate")(table(), kind="deep")), 0.2)


def test_runs_that_differ_in_more_than_the_seed_are_refused():
    with pytest.raises(ValueError, match="differ in kind, learning_rate; fix a value of each"):
        values(last("test/accuracy")(table()))


def test_what_the_grid_lacks_is_not_measured_whether_value_axis_metric_or_sweep():
    results = {"main": table()}
    accuracy = last("test/accuracy")
    for effect in (
        accuracy(results, "main", kind="wide", learning_rate=0.1),
        accuracy(results, "main", width=3, kind="deep", learning_rate=0.1),
        last("test/loss")(results, "main", kind="deep", learning_rate=0.1),
    ):
        claim = judge("x", "s", effect, least=0.0)
        assert (claim.verdict, claim.effect, claim.num_seeds) == ("undecided", None, 0)
        assert claim.condition.startswith("not measured in this grid: ")


def test_an_own_measure_carries_its_words():
    @measure("half of the accuracy")
    def half(runs):
        return last("test/accuracy").of(runs) / 2

    effect = half(table(), kind="plain", learning_rate=1.0)
    np.testing.assert_allclose(values(effect), [0.255, 0.26, 0.265])
    assert (
        judge("x", "s", effect, least=0.1).rule
        == "half of the accuracy (kind plain, learning rate 1), by seed; at least 0.1"
    )


def drawn(panels):
    with style.style():
        return side_by_side(panels)


def test_lines_show_the_mean_over_seeds_with_a_line_a_hue():
    figure = drawn(lines(table(), None, "test/accuracy", x="learning_rate", hue=by("kind", KINDS), xscale="log"))
    (axes,) = figure.axes
    shown = {line.get_label(): line for line in axes.lines if line.get_label() in KINDS}
    np.testing.assert_allclose(shown["deep"].get_ydata(), [0.62, 0.72, 0.82])
    np.testing.assert_allclose(shown["plain"].get_xdata(), RATES)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "test accuracy")


def test_lines_over_steps_are_drawn_at_the_best_rate_and_name_it():
    hue = by("kind", {"deep": "Deep"})
    (axes,) = drawn(lines(table(), None, at_best("test/accuracy"), x="step", hue=hue)).axes
    (line,) = [line for line in axes.lines if line.get_label().startswith("Deep")]
    assert line.get_label() == "Deep, rate 1"
    np.testing.assert_allclose(line.get_xydata(), [[0, 0.41], [20, 0.82]])


def test_a_curve_counts_lost_runs_as_its_measure_does():
    lost = table(lost=[("deep", 0.1, seed) for seed in SEEDS])
    options = {"x": "step", "fixed": {"kind": "deep", "learning_rate": 0.1}}
    for failed, shown in ((None, 0.1), (0.25, 0.25), (np.nan, np.nan)):
        (axes,) = drawn(lines(lost, None, last("test/accuracy", failed=failed), **options)).axes
        assert axes.lines[0].get_ydata()[-1] == pytest.approx(shown, nan_ok=True)


def test_lines_over_layers_show_the_last_evaluation():
    fixed = {"kind": "deep", "learning_rate": 1.0}
    (axes,) = drawn(lines(table(), None, "layer/size", x="layer", fixed=fixed, transform=lambda v: 2 * v)).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[n, 1.64] for n in (1, 2, 3, 4)])


def test_a_hue_or_panel_that_is_missing_is_left_out_and_the_others_keep_their_colour():
    hue, panels = by("kind", ("wide", "deep")), by("learning_rate", (0.1, 7.0), "rate {}")
    (axes,) = drawn(lines(table(), None, last("test/accuracy"), x="kind", hue=hue, panels=panels)).axes
    assert axes.get_title(loc="left") == "rate 0.1"
    assert axes.lines[0].get_color() == style.COLORS[1]
    with pytest.raises(NotMeasuredError):
        drawn(lines(table(), None, "test/accuracy", x="learning_rate", fixed={"kind": "wide"}))
    with pytest.raises(NotMeasuredError):
        drawn(lines({"main": table()}, "other", "test/accuracy", x="learning_rate"))


def test_theory_and_marks_stand_in_the_same_axes():
    beside = {"theory": {"theory": lambda x: 2 * x}, "marks": {"chance": 0.1}, "at": {"the edge": 0.5}}
    fixed = {"kind": "deep"}
    (axes,) = drawn(lines(table(), None, "test/accuracy", x="learning_rate", fixed=fixed, **beside)).axes
    shown = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(shown["theory"].get_ydata(), 2 * np.array(RATES))
    assert shown["chance"].get_ydata()[0] == 0.1
    assert shown["the edge"].get_xdata()[0] == 0.5


def test_values_of_an_axis_of_names_are_its_ticks():
    (axes,) = drawn(lines(table(), None, last("test/accuracy"), x="kind", fixed={"learning_rate": 0.1})).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["deep", "plain"]


def test_a_heat_map_circles_the_best_by_validation():
    (axes, _) = drawn(heat(table(), None, "test/accuracy", x="learning_rate", y="kind")).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[2, 0]])  # rate 1, deep


def test_intervals_of_conditions_are_drawn_and_missing_ones_left_out():
    effect = last("test/accuracy")(table(), kind=("plain", "wide", "deep"), learning_rate=1.0)
    (axes,) = drawn(intervals(effect)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["kind plain", "kind deep"]


def test_a_figure_counts_its_runs_once():
    figure = drawn([*lines(table(), None, "test/accuracy", x="learning_rate", hue=by("kind", KINDS))] * 2)
    note = figure.legends[0].get_title().get_text()
    assert note.startswith("18 runs, 3 seeds a point")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.05, 0.0501], ["0.05", "0.0501"]),
        ([100, 128, 129], ["100", "128", "129"]),
        ([0.001, 0.01], ["0.001", "0.01"]),
        (["adam", "sgd"], ["adam", "sgd"]),
        ([True, False], ["True", "False"]),
    ],
)
def test_tick_labels_tell_values_apart(values, labels):
    assert style.tick_labels(values) == labels


def test_the_lessons_texts_are_known_by_number():
    assert text("004", "Dropout") == 'text 004, "ML Deep Learning Introduction", Dropout'
    with pytest.raises(ValueError, match="the lesson has the texts 000"):
        text("005", "Dropout")


def declared():
    rates = {"learning_rate": geomspace(1e-3, 10.0, 9), "weight_decay": (0.0, 0.1, 1.0)}
    wide = grid(config={"width": (8, 16, 32)}, hyper=rates, seeds=range(16, 24))
    return {
        "first": Sweep(wide, None, num_steps=600, num_evals=15),
        "second": Sweep(grid(config={"width": (4,)}, seeds=range(16, 24)), None, num_steps=0),
    }


def experiment(sweeps=declared):
    return Experiment("tests.scales", 1, "Does it scale?\n\nYes.", sweeps)


def test_the_smoke_scale_keeps_ends_two_seeds_and_three_groups():
    smoke = scales.sweeps(experiment(), "smoke")
    axes = smoke["first"].grid.axes
    assert axes == {"width": [8, 16], "learning_rate": [1e-3, 10.0], "weight_decay": [0.0, 1.0], "seed": [0, 1]}
    assert (smoke["first"].num_steps, smoke["first"].num_evals) == (20, 10)
    assert (smoke["second"].num_steps, smoke["second"].num_evals) == (0, 1)
    assert sum(len(list(sweep.grid.families())) for sweep in smoke.values()) == 3


def test_the_gpu_scale_has_eight_times_the_seeds_and_refines_long_geometric_axes_alone():
    axes = scales.sweeps(experiment(), "gpu")["first"].grid.axes
    assert axes["seed"] == list(range(16, 80))
    assert len(axes["learning_rate"]) == 25
    assert set(geomspace(1e-3, 10.0, 9)) <= set(axes["learning_rate"])
    assert axes["weight_decay"] == [0.0, 0.1, 1.0]


def test_an_experiment_may_say_its_scales_itself():
    own = experiment(lambda scale: {scale: declared()["first"]})
    assert list(scales.sweeps(own, "gpu")) == ["gpu"]
    assert scales.sweeps(experiment(), "cpu")["first"].num_steps == 600
    with pytest.raises(ValueError, match="scale must be one of smoke, cpu, gpu, got 'big'"):
        scales.sweeps(own, "big")


def test_the_question_is_the_first_line_of_the_docstring():
    assert experiment().question == "Does it scale?"
