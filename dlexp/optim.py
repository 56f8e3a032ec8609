"""Optimizers as Optax chains built inside the step from traced hyperparameters.

An `Optimizer` is a mark (what may be swept, with its range) and a function from the run's own values to an Optax
transformation. Every number is an argument of the compiled program, never a constant in it. Optimizers that are
one formula with other coefficients are one program: sgd is momentum at 0, adam is adamw at weight decay 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlexp import ops
from dlexp.types import Hyper, Range

LEARNING_RATE = Range(0.0, math.inf)
_DECAY = Range(0.0, 1.0, open_high=True)
_POSITIVE = Range(0.0, math.inf, open_low=True)


class Schedule(NamedTuple):
    """A factor on the learning rate, step by step.

    Attributes:
      hyper: its swept numbers.
      make: `hyper -> (step -> factor)`; `step` counts from 0, the factor is in [0, 1].
    """

    hyper: Mapping[str, Range]
    make: Callable[[Hyper], Callable[[jax.Array], jax.Array]]


class Optimizer(NamedTuple):
    """What an Optax transformation is made of in one run.

    Attributes:
      hyper: its swept numbers.
      make_tx: `hyper -> optax.GradientTransformation`, called inside the compiled step.
    """

    hyper: Mapping[str, Range]
    make_tx: Callable[[Hyper], optax.GradientTransformation]


def constant() -> Schedule:
    """Returns the factor 1 at every step."""
    return Schedule({}, lambda hyper: lambda step: jnp.ones((), float))


def cosine(decay_steps: int) -> Schedule:
    """Returns `f + (1 - f) (1 + cos(pi t / decay_steps)) / 2`, f = `final_scale`; it stays at f afterwards.

    Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, https://arxiv.org/abs/1608.03983.

    Args:
      decay_steps: the default of the swept `decay_steps`, usually the length of the training.

    Raises:
      ValueError: where it is not positive.
    """
    if decay_steps < 1:
        raise ValueError(f"cosine: decay_steps must be at least 1, got {decay_steps}")
    hyper = {
        "decay_steps": Range(1, math.inf, default=decay_steps, integer=True),
        "final_scale": Range(0.0, 1.0, default=0.0),
    }

    def make(hyper: Hyper) -> Callable[[jax.Array], jax.Array]:
        def factor(step: jax.Array) -> jax.Array:
            progress = jnp.minimum(jnp.asarray(step, float) / hyper["decay_steps"], 1.0)
            decay = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return hyper["final_scale"] + (1.0 - hyper["final_scale"]) * decay

        return factor

    return Schedule(hyper, make)


def warmup(schedule: Schedule | None = None) -> Schedule:
    """Returns `schedule` (default constant) times `min(1, (t + 1) / warmup_steps)`; 0 warm-up steps change nothing."""
    schedule = schedule or constant()
    hyper = {**schedule.hyper, "warmup_steps": Range(0, math.inf, integer=True)}

    def make(hyper: Hyper) -> Callable[[jax.Array], jax.Array]:
        after = schedule.make(hyper)
        warm = jnp.maximum(hyper["warmup_steps"], 1)
        return lambda step: jnp.minimum(1.0, jnp.asarray(step + 1, float) / warm) * after(step)

    return Schedule(hyper, make)


def _scale_by_learning_rate(schedule: Schedule | None, hyper: Hyper) -> optax.GradientTransformation:
    if schedule is None:
        return optax.scale(-hyper["learning_rate"])
    factor = schedule.make(hyper)
    return optax.scale_by_schedule(lambda step: -hyper["learning_rate"] * factor(step))


def _with_learning_rate(
    hyper: Mapping[str, Range],
    direction: Callable[[Hyper], optax.GradientTransformation],
    schedule: Schedule | None,
) -> Optimizer:
    schedule_hyper = schedule.hyper if schedule else {}

    def make_tx(values: Hyper) -> optax.GradientTransformation:
        return ops.one_pass(optax.chain(direction(values), _scale_by_learning_rate(schedule, values)))

    return Optimizer({"learning_rate": LEARNING_RATE, **hyper, **schedule_hyper}, make_tx)


def momentum(schedule: Schedule | None = None, *, default: float = 0.9) -> Optimizer:
    """Returns heavy-ball momentum: `m <- momentum m + g`, `w <- w - learning_rate m`.

    On a constant gradient the step tends to `learning_rate / (1 - momentum)`. The swept `momentum` is `default`
    where the grid does not name it.
    """
    hyper = {"momentum": _DECAY._replace(default=default)}
    return _with_learning_rate(hyper, lambda values: optax.trace(values["momentum"]), schedule)


def sgd(schedule: Schedule | None = None) -> Optimizer:
    """Returns stochastic gradient descent, `w <- w - learning_rate g`: momentum at 0, and the same program."""
    return momentum(schedule, default=0.0)


def rmsprop(schedule: Schedule | None = None) -> Optimizer:
    """Returns RMSprop: `v <- decay v + (1 - decay) g^2`, `w <- w - learning_rate g / (sqrt v + eps)`.

    The first step is `learning_rate / sqrt(1 - decay)` long. Swept with defaults: `decay` 0.9, `eps` 1e-8. A gradient
    whose square overflows (in float32 from 1.8e19 on) makes the weights NaN, and the run counts as lost.
    Source: Tieleman and Hinton, "Lecture 6.5: RMSProp", 2012.
    """
    hyper = {"decay": _DECAY._replace(default=0.9), "eps": _POSITIVE._replace(default=1e-8)}

    def direction(values: Hyper) -> optax.GradientTransformation:
        return _lost_at_overflow(optax.scale_by_rms(values["decay"], values["eps"], eps_in_sqrt=False))

    return _with_learning_rate(hyper, direction, schedule)


def adamw(
    schedule: Schedule | None = None, *, default_weight_decay: float = 1e-2, bias_correction: bool = True
) -> Optimizer:
    """Returns Adam with decoupled weight decay: `w <- w - learning_rate (m / (sqrt v + eps) + weight_decay w)`.

    Swept with defaults: `b1` 0.9, `b2` 0.999, `eps` 1e-8, `weight_decay`. Without `bias_correction` m and v are
    used as they are; on a constant gradient the first step is then `(1 - b1) / sqrt(1 - b2)` times too long. A gradient
    whose square overflows (in float32 from 1.8e19 on) makes the weights NaN, and the run counts as lost.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, https://arxiv.org/abs/1711.05101,
    in the form of Optax and PyTorch: a step decays by `learning_rate weight_decay`, where the paper's algorithm 2
    leaves the rate out.
    """
    hyper = {
        "b1": _DECAY._replace(default=0.9),
        "b2": _DECAY._replace(default=0.999),
        "eps": _POSITIVE._replace(default=1e-8),
        "weight_decay": Range(0.0, default=default_weight_decay),
    }
    scale_by_adam = optax.scale_by_adam if bias_correction else _scale_by_uncorrected_adam

    def direction(values: Hyper) -> optax.GradientTransformation:
        return optax.chain(
            _lost_at_overflow(scale_by_adam(values["b1"], values["b2"], values["eps"])),
            optax.add_decayed_weights(values["weight_decay"]),
        )

    return _with_learning_rate(hyper, direction, schedule)


def adam(schedule: Schedule | None = None, *, bias_correction: bool = True) -> Optimizer:
    """Returns Adam: adamw at weight decay 0, and the same program.

    Source: Kingma and Ba, "Adam", 2015, algorithm 1, https://arxiv.org/abs/1412.6980.
    """
    return adamw(schedule, default_weight_decay=0.0, bias_correction=bias_correction)


class _Moments(NamedTuple):
    """Means of gradients (mu) and of their squares (nu), named as in Optax."""

    mu: optax.Updates
    nu: optax.Updates


def _scale_by_uncorrected_adam(b1: jax.Array, b2: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
    def init(params: optax.Params) -> _Moments:
        return _Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: optax.Updates, moments: _Moments, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _Moments]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, moments.nu, grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), _Moments(mu, nu)

    return optax.GradientTransformation(init, update)


def _lost_at_overflow(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation, whose updates are NaN where the mean of squares in its state (`nu`) is infinite.

    Divided by infinity they would be 0: the run would stand still for ever and look healthy.
    """

    def update(
        grads: optax.Updates, opt_state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return jax.tree.map(lambda u, v: u + 0.0 * v, updates, opt_state.nu), opt_state

    return optax.GradientTransformation(tx.init, update)


def add_decayed_weights(penalty: str = "l2_penalty") -> Optimizer:
    """Returns `g <- g + 2 l2_penalty w`: the gradient of `l2_penalty sum(w^2)` added to the loss's.

    It stands before the optimizer in a chain, so the optimizer rescales it; `adamw` decays beside it. The usual
    "weight decay" number of this form is twice the penalty.

    Args:
      penalty: name of the swept coefficient.
    """
    return Optimizer({penalty: Range(0.0)}, lambda hyper: optax.add_decayed_weights(2.0 * hyper[penalty]))


def clip_by_global_norm() -> Optimizer:
    """Returns `g <- g min(1, clip_norm / |g|)`, |g| over all parameters together; it stands first in a chain.

    The direction is kept whatever the norm, also where its square overflows. A number that is not finite becomes NaN.
    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1, https://arxiv.org/abs/1211.5063.
    """

    def make_tx(values: Hyper) -> optax.GradientTransformation:
        return optax.stateless(lambda grads, params: _with_norm_at_most(grads, values["clip_norm"]))

    return Optimizer({"clip_norm": _POSITIVE}, make_tx)


def _with_norm_at_most(grads: optax.Updates, clip_norm: jax.Array) -> optax.Updates:
    """`g min(1, clip_norm / |g|)`; all is divided by the largest number first, so that no square overflows.

    The divisor is one whose inverse is a normal number, because XLA may multiply by the inverse.
    """
    leaves = jax.tree.leaves(grads)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]).max() if leaves else jnp.zeros(())
    smallest_normal = float(jnp.finfo(largest.dtype).tiny)
    largest = jnp.clip(largest, smallest_normal, 1 / smallest_normal)
    scaled = jax.tree.map(lambda leaf: leaf / largest, grads)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(scaled)))  # in units of the largest
    is_short = largest * norm <= clip_norm
    return jax.tree.map(lambda leaf, unit: jnp.where(is_short, leaf, unit * (clip_norm / norm)), grads, scaled)


def clip_by_value() -> Optimizer:
    """Returns `g <- min(max(g, -clip_value), clip_value)`, number by number: it also turns the gradient."""
    return Optimizer({"clip_value": _POSITIVE}, lambda hyper: optax.clip(hyper["clip_value"]))


def chain(*optimizers: Optimizer) -> Optimizer:
    """Returns the optimizers one after another, with all their swept numbers.

    Raises:
      ValueError: where two of them read the same name.
    """
    hyper: dict[str, Range] = {}
    for optimizer in optimizers:
        for name in sorted(optimizer.hyper.keys() & hyper.keys()):
            raise ValueError(
                f"chain: two optimizers both read {name!r} and would share its values; give one of them a name of its "
                f"own, such as renamed(optimizer, {name}='second_{name}')"
            )
        hyper |= optimizer.hyper
    return Optimizer(hyper, lambda values: optax.chain(*(each.make_tx(values) for each in optimizers)))


def renamed(optimizer: Optimizer, **names: str) -> Optimizer:
    """Returns the optimizer whose swept numbers have other names: `renamed(adam(), learning_rate="critic_rate")`.

    Args:
      optimizer: whose numbers are renamed.
      names: its name -> the new one; the others keep theirs.

    Raises:
      ValueError: where the optimizer has no number of that name, or two would get the same.
    """
    if unknown := sorted(names.keys() - optimizer.hyper.keys()):
        known = ", ".join(sorted(optimizer.hyper))
        raise ValueError(f"renamed: the optimizer has no {', '.join(unknown)}; it has {known}")
    new_names = {name: names.get(name, name) for name in optimizer.hyper}
    if len(set(new_names.values())) < len(new_names):
        raise ValueError(f"renamed: two numbers would have the same name, got {', '.join(sorted(new_names.values()))}")

    def make_tx(values: Hyper) -> optax.GradientTransformation:
        return optimizer.make_tx({name: values[new] for name, new in new_names.items()})

    return Optimizer({new_names[name]: legal for name, legal in optimizer.hyper.items()}, make_tx)


def with_defaults(optimizer: Optimizer, **values: float) -> Optimizer:
    """Returns the optimizer with values for runs whose grid does not name them.

    `with_defaults(sgd(), learning_rate=0.1)` can be run without an axis of rates.

    Raises:
      ValueError: where the optimizer has no number of that name, or the value is out of its range.
    """
    hyper = dict(optimizer.hyper)
    for name, value in values.items():
        if name not in hyper:
            raise ValueError(f"with_defaults: the optimizer has no {name}; it has {', '.join(sorted(hyper))}")
        if value not in hyper[name]:
            raise ValueError(f"with_defaults: {name} must be {hyper[name]}, got {value!r}")
        hyper[name] = hyper[name]._replace(default=value)
    return optimizer._replace(hyper=hyper)


def from_name(name: str, schedule: Schedule | None = None) -> Optimizer:
    """Returns sgd, momentum, rmsprop, adam or adamw with its defaults.

    Raises:
      ValueError: on another name.
    """
    optimizers = {each.__name__: each for each in (sgd, momentum, rmsprop, adam, adamw)}
    if name not in optimizers:
        raise ValueError(f"from_name: no optimizer named {name!r}; there are {', '.join(optimizers)}")
    return optimizers[name](schedule)
