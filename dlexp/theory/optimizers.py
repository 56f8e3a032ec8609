"""What optimizers do where it can be worked out: constant gradients and quadratics. Plain NumPy, float64."""

from __future__ import annotations

import numpy as np


def adam_step_multiplier(
    step: np.ndarray | int, b1: float = 0.9, b2: float = 0.999, *, bias_correction: bool = True
) -> np.ndarray:
    """Returns Adam's step on a constant gradient, in units of the learning rate, at eps 0; `step` counts from 1.

    With bias correction it is 1 at every step. Without, it is `(1 - b1^t) / sqrt(1 - b2^t)`.
    Source: Kingma and Ba, "Adam", 2015, section 3, https://arxiv.org/abs/1412.6980.

    >>> round(float(adam_step_multiplier(1, bias_correction=False)), 5)
    3.16228
    """
    step = np.asarray(step, float)
    if bias_correction:
        return np.ones_like(step)
    return (1 - b1**step) / np.sqrt(1 - b2**step)


def rmsprop_step_multiplier(step: np.ndarray | int, decay: float = 0.9) -> np.ndarray:
    """Returns RMSprop's step on a constant gradient, in units of the learning rate: `1 / sqrt(1 - decay^t)`."""
    return 1 / np.sqrt(1 - decay ** np.asarray(step, float))


def momentum_step_multiplier(step: np.ndarray | float, momentum: float = 0.9) -> np.ndarray:
    """Returns momentum's step on a constant gradient g, in units of `learning_rate g`.

    It is `(1 - momentum^t) / (1 - momentum)` and tends to `1 / (1 - momentum)`, 10 at 0.9: slow enough dynamics
    see momentum as gradient descent at ten times the rate.
    Source: Goh, "Why Momentum Really Works", 2017, https://distill.pub/2017/momentum.
    """
    return (1 - momentum ** np.asarray(step, float)) / (1 - momentum)


def quadratic_contraction(learning_rate: np.ndarray | float, curvature: np.ndarray | float) -> np.ndarray:
    """Returns the factor that one gradient step on `curvature w^2 / 2` puts on w: `1 - learning_rate curvature`.

    Its size is below 1 exactly where the rate is between 0 and `2 / curvature`.
    """
    return 1 - np.asarray(learning_rate) * np.asarray(curvature)


def largest_stable_curvature(learning_rate: np.ndarray | float, momentum: float = 0.0) -> np.ndarray:
    """Returns the curvature above which heavy-ball descent diverges: `(2 + 2 momentum) / learning_rate`.

    Full-batch training of networks drives the largest curvature up to this value and holds it there.
    Source: Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability", 2021,
    https://arxiv.org/abs/2103.00065.
    """
    return (2 + 2 * momentum) / np.asarray(learning_rate, float)


def quadratic_steps(learning_rate: float, curvatures: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns the loss `sum(curvature w^2) / 2` after 0 to `num_steps` gradient steps from w = 1: `[step + 1]`."""
    factors = quadratic_contraction(learning_rate, np.asarray(curvatures, float))
    powers = factors[None, :] ** (2 * np.arange(num_steps + 1)[:, None])
    return 0.5 * powers @ np.asarray(curvatures, float)


def best_rate(smallest: float, largest: float) -> tuple[float, float]:
    """Returns the rate at which a quadratic converges fastest and the factor on the error then.

    `2 / (largest + smallest)` and `(kappa - 1) / (kappa + 1)`, kappa the ratio of the curvatures.
    Source: Nesterov, "Introductory Lectures on Convex Optimization", 2004, theorem 2.1.15.

    >>> round(best_rate(1.0, 100.0)[1], 5)
    0.9802
    """
    return 2 / (largest + smallest), (largest - smallest) / (largest + smallest)
