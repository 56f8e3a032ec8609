"""The shapes that figures are made of, against the numbers they should show."""

from __future__ import annotations

import numpy as np
import pytest

from dlexp.results import load
from dlexp.study import lines, style
from dlexp.sweep import grid
from tests.test_results import save


@pytest.fixture
def table(tmp_path):
    declared = grid(hyper={"learning_rate": (1.0, 0.1), "momentum": (0.0, 0.9)}, seeds=3)

    def value(run):
        if run.hyper["learning_rate"] == 1.0 and run.hyper["momentum"] == 0.9:
            return float("nan")
        return 10 * run.hyper["learning_rate"] + run.hyper["momentum"] + run.seed

    return load(save(tmp_path, declared, value=value))["main"]


def test_a_band_is_the_mean_and_its_interval():
    _, axes = style.subplots()
    values = np.array([[1.0, 10.0], [3.0, 1000.0], [2.0, 100.0]])
    style.band(axes, np.array([0, 1]), values, label="plain", color="red")
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2, 370])
    style.band(axes, np.array([0, 1]), values, label="log", color="red", log=True)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [6 ** (1 / 3), 100])
    assert len(axes.collections) == 2


def test_points_over_an_axis_count_failures_and_cross_lost_points(table):
    _, axes = style.subplots()
    options = {"x": "learning_rate", "failed": -5.0}
    (panel,) = lines(table, None, "test/loss", fixed={"momentum": 0.9}, **options)
    panel.draw(axes)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.1, 1.0])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1 + 0.9 + 1, -5.0], rtol=1e-6)
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [1.0])  # the cross
    with pytest.raises(ValueError, match="also differ in momentum: select one"):
        lines(table, None, "test/loss", **options)


def test_a_heat_map_shows_the_mean_of_every_point(table):
    _, axes = style.subplots()
    mesh = style.heat_map(axes, table, "test/loss", x="learning_rate", y="momentum", failed=-5.0)
    np.testing.assert_allclose(mesh.get_array(), [[1 + 1, 10 + 1], [1 + 0.9 + 1, -5.0]], rtol=1e-6)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1"]


def test_the_note_counts_runs_seeds_and_failures(table):
    text = style.counts([table], failed_as="nothing")
    assert text == "12 runs, 3 seeds a point, bands: 95% intervals; 3 runs non-finite, counted as nothing"


def test_a_figure_is_saved_as_the_same_bytes_twice(tmp_path, table):
    contents = []
    for name in ("one", "two"):
        with style.style():
            figure, axes = style.subplots()
            style.theory_line(axes, [0, 1], [1, 0], "theory")
        written = style.save(figure, tmp_path / name / "figure")
        contents.append([path.read_bytes() for path in written])
        assert [path.name for path in written] == ["figure.svg", "figure.png"]
    assert contents[0] == contents[1]
