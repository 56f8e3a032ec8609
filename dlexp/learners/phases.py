"""Training that begins where another ended: in phases, or from weights trained once a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlexp import keys
from dlexp.types import Hyper, Key, Learner, Metrics, PyTree

Handover = Callable[[PyTree, PyTree], PyTree]  # (the state that was reached, the state that would begin) -> the state


class Phases(NamedTuple):
    """One run of two phases: how many steps were made, and the state of the learner before and after the change."""

    step: jax.Array
    before: PyTree
    after: PyTree


class OfSeeds(NamedTuple):
    """What was trained once a seed, as arrays of the host.

    Attributes:
      words: what tells the seeds apart: the words of each one's initial key, `[seed, word]`.
      states: the learner's state after training, `[seed, ...]`.
    """

    words: np.ndarray
    states: PyTree


def with_weights(reached: PyTree, beginning: PyTree) -> PyTree:
    """Returns the beginning state with the weights that were reached (`params` and, where both have it, `rest`)."""
    names = [name for name in ("params", "rest") if hasattr(reached, name) and hasattr(beginning, name)]
    return beginning._replace(**{name: getattr(reached, name) for name in names})


def in_phases(first: Learner, second: Learner, *, at: int, handover: Handover = with_weights) -> Learner:
    """Returns the learner that makes `at` steps of the first learner, then steps of the second.

    Only the learner whose turn it is computes, so a step costs what that one costs. Metrics are those of the learner
    whose turn it is; at step `at`, the second's. Where the first phase depends on the seed alone, `once_a_seed` trains
    it once for all runs of a seed.

    Args:
      first: the learner of the steps before `at`.
      second: the learner from there on. Its data and swept values are beside the first's; a name that both read is one
        value for both.
      at: the step of the change, at least 1.
      handover: `(state the first reached, state the second would begin with) -> state the second begins with`. Default:
        the weights go on, everything else begins anew.

    Raises:
      ValueError: where `at` is no positive integer, a learner trains nothing, or both read a name with two ranges; when
        it is traced, where the two measure different metrics.
    """
    _check_phases(first, second, at)
    first_update, second_update = first.update, second.update
    assert first_update is not None
    assert second_update is not None

    def init(key: Key, hyper: Hyper, data: PyTree) -> Phases:
        before = first.init(key, hyper, data[0])
        after = second.init(jax.random.fold_in(key, 1), hyper, data[1])
        return Phases(jnp.zeros((), jnp.int32), before, after)

    def draw(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        return first.draw(key, hyper, data[0]), second.draw(key, hyper, data[1])

    def update(drawn: PyTree, hyper: Hyper, data: PyTree, state: Phases) -> tuple[Phases, Metrics]:
        def update_first(state: Phases) -> tuple[Phases, Metrics]:
            before, metrics = first_update(drawn[0], hyper, data[0], state.before)
            handed = handover(before, state.after)
            is_over = state.step + 1 == at
            after = jax.tree.map(lambda new, old: jnp.where(is_over, new, old), handed, state.after)
            return Phases(state.step + 1, before, after), dict(metrics)

        def update_second(state: Phases) -> tuple[Phases, Metrics]:
            after, metrics = second_update(drawn[1], hyper, data[1], state.after)
            return Phases(state.step + 1, state.before, after), dict(metrics)

        return _one_of(state.step < at, update_first, update_second, state)

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: Phases) -> Metrics:
        def evaluate_first(state: Phases) -> tuple[Phases, Metrics]:
            return _used_up(state), dict(first.evaluate(key, hyper, data[0], state.before))

        def evaluate_second(state: Phases) -> tuple[Phases, Metrics]:
            return _used_up(state), dict(second.evaluate(key, hyper, data[1], state.after))

        return _one_of(state.step < at, evaluate_first, evaluate_second, state)[1]

    return Learner((first.data, second.data), {**first.hyper, **second.hyper}, init, update, evaluate, draw)


def once_a_seed(learner: Learner, seeds: Sequence[int], num_steps: int, hyper: Mapping[str, float]) -> OfSeeds:
    """Returns what a learner reaches from each seed, trained here and now, all seeds at once.

    A seed's batches and initial weights are those of the same learner in a sweep. Call it once (`functools.cache`) and
    give the result to `starting_from`.

    Args:
      learner: what is trained.
      seeds: the seeds of the sweep that begins with it.
      num_steps: how many steps.
      hyper: a value for each swept number without a default.

    Raises:
      ValueError: where a swept value is missing, unknown or out of its range, or a seed leaves the finite numbers.
    """
    update, values = learner.update, _full_hyper(learner, hyper)
    if update is None or num_steps < 1:
        raise ValueError("once_a_seed: nothing would be trained; give it a learner with an update and num_steps >= 1")

    def trained(seed: jax.Array, data: PyTree) -> PyTree:
        def step(index: jax.Array, state: PyTree) -> PyTree:
            drawn = learner.draw(jax.random.fold_in(keys.of_run(seed, keys.UPDATE), index), values, data)
            return update(drawn, values, data, state)[0]

        return jax.lax.fori_loop(0, num_steps, step, learner.init(keys.of_run(seed, keys.INIT), values, data))

    numbers = np.array(list(seeds), np.uint32)
    states = jax.device_get(jax.jit(jax.vmap(trained, in_axes=(0, None)))(numbers, learner.data))
    for seed, row in zip(seeds, range(len(numbers)), strict=True):
        if not all(np.isfinite(leaf[row]).all() for leaf in jax.tree.leaves(states)):
            raise ValueError(
                f"once_a_seed: seed {seed} leaves the finite numbers within {num_steps} steps; lower the rate"
            )
    return OfSeeds(np.array(jax.vmap(_words)(numbers)), states)


def starting_from(learner: Learner, trained: OfSeeds, *, handover: Handover = with_weights) -> Learner:
    """Returns the learner whose runs begin with what was trained for their seed.

    A run whose seed was not trained is NaN from the start, so that its status is `nonfinite`.

    Args:
      learner: the learner that begins; its data are passed beside the trained states.
      trained: what `once_a_seed` returned.
      handover: `(trained state of the seed, the learner's own initial state) -> initial state`. Default: the weights
        are the trained ones.
    """

    def init(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        own, (words, states) = data
        is_this = jnp.all(words == jax.random.key_data(key), axis=-1)
        row, is_trained = jnp.argmax(is_this), jnp.any(is_this)
        reached = jax.tree.map(lambda leaf: _or_nan(is_trained, leaf[row]), states)
        return handover(reached, learner.init(key, hyper, own))

    return learner._replace(
        data=(learner.data, trained),
        init=init,
        update=learner.update and _of_first(learner.update),
        evaluate=_of_first(learner.evaluate),
        draw=lambda key, hyper, data: learner.draw(key, hyper, data[0]),
    )


def _check_phases(first: Learner, second: Learner, at: int) -> None:
    if not isinstance(at, int) or at < 1:
        raise ValueError(f"in_phases: at must be an integer of at least 1, got {at!r}")
    if first.update is None or second.update is None:
        raise ValueError("in_phases: a learner has no update, so there is nothing to train in its phase")
    for name in sorted(first.hyper.keys() & second.hyper.keys()):
        if first.hyper[name] != second.hyper[name]:
            raise ValueError(f"in_phases: both learners read {name!r} with different ranges; rename one of them")


def _one_of(
    is_first: jax.Array,
    first: Callable[[Phases], tuple[Phases, Metrics]],
    second: Callable[[Phases], tuple[Phases, Metrics]],
    state: Phases,
) -> tuple[Phases, Metrics]:
    """Returns `first(state)` or `second(state)`, and computes that one alone.

    `jax.lax.cond` would compute both: over many runs at once it becomes a choice between two results. A loop of at
    most one iteration runs as long as any run asks for it, and all runs ask for the same. The functions change the
    state, or XLA would compute their metrics before the loop, whether it runs or not.
    """
    measured = [jax.eval_shape(function, state)[1] for function in (first, second)]
    trees: list[Any] = [jax.tree.structure(each) for each in measured]
    if trees[0] != trees[1]:
        names = [sorted(each) for each in measured]
        raise ValueError(f"in_phases: both learners must measure the same, got {names[0]} and {names[1]}")
    made = state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), measured[0])
    for is_asked, function in ((is_first, first), (~is_first, second)):
        made = _if(is_asked, function, made)
    return made


def _if(
    is_asked: jax.Array, function: Callable[[Phases], tuple[Phases, Metrics]], made: tuple[Phases, Metrics]
) -> tuple[Phases, Metrics]:
    def once(carry: tuple[jax.Array, tuple[Phases, Metrics]]) -> tuple[jax.Array, tuple[Phases, Metrics]]:
        return jnp.zeros_like(carry[0]), function(carry[1][0])

    return jax.lax.while_loop(lambda carry: carry[0], once, (is_asked, made))[1]


def _used_up(state: Phases) -> Phases:
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, state)


def _full_hyper(learner: Learner, hyper: Mapping[str, float]) -> dict[str, jax.Array]:
    if unknown := sorted(hyper.keys() - learner.hyper.keys()):
        raise ValueError(f"once_a_seed: the learner reads {sorted(learner.hyper)}, not {unknown}")
    values = {}
    for name, legal in learner.hyper.items():
        value = hyper.get(name, legal.default)
        if value is None or value not in legal:
            raise ValueError(f"once_a_seed: {name} must be {legal}, got {value!r}")
        values[name] = jnp.asarray(value, jnp.int32 if legal.integer else float)
    return values


def _words(seed: Any) -> jax.Array:
    return jax.random.key_data(keys.of_run(seed, keys.INIT))


def _or_nan(is_known: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.where(is_known, leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _of_first(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    return lambda first, hyper, data, state: function(first, hyper, data[0], state)
