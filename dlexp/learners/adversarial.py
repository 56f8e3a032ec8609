"""The learner of two players, each with a loss and an optimizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlexp.learners import batches, checks
from dlexp.learners.descent import one_number
from dlexp.types import Hyper, Key, Learner, Metrics, PyTree, Range


class Players(NamedTuple):
    """Something that both players have: parameters, losses, optimizers, optimizer states."""

    generator: Any
    critic: Any


class AdversarialState(NamedTuple):
    """One run between two steps: the parameters of both players, and the states of their optimizers."""

    params: Players
    opt_state: Players


def adversarial(
    init: Callable[[Key, Hyper, PyTree], Players],
    losses: Players,
    optimizers: Players,
    *,
    evaluate: Callable[[Key, Hyper, PyTree, AdversarialState], Metrics],
    data: PyTree = (),
    batch_size: int | None = None,
    critic_steps: int = 1,
    simultaneous: bool = False,
    hyper: Mapping[str, Range] | None = None,
) -> Learner:
    """Returns the learner in which each player moves its own parameters down its own loss.

    A step is `critic_steps` steps of the critic, each on a batch of its own, then one of the generator. Metrics:
    `batch/critic_loss` (the mean over its steps) and `batch/generator_loss`, each before its player moves.

    Source: Goodfellow et al., "Generative Adversarial Nets", 2014, algorithm 1, https://arxiv.org/abs/1406.2661.

    Args:
      init: `(key, hyper, data) -> Players(generator, critic)`, their parameters.
      losses: of each player, `(key, hyper, data, params) -> number`, with both players' parameters in `params`.
      optimizers: of each player. `optim.renamed` gives their rates names of their own; a name that both read is one
        value for both.
      evaluate: `(key, hyper, data, state) -> metrics`, with an `AdversarialState`.
      data: pytree of arrays, the same for all runs; () where there are none.
      batch_size: rows of every array in `data` that a loss sees, drawn with replacement by the seed and the step alone;
        None is all data.
      critic_steps: steps of the critic before each of the generator.
      simultaneous: whether both players move at once, by gradients at the same point.
      hyper: what else may be swept.

    Raises:
      ValueError: where both optimizers read `learning_rate`, or a name with two ranges; the batch does not fit the
        data, or data are not finite; a loss is not one number; or `simultaneous` meets several critic steps.
      TypeError: where the data are no arrays.
    """
    _check("adversarial", optimizers, critic_steps, simultaneous)
    swept = {**optimizers.generator.hyper, **optimizers.critic.hyper}
    checks.check_names("adversarial", hyper or {}, swept)
    checks.check_numbers("adversarial", {"data": data})
    batches.check_batch_size("adversarial", batch_size, data)

    def begin(key: Key, hyper: Hyper, data: PyTree) -> AdversarialState:
        params = Players(*init(key, hyper, data))
        states = (optimizer.make_tx(hyper).init(own) for optimizer, own in zip(optimizers, params, strict=True))
        return AdversarialState(params, Players(*states))

    def move(name: str, batch: batches.Batch, hyper: Hyper, data: PyTree, state: AdversarialState) -> tuple:
        """The player's loss, and its parameters and optimizer's state after a step."""
        loss, tx = getattr(losses, name), getattr(optimizers, name).make_tx(hyper)

        def own_loss(own: PyTree) -> jax.Array:
            params = state.params._replace(**{name: own})
            return one_number("adversarial", loss(batch.key, hyper, batch.of(data), params))

        own, opt_state = getattr(state.params, name), getattr(state.opt_state, name)
        value, grads = jax.value_and_grad(own_loss)(own)
        updates, opt_state = tx.update(grads, opt_state, own)
        return value, optax.apply_updates(own, updates), opt_state

    def update(
        drawn: batches.Batch, hyper: Hyper, data: PyTree, state: AdversarialState
    ) -> tuple[AdversarialState, Metrics]:
        def critic_step(state: AdversarialState, batch: batches.Batch) -> tuple[AdversarialState, jax.Array]:
            value, *moved = move("critic", batch, hyper, data, state)
            return _replaced(state, "critic", *moved), value

        before, last = state, jax.tree.map(lambda each: each[-1], drawn)
        others = jax.tree.map(lambda each: each[:-1], drawn)
        state, critic_losses = jax.lax.scan(critic_step, state, others)
        value, *moved = move("generator", last, hyper, data, before if simultaneous else state)
        state = _replaced(state, "generator", *moved)
        return state, {"batch/critic_loss": jnp.mean(critic_losses), "batch/generator_loss": value}

    draw_one = batches.draw_batches(batch_size)

    def draw(key: Key, hyper: Hyper, data: PyTree) -> batches.Batch:
        keys = jax.random.split(key, critic_steps + 1)
        return jax.vmap(lambda key: draw_one(key, hyper, data))(keys)

    return Learner(data, {**(hyper or {}), **swept}, begin, update, evaluate, draw)


def _check(caller: str, optimizers: Players, critic_steps: int, simultaneous: bool) -> None:
    if not isinstance(critic_steps, int) or critic_steps < 1:
        raise ValueError(f"{caller}: critic_steps must be an integer of at least 1, got {critic_steps!r}")
    if simultaneous and critic_steps > 1:
        raise ValueError(f"{caller}: players that move at once take one step each, got critic_steps={critic_steps}")
    generator, critic = (optimizer.hyper for optimizer in optimizers)
    for name in sorted(generator.keys() & critic.keys()):
        if name == "learning_rate" or generator[name] != critic[name]:
            raise ValueError(
                f"{caller}: both optimizers read {name!r}; give each a name of its own, such as "
                f"optim.renamed(optim.adam(), {name}='critic_{name}')"
            )


def _replaced(state: AdversarialState, name: str, own: PyTree, opt_state: PyTree) -> AdversarialState:
    return AdversarialState(state.params._replace(**{name: own}), state.opt_state._replace(**{name: opt_state}))
