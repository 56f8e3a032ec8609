"""How much a network can do, by counting: linear pieces, separable labels, living units. Plain NumPy, float64."""

from __future__ import annotations

import numpy as np


def tent(x: np.ndarray, folds: int) -> np.ndarray:
    """Returns the tent map `m(x) = 2x` below 1/2, `2 - 2x` above, applied `folds` times: 2^folds linear pieces.

    Source: Telgarsky, "Representation Benefits of Deep Feedforward Networks", 2015, https://arxiv.org/abs/1509.08101.
    """
    x = np.asarray(x, float)
    for _ in range(folds):
        x = np.where(x <= 0.5, 2 * x, 2 - 2 * x)
    return x


def max_pieces(width: int) -> int:
    """Returns the most linear pieces of a network with one number as input and one hidden layer of ReLUs: width + 1."""
    return width + 1


def smallest_shallow_error(width: int, folds: int) -> float:
    """Returns a lower bound on the share of wrong labels of one hidden layer of ReLUs on the folded tent.

    The labels of the `2^folds` points alternate. At most `width + 1` linear pieces, cut at a threshold, are constant
    on at most `width + 2` intervals, so at least `1/2 - (width + 2) / 2^(folds + 1)` of the points are wrong.

    >>> smallest_shallow_error(8, 6)
    0.421875
    """
    return max(0.0, 0.5 - (width + 2) / 2 ** (folds + 1))


def piecewise_linear_error(num_pieces: np.ndarray | int, mean_squared_curvature: float) -> np.ndarray:
    """Returns the mean squared error of the best continuous fit with equal linear pieces on [0, 1], if they are many.

    `E[f''^2] / (720 m^4)`: for sin(2 pi x), where it is 8 pi^4, 1.0823 / m^4.
    Source: de Boor, "A Practical Guide to Splines", 1978, chapter 3, https://doi.org/10.1007/978-1-4612-6333-3.

    >>> round(float(piecewise_linear_error(1, 8 * np.pi**4)), 4)
    1.0823
    """
    return mean_squared_curvature / (720 * np.asarray(num_pieces, float) ** 4)


def probability_alive(width: int, num_layers: int) -> float:
    """Returns the probability that one input passes random ReLU layers without biases: `(1 - 2^-width)^num_layers`.

    >>> round(probability_alive(3, 10), 4)
    0.2631
    """
    return (1 - 0.5**width) ** num_layers


def probability_separable(num_examples: int, num_dimensions: int) -> float:
    """Returns how likely random labels of points in general position are separable by a plane through the origin.

    `2^(1 - n) sum_(k < d) C(n - 1, k)`: 1 up to n = d, exactly one half at n = 2d.
    Source: Cover, "Geometrical and Statistical Properties of Systems of Linear Inequalities", 1965,
    https://doi.org/10.1109/PGEC.1965.264137.

    >>> round(probability_separable(40, 20), 12)
    0.5
    """
    from scipy import stats

    return float(stats.binom.cdf(num_dimensions - 1, num_examples - 1, 0.5))
