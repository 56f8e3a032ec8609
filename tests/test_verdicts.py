"""Statistics and verdicts on results made by hand, where the answer is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dlexp.results import NotMeasuredError, Table, load
from dlexp.results.table import Part
from dlexp.study import Effect, claims, each, judge, measures, statistics
from dlexp.sweep import grid
from tests.test_results import save

RATES = grid(config={"optimizer": ("a", "b")}, hyper={"learning_rate": (0.01, 0.1, 1.0)}, seeds=4)


def judged(*conditions, **bound):
    values = each("c{}", range(len(conditions)), lambda index: conditions[index])
    return judge("x", "s", Effect("r", values), **(bound or {"least": 0.0}))


def test_every_verdict_can_flip():
    near_one = np.array([0.9, 1.0, 1.1, 1.0])
    assert judged(near_one).verdict == "supported"
    assert judged(near_one, least=2.0).verdict == "refuted"
    assert judged(near_one, least=1.0).verdict == "undecided"
    assert judged(near_one, -near_one).verdict == "mixed"
    assert judged(near_one, near_one).verdict == "supported"
    assert judged(near_one[:1]).verdict == "undecided"
    assert judged(near_one, most=2.0).verdict == "supported"
    assert judged(near_one, most=0.5).verdict == "refuted"
    assert judged(near_one - 1, within=0.5).verdict == "supported"
    assert judged(near_one - 1, within=0.05).verdict == "undecided"
    assert judged(near_one, within=0.5).verdict == judged(-near_one, within=0.5).verdict == "refuted"


def test_the_rule_says_the_bound_that_judged():
    values = np.array([0.9, 1.0, 1.1])
    assert judged(values, least=0.585).rule == "r, by seed; at least 0.585"
    assert judged(values, most=0.02).rule == "r, by seed; at most 0.02"
    assert judged(values, within=0.1).rule == "r, by seed; within 0.1 of 0"
    for bounds in ({}, {"least": 0.0, "most": 1.0}):
        with pytest.raises(ValueError, match="exactly one of least=, most= and within="):
            judge("x", "s", Effect("r", {"": lambda: values}), **bounds)
    with pytest.raises(ValueError, match="within must be above 0"):
        judged(values, within=0.0)


@pytest.mark.parametrize(("bound", "hardest"), [("least", 1.0), ("most", 3.0), ("within", 3.0)])
def test_the_hardest_condition_is_the_one_that_speaks_most_against_the_claim(bound, hardest):
    low, high = np.array([0.9, 1.0, 1.1]), np.array([2.9, 3.0, 3.1])
    assert judged(low, high, **{bound: 2.0}).effect == pytest.approx(hardest)


def test_a_claim_reports_its_hardest_condition_and_shows_all():
    claim = judged(np.array([5.0, 5.1, 4.9]), np.array([0.5, 0.6, 0.7]))
    assert claim.effect == pytest.approx(0.6)
    assert "c0: supported" in claim.condition
    assert "c1: supported" in claim.condition


def test_values_that_are_not_finite_cannot_be_judged():
    with pytest.raises(ValueError, match="count failed runs as a value"):
        judged(np.array([1.0, np.nan]))


def test_claims_read_back_from_json_that_others_can_read():
    all_claims = [judged(np.array([1.0, 2.0, 3.0])), judged(np.array([]))]
    text = claims.to_json(all_claims)
    assert claims.from_json(text) == all_claims
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(1.0, 2.0, size=(2000, 8))
    covered = [low <= 1.0 <= high for _, low, high in map(statistics.t_interval, samples)]
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_the_bootstrap_interval_is_repeatable_and_near_the_t_interval_for_normal_values():
    values = np.random.default_rng(1).normal(size=60)
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
    np.testing.assert_allclose(statistics.bootstrap_interval(values), statistics.t_interval(values), atol=0.06)
    assert statistics.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_the_interquartile_mean_cuts_a_quarter_at_each_end():
    assert statistics.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    assert np.isnan(statistics.interquartile_mean([0.9] * 6 + [np.nan] * 2))  # on every SciPy: some trimmed it away
    assert stats.trim_mean([1, 2, 3, 4], 0.25) == statistics.interquartile_mean([1, 2, 3, 4]) == 2.5


def loss(run):
    """b is best at 0.1; a at 1.0, were it not for the one run that fails there."""
    best = {"a": 1.0, "b": 0.1}[run.config["optimizer"]]
    if run.config["optimizer"] == "a" and run.hyper["learning_rate"] == 1.0 and run.seed == 0:
        return float("nan")
    return abs(np.log10(run.hyper["learning_rate"] / best)) + 0.01 * run.seed


def test_a_rate_where_a_run_failed_does_not_win_by_the_runs_that_did_not(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    best = statistics.best(main, "learning_rate", choose_by="test/loss", report="test/loss")
    assert dict(zip(best["optimizer"], best["learning_rate"], strict=True)) == {"a": 0.1, "b": 0.1}
    assert best["num_failed"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="no axis 'momentum'"):
        statistics.best(main, "momentum", choose_by="test/loss")
    with pytest.raises(ValueError, match="name a metric"):
        statistics.best(main, "learning_rate")


def test_points_count_failed_runs(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    means = statistics.points(main, "test/loss", failed=9.0).set_index(["optimizer", "learning_rate"])
    assert means.loc[("a", 1.0), "num_failed"] == 1
    assert means.loc[("a", 1.0), "mean"] == pytest.approx((9 + 0.01 + 0.02 + 0.03) / 4)
    assert means["num_seeds"].tolist() == [4] * 6


def test_divergence_is_judged_by_a_stated_rule(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    bad = statistics.diverged(main, constant_loss=1.5, metric="test/loss")
    expected = [run for run in main.frame.to_dict("records") if not run["test/loss"] < 1.5]
    assert bad.sum() == len(expected) == 5  # the non-finite run and four seeds two decades off


def test_a_good_band_has_no_gap_and_holds_the_best():
    accuracies = pd.Series({10.0: 0.3, 0.001: 0.9, 0.01: 0.5, 0.1: 0.89, 1.0: 0.901})
    band = statistics.good_band(accuracies, 0.02)
    assert (band.best, band.low, band.high) == (1.0, 0.1, 1.0)  # 0.001 is as good, but beyond a gap
    assert band.decades == pytest.approx(1.0)
    assert not band.at_edge
    wider = statistics.good_band(accuracies, 0.5)
    assert (wider.low, wider.high, wider.at_edge) == (0.001, 1.0, True)


def test_a_score_that_is_not_finite_is_never_the_best_and_never_good():
    band = statistics.good_band(pd.Series({0.01: 0.8, 0.1: 0.9, 1.0: np.nan}), 0.02)
    assert band == (0.1, 0.1, 0.1, 0.0, False)
    with pytest.raises(ValueError, match="no score is finite"):
        statistics.good_band(pd.Series({0.1: np.nan, 1.0: -np.inf}), 0.02)
    scores = pd.DataFrame([[0.8, 0.9, np.nan], [np.nan] * 3], columns=[0.01, 0.1, 1.0])
    np.testing.assert_array_equal(statistics.highest_good(scores, 0.02), [-1.0, -np.inf])


def test_the_direction_of_a_metric_is_known_by_its_name_or_asked_for():
    up = ("test/accuracy", "validation/r2", "test/auc", "test/f1")
    assert all(map(statistics.higher_is_better, up))
    assert not any(map(statistics.higher_is_better, ("test/loss", "train/error")))
    assert statistics.higher_is_better("test/return", "higher")
    with pytest.raises(ValueError, match="say better="):
        statistics.higher_is_better("test/return")
    with pytest.raises(ValueError, match='must be "higher" or "lower"'):
        statistics.higher_is_better("test/loss", "up")


def test_runs_of_one_curve_come_by_seed_with_failures_filled_in(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    values = statistics.by_seed(main.select(optimizer="a"), "test/loss", "learning_rate", failed=9.0)
    assert values.shape == (4, 3)
    assert values.loc[0, 1.0] == 9.0
    np.testing.assert_allclose(values[0.1], [1, 1.01, 1.02, 1.03], rtol=1e-6)
    with pytest.raises(ValueError, match="also differ in optimizer: select one"):
        statistics.by_seed(main, "test/loss", "learning_rate", failed=9.0)


def test_a_condition_that_the_grid_lacks_is_left_out_and_a_mistake_is_not(tmp_path):
    save(tmp_path, RATES)
    results = load(tmp_path)
    (name,) = results
    table = results[name]
    conditions = {
        "there": lambda: np.arange(3.0) + 5,
        "no such rate": lambda: table.select(learning_rate=77.0),
        "no such sweep": lambda: results["other"],
    }
    claim = judge("x", "s", Effect("r", conditions), least=0.0)
    assert (claim.verdict, claim.condition, claim.num_seeds) == ("supported", "there", 3)
    assert "other" not in results
    assert name in results
    with pytest.raises(ValueError, match="no axis"):
        judge("x", "s", Effect("r", {"misspelt": lambda: table.select(rate=0.1)}), least=0.0)


def test_the_first_step_is_read_between_evaluations():
    frame = pd.DataFrame({"seed": [0, 1, 2], "status": "ok", "run_id": list("abc")})
    curves = np.array([[0.0, 0.5, 1.0], [0.9, 1.0, 1.0], [0.0, np.nan, np.nan]])
    table = Table("main", (Part(frame, {"train/accuracy": curves}),), (), num_steps=20, num_evals=2)
    first = statistics.first_step(table, "train/accuracy", 0.75, never=99.0)
    np.testing.assert_allclose(first, [15.0, 0.0, 99.0])


def test_the_best_of_two_axes_is_reported_by_seed_and_failed_runs_never_win(tmp_path):
    rows = [
        {"a": a, "b": b, "seed": seed, "status": "ok", "run_id": f"{a}{b}{seed}"}
        for a in (1.0, 2.0)
        for b in (3.0, 4.0)
        for seed in (1, 0)
    ]
    rows[-1]["status"] = "nonfinite"
    score = np.array([0.1, 0.1, 0.2, 0.3, 0.6, 0.5, 0.9, 0.0])[:, None]
    reported = np.arange(8.0)[:, None]
    part = Part(pd.DataFrame(rows), {"validation/accuracy": score, "validation/loss": -score, "test/loss": reported})
    table = Table("main", (part,), ("a", "b"), num_steps=0, num_evals=1)
    assert statistics.chosen(table, ("a", "b")) == {"a": 2.0, "b": 3.0}
    assert statistics.chosen(table, ("a", "b"), choose_by="validation/loss") == {"a": 2.0, "b": 3.0}
    np.testing.assert_array_equal(measures.at_best("test/loss", over=("a", "b")).of(table), [5.0, 4.0])
    only = table.select(a=2.0, b=4.0)
    np.testing.assert_array_equal(measures.at_best("test/loss", over="a", failed=9.0).of(only), [9.0, 6.0])
    np.testing.assert_allclose(measures.at_best("test/loss", over="a").of(only), [np.log(10), 6.0])
    with pytest.raises(ValueError, match="also differ in b: select one"):
        statistics.chosen(table, "a")


def test_the_highest_good_value_is_judged_by_each_seeds_own_best():
    scores = pd.DataFrame([[0.5, 0.49, 0.1], [0.2, 0.9, 0.89]], columns=[0.1, 1.0, 10.0])
    np.testing.assert_allclose(statistics.highest_good(scores, 0.02), [0.0, 1.0])


def test_inside_is_compared_with_outside_at_the_best_value_of_each():
    rows = [
        {"rate": rate, "seed": seed, "status": "ok", "run_id": f"{rate}{seed}"}
        for rate in (0.1, 1.0, 10.0)
        for seed in (0, 1)
    ]
    score, reported = np.array([[0.5], [0.5], [0.9], [0.9], [0.7], [0.7]]), np.array([[1.0], [2], [5], [7], [3], [9]])
    part = Part(pd.DataFrame(rows), {"validation/accuracy": score, "test/accuracy": reported})
    table = Table("main", (part,), ("rate",), num_steps=0, num_evals=1)
    both = measures.inside_minus_outside("rate", 0.1, 1.0).of(table)
    np.testing.assert_array_equal(both, [2.0, -2.0])  # at 1 inside, at 10 outside
    with pytest.raises(NotMeasuredError):
        measures.inside_minus_outside("rate", 0.1, 10.0).of(table)
