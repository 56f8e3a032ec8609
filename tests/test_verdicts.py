"""Statistics and verdicts on results made by hand, where the answer is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dlexp import analysis, claims
from dlexp.claims import judge
from dlexp.results import NotMeasuredError, Table, load
from dlexp.results.table import Part
from dlexp.sweep import grid
from tests.test_results import save

RATES = grid(config={"optimizer": ("a", "b")}, hyper={"learning_rate": (0.01, 0.1, 1.0)}, seeds=4)


def judged(*conditions, smallest=0.0):
    effects = {f"c{index}": values for index, values in enumerate(conditions)}
    return judge("x", source="s", rule="r", effects=effects, smallest=smallest)


def test_every_verdict_can_flip():
    near_one = np.array([0.9, 1.0, 1.1, 1.0])
    assert judged(near_one).verdict == "supported"
    assert judged(near_one, smallest=2.0).verdict == "refuted"
    assert judged(near_one, smallest=1.0).verdict == "undecided"
    assert judged(near_one, -near_one).verdict == "mixed"
    assert judged(near_one, near_one).verdict == "supported"
    assert judged(near_one[:1]).verdict == "undecided"


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
    covered = [low <= 1.0 <= high for _, low, high in map(analysis.t_interval, samples)]
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_the_bootstrap_interval_is_repeatable_and_near_the_t_interval_for_normal_values():
    values = np.random.default_rng(1).normal(size=60)
    assert analysis.bootstrap_interval(values) == analysis.bootstrap_interval(values)
    np.testing.assert_allclose(analysis.bootstrap_interval(values), analysis.t_interval(values), atol=0.06)
    assert analysis.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_the_interquartile_mean_cuts_a_quarter_at_each_end():
    assert analysis.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    assert stats.trim_mean([1, 2, 3, 4], 0.25) == analysis.interquartile_mean([1, 2, 3, 4]) == 2.5


def loss(run):
    """b is best at 0.1; a at 1.0, were it not for the one run that fails there."""
    best = {"a": 1.0, "b": 0.1}[run.config["optimizer"]]
    if run.config["optimizer"] == "a" and run.hyper["learning_rate"] == 1.0 and run.seed == 0:
        return float("nan")
    return abs(np.log10(run.hyper["learning_rate"] / best)) + 0.01 * run.seed


def test_a_rate_where_a_run_failed_does_not_win_by_the_runs_that_did_not(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    best = analysis.best(main, "learning_rate", choose_by="test/loss", report="test/loss")
    assert dict(zip(best["optimizer"], best["learning_rate"], strict=True)) == {"a": 0.1, "b": 0.1}
    assert best["num_failed"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="no axis 'momentum'"):
        analysis.best(main, "momentum", choose_by="test/loss")
    with pytest.raises(ValueError, match="name a metric"):
        analysis.best(main, "learning_rate")


def test_points_count_failed_runs(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    means = analysis.points(main, "test/loss", failed=9.0).set_index(["optimizer", "learning_rate"])
    assert means.loc[("a", 1.0), "num_failed"] == 1
    assert means.loc[("a", 1.0), "mean"] == pytest.approx((9 + 0.01 + 0.02 + 0.03) / 4)
    assert means["num_seeds"].tolist() == [4] * 6


def test_divergence_is_judged_by_a_stated_rule(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    bad = analysis.diverged(main, constant_loss=1.5, metric="test/loss")
    expected = [run for run in main.frame.to_dict("records") if not run["test/loss"] < 1.5]
    assert bad.sum() == len(expected) == 5  # the non-finite run and four seeds two decades off


def test_a_good_band_has_no_gap_and_holds_the_best():
    accuracies = pd.Series({10.0: 0.3, 0.001: 0.9, 0.01: 0.5, 0.1: 0.89, 1.0: 0.901})
    band = analysis.good_band(accuracies, 0.02)
    assert (band.best, band.low, band.high) == (1.0, 0.1, 1.0)  # 0.001 is as good, but beyond a gap
    assert band.decades == pytest.approx(1.0)
    assert not band.at_edge
    wider = analysis.good_band(accuracies, 0.5)
    assert (wider.low, wider.high, wider.at_edge) == (0.001, 1.0, True)


def test_runs_of_one_curve_come_by_seed_with_failures_filled_in(tmp_path):
    main = load(save(tmp_path, RATES, value=loss))["main"]
    values = analysis.by_seed(main.select(optimizer="a"), "test/loss", "learning_rate", failed=9.0)
    assert values.shape == (4, 3)
    assert values.loc[0, 1.0] == 9.0
    np.testing.assert_allclose(values[0.1], [1, 1.01, 1.02, 1.03], rtol=1e-6)
    with pytest.raises(ValueError, match="differ in optimizer too"):
        analysis.by_seed(main, "test/loss", "learning_rate", failed=9.0)


def test_a_condition_that_the_grid_lacks_is_left_out_and_a_mistake_is_not(tmp_path):
    save(tmp_path, RATES)
    results = load(tmp_path)
    (name,) = results
    table = results[name]
    claim = judge(
        "x",
        source="s",
        rule="r",
        effects={
            "there": lambda: np.arange(3.0) + 5,
            "no such rate": lambda: table.select(learning_rate=77.0),
            "no such sweep": lambda: results["other"],
        },
    )
    assert (claim.verdict, claim.condition, claim.num_seeds) == ("supported", "there", 3)
    assert "other" not in results
    assert name in results
    with pytest.raises(ValueError, match="no axis"):
        judge("x", source="s", rule="r", effects={"misspelt": lambda: table.select(rate=0.1)})


def test_the_first_step_is_read_between_evaluations():
    frame = pd.DataFrame({"seed": [0, 1, 2], "status": "ok", "run_id": list("abc")})
    curves = np.array([[0.0, 0.5, 1.0], [0.9, 1.0, 1.0], [0.0, np.nan, np.nan]])
    table = Table("main", (Part(frame, {"train/accuracy": curves}),), (), num_steps=20, num_evals=2)
    first = analysis.first_step(table, "train/accuracy", 0.75, never=99.0)
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
    assert analysis.chosen(table, ("a", "b")) == {"a": 2.0, "b": 3.0}
    assert analysis.chosen(table, ("a", "b"), choose_by="validation/loss") == {"a": 2.0, "b": 3.0}
    np.testing.assert_array_equal(analysis.at_best(table, ("a", "b"), "test/loss", failed=9.0), [5.0, 4.0])
    only = table.select(a=2.0, b=4.0)
    np.testing.assert_array_equal(analysis.at_best(only, "a", "test/loss", failed=9.0), [9.0, 6.0])
    with pytest.raises(ValueError, match="differ in b too; select one"):
        analysis.chosen(table, "a")


def test_the_highest_good_value_is_judged_by_each_seeds_own_best():
    scores = pd.DataFrame([[0.5, 0.49, 0.1], [0.2, 0.9, 0.89]], columns=[0.1, 1.0, 10.0])
    np.testing.assert_allclose(analysis.highest_good(scores, 0.02), [0.0, 1.0])


def test_inside_is_compared_with_outside_at_the_best_value_of_each():
    rows = [
        {"rate": rate, "seed": seed, "status": "ok", "run_id": f"{rate}{seed}"}
        for rate in (0.1, 1.0, 10.0)
        for seed in (0, 1)
    ]
    score, reported = np.array([[0.5], [0.5], [0.9], [0.9], [0.7], [0.7]]), np.array([[1.0], [2], [5], [7], [3], [9]])
    part = Part(pd.DataFrame(rows), {"validation/accuracy": score, "test/accuracy": reported})
    table = Table("main", (part,), ("rate",), num_steps=0, num_evals=1)
    both = analysis.inside_minus_outside(table, "rate", (0.1, 1.0), "test/accuracy", failed=0.0)
    np.testing.assert_array_equal(both, [2.0, -2.0])  # at 1 inside, at 10 outside
    with pytest.raises(NotMeasuredError):
        analysis.inside_minus_outside(table, "rate", (0.1, 10.0), "test/accuracy", failed=0.0)
