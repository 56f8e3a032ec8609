"""Wide random networks: how signal and gradient change from layer to layer. Plain NumPy, float64.

A layer is `h = W phi(h') + b` with weights of variance `weight_variance / width` and biases of `bias_variance`; q is
the variance of its pre-activations. Sources: Poole et al., "Exponential expressivity in deep neural networks through
transient chaos", 2016, https://arxiv.org/abs/1606.05340; Schoenholz et al., "Deep Information Propagation", 2017,
https://arxiv.org/abs/1611.01232.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

# Midpoints, dense for activations whose slope is a spike at a large q, none on the kink of ReLU.
_NODES = (np.arange(24000) + 0.5) * 1e-3 - 12.0
_DENSITY = np.exp(-0.5 * _NODES**2) / np.sqrt(2 * np.pi) * 1e-3


class _Activation(NamedTuple):
    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


_ACTIVATIONS = {
    "identity": _Activation(lambda x: x, np.ones_like),
    "relu": _Activation(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "tanh": _Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": _Activation(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
}


def _activation(name: str) -> _Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"mean_field: no activation named {name!r}; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gaussian_mean(function: Callable[[np.ndarray], np.ndarray], variance: float) -> float:
    return float(function(np.sqrt(variance) * _NODES) @ _DENSITY)


def variance_map(q: float, activation: str, weight_variance: float, bias_variance: float = 0.0) -> float:
    """Returns the next layer's pre-activation variance, `weight_variance E[phi(sqrt q z)^2] + bias_variance`.

    >>> round(variance_map(1.0, "relu", 2.0), 6)
    1.0
    """
    value = _activation(activation).value
    return weight_variance * _gaussian_mean(lambda x: value(x) ** 2, q) + bias_variance


@cache
def fixed_point(activation: str, weight_variance: float, bias_variance: float = 0.0) -> float:
    """Returns q*, the variance that a layer leaves as it is, reached from q = 1; it is bounded for tanh and sigmoid.

    ReLU has none but 0, 1 (where every q stays) and infinity.
    """
    if activation in ("relu", "identity"):
        gain = chi(1.0, activation, weight_variance)
        if np.isclose(gain, 1.0, rtol=1e-12):
            return 1.0 if bias_variance == 0 else np.inf
        return bias_variance / (1 - gain) if gain < 1 else np.inf
    q = 1.0
    for _ in range(100_000):
        before, q = q, variance_map(q, activation, weight_variance, bias_variance)
        if abs(q - before) <= 1e-13 * q:
            break
    return q


def chi(q: float, activation: str, weight_variance: float) -> float:
    """Returns the factor on the squared gradient a layer, `weight_variance E[phi'(sqrt q z)^2]`.

    Below 1 gradients vanish and different inputs become alike (order); above 1 they explode and inputs are torn
    apart (chaos). Source: Schoenholz et al., 2017, equation 5.
    """
    slope = _activation(activation).slope
    return weight_variance * _gaussian_mean(lambda x: slope(x) ** 2, q)


@cache
def chi_at_fixed_point(activation: str, weight_variance: float, bias_variance: float = 0.0) -> float:
    """Returns `chi` at q*; that of ReLU is half the weight variance at any q."""
    q = 1.0 if activation in ("relu", "identity") else fixed_point(activation, weight_variance, bias_variance)
    return chi(q, activation, weight_variance)


def depth_scale(activation: str, weight_variance: float, bias_variance: float = 0.0) -> float:
    """Returns xi = `-1 / ln chi`, the number of layers over which different inputs become alike; infinite in chaos.

    Source: Schoenholz et al., 2017, equation 9; networks up to about 6 xi layers deep are seen to train there.

    >>> round(depth_scale("tanh", 1.5, 0.05), 1)
    15.8
    """
    slope = chi_at_fixed_point(activation, weight_variance, bias_variance)
    return float(-1 / np.log(slope)) if slope < 1 else np.inf


@cache
def critical_weight_variance(activation: str, bias_variance: float = 0.0) -> float:
    """Returns the weight variance at which `chi` is 1 at q*: the edge of chaos.

    >>> round(critical_weight_variance("tanh", 0.05), 4)
    1.761
    """
    if activation in ("relu", "identity"):
        return 2.0 if activation == "relu" else 1.0
    return _root(lambda variance: chi_at_fixed_point(activation, variance, bias_variance) - 1, 1e-3, 400.0)


@cache
def shallowest_weight_variance(activation: str, scale: float, bias_variance: float = 0.0) -> float:
    """Returns the weight variance below the edge of chaos at which the depth scale is `scale` layers."""
    wanted = np.exp(-1 / scale)
    top = critical_weight_variance(activation, bias_variance)
    return _root(lambda variance: chi_at_fixed_point(activation, variance, bias_variance) - wanted, 1e-3, top)


def profile(
    num_layers: int, activation: str, weight_variance: float, bias_variance: float = 0.0, *, first: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns q of each layer and the log squared gradient there, relative to the last layer: both `[layer]`.

    Args:
      num_layers: how many.
      activation: identity, relu, tanh or sigmoid.
      weight_variance: times the width.
      bias_variance: of the biases.
      first: q of the first layer.
    """
    q = [first]
    for _ in range(num_layers - 1):
        q.append(variance_map(q[-1], activation, weight_variance, bias_variance))
    steps = np.log([chi(value, activation, weight_variance) for value in q[:-1]])
    return np.array(q), np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])


def batch_norm_chi(activation: str) -> float:
    """Returns the factor on the squared gradient a layer of a deep network with batch normalization before phi.

    It is `E[phi'(z)^2] / Var[phi(z)]` and at least 1: such a network explodes at initialization. For large batches.
    Source: Yang et al., "A Mean Field Theory of Batch Normalization", 2019, https://arxiv.org/abs/1902.08129.

    >>> round(batch_norm_chi("relu"), 4)  # pi / (pi - 1)
    1.4669
    """
    value, slope = _activation(activation)
    variance = _gaussian_mean(lambda x: value(x) ** 2, 1.0) - _gaussian_mean(value, 1.0) ** 2
    return _gaussian_mean(lambda x: slope(x) ** 2, 1.0) / variance


def relu_correlation_map(correlation: np.ndarray | float) -> np.ndarray:
    """Returns the correlation of two inputs after one more layer of ReLU at weight variance 2.

    `(sqrt(1 - c^2) + c (pi - arccos c)) / pi`: depth makes any two inputs alike, though only as `9 pi^2 / (2 l^2)`.
    Source: Cho and Saul, "Kernel Methods for Deep Learning", 2009, equation 6 (order 1).

    >>> round(float(relu_correlation_map(0.0)), 6)
    0.31831
    """
    c = np.asarray(correlation, float)
    return (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi


def relu_log_norm_step(width: int) -> tuple[float, float]:
    """Returns mean and variance of the change of the log squared norm in a ReLU layer at weight variance 2.

    Exact: the squared norm is multiplied by `2 / width` times a chi-squared number with Binomial(width, 1/2) degrees
    of freedom (given that it is not 0). Roughly -2.5 / width and 5 / width: what counts is depth over width.
    Source: Hanin, "Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?", 2018,
    https://arxiv.org/abs/1801.03744.

    >>> round(relu_log_norm_step(64)[0], 6)
    -0.040109
    """
    from scipy import special, stats

    active = np.arange(1, width + 1)
    share = stats.binom.pmf(active, width, 0.5)
    share = share / share.sum()
    means = special.digamma(active / 2) + np.log(2) + np.log(2 / width)
    mean = float(share @ means)
    return mean, float(share @ (special.polygamma(1, active / 2) + (means - mean) ** 2))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy import optimize

    return float(optimize.brentq(function, low, high, xtol=1e-10))
