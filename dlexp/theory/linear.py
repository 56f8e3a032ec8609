"""Linear models with known risks: too many features, ridge, early stopping, saturation. Plain NumPy, float64."""

from __future__ import annotations

import numpy as np


def subset_risk(num_features: int, *, num_examples: int, num_all: int, signal: float, noise: float) -> float:
    """Returns the expected squared error of least squares on some of the features of a Gaussian linear model.

    The other features act as noise. Fitted with the smallest norm beyond interpolation; infinite from one feature
    less to one more than examples.
    Source: Belkin, Hsu and Xu, "Two models of double descent for weak features", 2020, theorem 1,
    https://arxiv.org/abs/1903.07571.

    >>> round(subset_risk(20, num_examples=40, num_all=200, signal=1.0, noise=0.5), 4)
    2.3605

    Args:
      num_features: how many are used, chosen without regard to their weights.
      num_examples: to fit.
      num_all: features there are.
      signal: norm of all weights.
      noise: standard deviation of the labels' noise.
    """
    used = signal**2 * num_features / num_all
    rest = signal**2 - used + noise**2
    if num_features <= num_examples - 2:
        return rest * (1 + num_features / (num_examples - num_features - 1))
    if num_features >= num_examples + 2:
        return used * (1 - num_examples / num_features) + rest * (1 + num_examples / (num_features - num_examples - 1))
    return np.inf


def flow_risk(
    eigenvalues: np.ndarray, time: np.ndarray, *, num_examples: int, signal: float, noise: float
) -> np.ndarray:
    """Returns the risk `E |w - w*|^2` of gradient flow from 0 on least squares at each time, `[time]`.

    Bias `signal^2 mean(exp(-2 t s))`, variance `noise^2 / n sum((1 - exp(-t s))^2 / s)`, in a random direction w*.
    Source: Ali, Kolter and Tibshirani, "A Continuous-Time View of Early Stopping for Least Squares", 2019,
    https://arxiv.org/abs/1810.10082.

    Args:
      eigenvalues: s, of X'X / n, `[feature]`.
      time: `[time]`; k steps at rate a are the time k a.
      num_examples: n.
      signal: norm of w*.
      noise: standard deviation of the labels' noise.
    """
    s, t = np.asarray(eigenvalues, float), np.asarray(time, float)[..., None]
    kept, positive = np.exp(-t * s), s > 1e-9
    variance = np.where(positive, (1 - kept) ** 2 / np.where(positive, s, 1.0), 0.0)
    return signal**2 * np.mean(kept**2, axis=-1) + noise**2 / num_examples * np.sum(variance, axis=-1)


def ridge_risk(
    eigenvalues: np.ndarray, penalty: np.ndarray, *, num_examples: int, signal: float, noise: float
) -> np.ndarray:
    """Returns the risk of ridge regression at each penalty, in the convention of `flow_risk`, `[penalty]`.

    Bias `signal^2 mean((penalty / (s + penalty))^2)`, variance `noise^2 / n sum(s / (s + penalty)^2)`.
    """
    s, penalty = np.asarray(eigenvalues, float), np.asarray(penalty, float)[..., None]
    bias = signal**2 * np.mean((penalty / (s + penalty)) ** 2, axis=-1)
    return bias + noise**2 / num_examples * np.sum(s / (s + penalty) ** 2, axis=-1)


FLOW_OVER_RIDGE = 1.6862  # Ali, Kolter and Tibshirani, 2019, theorem 1: the most, at penalty = 1 / time


def saturated_slopes(logit: float) -> tuple[float, float]:
    """Returns the slopes at a sigmoid neuron's logit, target 0, of half the squared error and of the cross-entropy.

    `a^2 (1 - a)` and `a` with the activation a: the squared error's is small where the neuron is most wrong.
    Source: Nielsen, "Neural Networks and Deep Learning", 2015, chapter 3, http://neuralnetworksanddeeplearning.com.

    >>> squared, entropy = saturated_slopes(4.0)
    >>> round(float(entropy / squared), 4)
    56.6165
    """
    a = 1 / (1 + np.exp(-logit))
    return a * a * (1 - a), a
