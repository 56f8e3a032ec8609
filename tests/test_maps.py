"""The box-counting estimate of the trainability map, on curves whose dimension is known."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.engine.trainability_map import boxes, dimension


def edge_of(inside: np.ndarray) -> np.ndarray:
    edge = np.zeros_like(inside)
    edge[:, :-1] |= inside[:, :-1] != inside[:, 1:]
    edge[:-1] |= inside[:-1] != inside[1:]
    return edge


@pytest.mark.parametrize("radius", [0.25, 0.3, 0.42])
def test_a_circle_has_dimension_one_and_a_small_one_not_more_than_a_twentieth_above(radius):
    for size, lowest in ((64, 0.85), (256, 0.95)):
        x, y = np.meshgrid(*[np.linspace(-0.5, 0.5, size)] * 2)
        assert lowest < dimension(edge_of(x**2 + y**2 < radius**2)) < 1.05
        assert lowest < dimension(edge_of(y < radius * x)) < 1.05


def test_dust_that_fills_the_plane_has_dimension_two():
    assert dimension(np.random.default_rng(0).random((256, 256)) < 0.5) == pytest.approx(2.0, abs=0.1)


def test_a_sierpinski_triangle_has_its_dimension():
    carpet = np.ones((1, 1), bool)
    for _ in range(8):  # three copies of itself at half the size: log 3 / log 2
        carpet = np.block([[carpet, carpet], [carpet, np.zeros_like(carpet)]])
    assert dimension(carpet) == pytest.approx(np.log2(3), abs=0.01)
    sizes, counts = boxes(carpet)
    np.testing.assert_array_equal(sizes, [2, 4, 8, 16, 32])
    assert counts[0] == 3**7
