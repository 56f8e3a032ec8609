"""The vocabulary of experiments on results made by hand, where the answer is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dlexp.results import NotMeasuredError, Table
from dlexp.results.table import Part
from dlexp.study import (
    at_best,
    good_bands,
    inside_minus_outside,
    judge,
    last,
    lines,
    overlaid,
    side_by_side,
    statistics,
    stopped,
    with_metric,
)


def table_of(metrics, **axes):
    """Runs over the product of some axes and two seeds, each metric a function of the axes' values."""
    points = [dict(zip((*axes, "seed"), values, strict=True)) for values in product(*axes.values(), (0, 1))]
    rows = [{**point, "status": "ok", "run_id": str(place)} for place, point in enumerate(points)]
    values = {name: np.array([[float(of(**point))] for point in points]) for name, of in metrics.items()}
    return Table("main", (Part(pd.DataFrame(rows), values),), tuple(axes), num_steps=0, num_evals=1)


def test_inside_is_compared_with_outside_with_every_other_axis_at_its_own_best():
    scored = {"validation/accuracy": lambda p, rate, seed: -abs(p - 0.3) - abs(rate - p)}
    reported = {"test/accuracy": lambda p, rate, seed: p + 10 * rate + seed}
    table = table_of(scored | reported, p=[0.1, 0.3, 0.8], rate=[0.1, 0.3, 0.8])
    inside = inside_minus_outside("p", 0.3, 0.9, over="rate")
    (effect,) = inside(table).conditions.values()
    np.testing.assert_allclose(effect(), [0.2 + 2, 0.2 + 2])  # at 0.3 and 0.3 inside, at 0.1 and 0.1 outside
    assert "each at its own best rate" in inside.words
    with pytest.raises(NotMeasuredError, match="no p in 2 to 3"):
        inside_minus_outside("p", 2.0, 3.0, over="rate").of(table)


def test_two_effects_are_judged_as_conditions_of_one_claim():
    table = table_of({"a": lambda p, seed: p + 0.1 * seed, "b": lambda p, seed: 5 + 0.1 * seed}, p=[1, 2])
    first, second = last("a")(table, p={1: "one", 2: "two"}), last("b")(table, p={1: "three"})
    claim = judge("x", "s", first | second, least=1.9)
    assert claim.verdict == "mixed"
    assert all(label in claim.condition for label in ("one: ", "two: ", "three: "))
    assert claim.rule.startswith("a or b")
    with pytest.raises(ValueError, match="name them apart"):
        first | first


def test_a_measure_in_other_words_measures_the_same():
    table = table_of({"a": lambda p, seed: p + seed}, p=[1])
    measure = last("a").with_words("length in metres")
    assert judge("x", "s", measure(table), least=0).rule == "length in metres, by seed; at least 0"
    np.testing.assert_array_equal(measure.of(table), last("a").of(table))


def test_overlaid_panels_share_their_axes_and_count_the_runs_of_all():
    table = table_of({"a": lambda p, seed: p, "b": lambda p, seed: 10 * p}, p=[1, 2])
    both = (lines(table, None, {name: name}, x="p", title=name, ylim=(0, None)) for name in ("a", "b"))
    (panel,) = overlaid(*both)
    axes = Figure().subplots()
    panel.draw(axes)
    assert {"a", "b"} <= set(axes.get_legend_handles_labels()[1])
    assert axes.get_title() == "b"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 20
    assert len(panel.runs) == 2
    assert overlaid(lines(table, None, "c", x="step")) == []


def test_one_legend_serves_panels_whose_entries_one_of_them_has():
    table = table_of({"a": lambda p, seed: p, "b": lambda p, seed: 10 * p}, p=[1, 2])
    hue, mark = {"low": {"p": 1}, "high": {"p": 2}}, {"a mark": 1.0}
    first, second, other = (
        lines(table, None, name, x="p", hue=cases, marks=marks)
        for name, cases, marks in (("a", hue, mark), ("b", hue, {}), ("b", {"another": {"p": 1}}, {}))
    )
    shared = side_by_side(first, second)
    assert [entry.get_text() for entry in shared.legends[0].get_texts()] == ["low", "high", "a mark"]
    assert all(axes.get_legend() is None for axes in shared.axes)
    apart = side_by_side(first, other)
    assert not apart.legends
    assert all(axes.get_legend() is not None for axes in apart.axes)


def test_a_bar_spans_the_values_as_good_as_the_best_which_a_circle_marks():
    scores = {0.001: 0.5, 0.01: 0.89, 0.1: 0.9, 1.0: 0.2}
    table = table_of({"validation/accuracy": lambda rate, seed: scores[rate]}, rate=list(scores))
    (panel,) = good_bands({"first": table, "second": table}, 0.02, axis="rate", span={"told": (0.01, 1.0)})
    axes = Figure().subplots()
    panel.draw(axes)
    bar, circle = axes.lines[2:]
    np.testing.assert_allclose(bar.get_xdata(), [0.01, 0.1])
    assert circle.get_xdata()[0] == 0.1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_legend_handles_labels()[1] == ["told"]
    assert good_bands({}, 0.02) == []


def test_axes_chosen_on_are_listed_with_commas():
    assert at_best("test/loss", over=("p", "q", "rate")).words == "test loss at the best p, q and rate by validation"


def test_layers_have_whole_numbers():
    table = table_of({"a": lambda p, seed: p}, p=[1])
    (part,) = table.parts
    by_layer = Table("main", (Part(part.frame, {"size": np.ones((2, 1, 3))}),), ("p",), num_steps=0, num_evals=1)
    (panel,) = lines(by_layer, None, "size", x="layer")
    axes = Figure().subplots()
    panel.draw(axes)
    assert all(float(place).is_integer() for place in axes.get_xticks())


def test_a_metric_made_from_others_is_selected_and_measured_like_them():
    table = table_of({"a": lambda p, seed: p + seed, "b": lambda p, seed: 2}, p=[1, 2])
    more = with_metric(table, "ratio", lambda runs: runs.curves("a") / runs.curves("b"))
    np.testing.assert_array_equal(last("ratio").of(more.select(p=2)), [1.0, 1.5])
    assert "ratio" not in table.metrics


def test_early_stopping_keeps_the_best_before_its_patience_ends():
    frame = pd.DataFrame([{"seed": seed, "status": "ok", "run_id": str(seed)} for seed in (0, 1)])
    scores = np.array([[0.1, 0.3, 0.2, 0.3, 0.5], [0.5, 0.4, 0.6, 0.1, 0.2]])
    metrics = {"validation/accuracy": scores, "validation/loss": -scores, "test/accuracy": 10 * scores}
    table = Table("main", (Part(frame, metrics),), (), num_steps=4, num_evals=4)
    kept = {1: [1, 0], 2: [1, 2], 3: [4, 2], np.inf: [4, 2]}
    for patience, places in kept.items():
        for by in ("validation/accuracy", "validation/loss"):
            np.testing.assert_array_equal(statistics.stopped_at(table, by, patience), places)
        measured = stopped("test/accuracy", by="validation/accuracy", patience=patience).of(table)
        np.testing.assert_array_equal(measured, 10 * scores[[0, 1], places])


def test_a_legend_below_names_each_entry_of_all_panels_once():
    table = table_of({"a": lambda p, seed: p, "b": lambda p, seed: p}, p=[1, 2])
    panels = [lines(table, None, {name: name, "a": "a"}, x="p") for name in ("a", "b")]
    figure = side_by_side(*panels, legend="below")
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["a", "b"]
    assert all(axes.get_legend() is None for axes in figure.axes)
