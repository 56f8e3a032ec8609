"""The programs of a group: what one run does, vmapped over runs, spread over devices and compiled.

A group has a program that initializes its runs, and one or two that make steps and evaluate. `lower` traces them,
`of` makes callable `Programs` of what was compiled. This is the one place where runs are vmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dlexp import keys
from dlexp.ops import compiler, storage
from dlexp.ops.choices import with_choices
from dlexp.sweep import machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Run
from dlexp.sweep.plan import Group
from dlexp.types import Learner, PyTree

STEPS_DRAWN = 16  # steps whose batches and keys are drawn at once; drawing for more gains nothing
_NEVER = 2**30  # an interval between evaluations that is longer than any training


class Carry(NamedTuple):
    """What a run takes from one call to the next.

    Attributes:
      state: the learner's.
      nonfinite_at: first step with a non-finite metric, -1 as long as there is none.
      means: of the update's metrics over the steps since the last evaluation.
    """

    state: PyTree
    nonfinite_at: jax.Array
    means: PyTree


class Evaluation(NamedTuple):
    """What is known of runs at one step: `evaluate`'s metrics, and copies of two parts of the carry."""

    metrics: dict[str, jax.Array]
    means: PyTree
    nonfinite_at: jax.Array


class Programs(NamedTuple):
    """What a group's runs do together, compiled.

    Attributes:
      initialize: `(seeds, hyper, data) -> carry`; one seed alone where the runs of a call share it.
      segment: `(seeds, hyper, data, carry, start, stop, interval) -> (carry, evaluations)`: makes the steps from start
        to stop, and evaluates after each step whose number is a multiple of `interval`, at most `group.num_kept` times.
        `start = before_first_step(interval)` evaluates at step 0, too. The carry's buffers are donated.
        `evaluations()` waits for the results.
    """

    initialize: Callable[..., Carry]
    segment: Callable[..., tuple[Carry, Callable[[], list[Evaluation]]]]


class Lowered(NamedTuple):
    """A program, traced but not compiled, and the options with which XLA is to compile it."""

    program: Any
    options: Mapping[str, Any]

    def compile(self) -> Any:
        """Returns the executable."""
        return self.program.compile(compiler_options=dict(self.options))


def of(group: Group, compiled: Sequence[Callable]) -> Programs:
    """Returns the programs from what was compiled of what `lower` returned."""
    initialize, *others = compiled
    if group.learner.update is None:
        return Programs(initialize, _evaluation_alone(*others))
    return Programs(initialize, _step_by_step(*others) if group.layout.stepwise else _many_intervals(*others))


def steps(group: Group, compiled: Callable) -> Callable[..., Carry]:
    """Returns `(seeds, hyper, data, carry, start, stop) -> carry`, no evaluations, from the second program."""
    segment = _step_by_step(compiled) if group.layout.stepwise else _many_intervals(compiled)
    return lambda *args: segment(*args, _NEVER)[0]


def before_first_step(interval: int) -> int:
    """Returns the `start` of a segment that begins with the evaluation at step 0.

    It is one interval before step 0. No steps are made there, but the end of that interval is evaluated like any other.
    """
    return -interval


def pieces(start: int, stop: int, interval: int) -> Iterator[tuple[int, int, bool]]:
    """Yields the steps from start to stop, cut at the ends of intervals: `(first, end, whether an interval ends)`."""
    while start < stop:
        end = min(stop, start - start % interval + interval)
        yield start, end, end % interval == 0
        start = end


def _many_intervals(compiled: Callable) -> Callable:
    def segment(*args: Any) -> tuple[Carry, Callable[[], list[Evaluation]]]:
        *fixed, carry, start, stop, interval = args
        num_kept = stop // interval - start // interval
        carry, kept = compiled(*fixed, carry, *map(np.int32, (start, stop, interval)))

        def evaluations() -> list[Evaluation]:
            on_host = jax.tree.map(np.asarray, kept)
            return [jax.tree.map(lambda leaf, index=index: leaf[:, index], on_host) for index in range(num_kept)]

        return carry, evaluations

    return segment


def _step_by_step(step: Callable, evaluate: Callable | None = None) -> Callable:
    """A call a step: some programs (convolutions on a CPU) are much slower inside a compiled loop."""

    def segment(*args: Any) -> tuple[Carry, Callable[[], list[Evaluation]]]:
        *fixed, carry, start, stop, interval = args
        kept = []
        for first, end, is_evaluated in pieces(start, stop, interval):
            for index in range(max(first, 0), end):
                carry = step(*fixed, carry, np.int32(first - first % interval), np.int32(index))
            if evaluate and is_evaluated:
                kept.append(evaluate(*fixed, carry))
        return carry, lambda: kept

    return segment


def _evaluation_alone(evaluate: Callable) -> Callable:
    """Where nothing is trained."""

    def segment(*args: Any) -> tuple[Carry, Callable[[], list[Evaluation]]]:
        *fixed, carry, _start, _stop, _interval = args
        kept = [evaluate(*fixed, carry)]
        return carry, lambda: kept

    return segment


def arguments(group: Group, runs: Sequence[Run], sharding: NamedSharding) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns seeds and swept values of a chunk, padded to the full width by repeating the last run.

    Where the runs of a call share a seed, the seed of the first alone.
    """
    learner, everywhere = group.learner, NamedSharding(sharding.mesh, PartitionSpec())
    padded = [*runs, *[runs[-1]] * (group.width * sharding.mesh.size - len(runs))]
    seeds = np.array([run.seed for run in padded], np.uint32)
    points = [planning.full_hyper(learner, run) for run in padded]
    hyper = {
        name: np.array([point[name] for point in points], planning.hyper_dtype(learner, name))
        for name in sorted(learner.hyper)
    }
    if group.layout.shares_seed:
        return jax.device_put(seeds[0], everywhere), jax.device_put(hyper, sharding)
    return jax.device_put((seeds, hyper), sharding)


def lower(group: Group, mesh: jax.sharding.Mesh) -> list[Lowered]:
    """Returns the group's programs, traced but not compiled: initialize, then what `of` makes its segments of.

    That is the evaluation where nothing is trained; a step and the evaluation where the layout is step by step; else
    one program of steps and evaluations.
    """
    chosen = dict(group.layout.choices)
    way_to_update = chosen.get("optimizer", group.choices.get("optimizer", (compiler.PASSES,))[0])
    with compiler.tracing_for(mesh.devices.flat[0].platform), with_choices(chosen), machine.usual_promotion():
        initialize, *others = _lower(group, mesh)
        first, options = compiler.compiler_options(), compiler.compiler_options(way_to_update)
    return [Lowered(initialize, first), *(Lowered(program, options) for program in others)]


def _lower(group: Group, mesh: jax.sharding.Mesh) -> list[Any]:
    learner, fixed = group.learner, _fixed_arguments(group, mesh)
    of_runs = (not group.layout.shares_seed, True, False)  # seeds, hyper, data
    initialize = _over_runs(_initialize(learner), mesh, of_runs, _one_after_another)
    evaluate = _over_runs(_evaluate(learner), mesh, (*of_runs, True))
    over_runs, everywhere = NamedSharding(mesh, PartitionSpec("run")), NamedSharding(mesh, PartitionSpec())
    # XLA spreads no array of size 0: one that a program returns is the same on all devices.
    made = jax.eval_shape(initialize, *fixed)
    carry = jax.tree.map(lambda leaf: _placed_shape(over_runs if leaf.size else everywhere)(leaf), made)
    step = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
    initialized = jax.jit(initialize).lower(*fixed)
    if learner.update is None:
        return [initialized, jax.jit(evaluate).lower(*fixed, carry)]
    if group.layout.stepwise:
        one_step = _over_runs(_one_step(learner), mesh, (*of_runs, True, False, False))
        stepped = jax.jit(one_step, donate_argnums=3).lower(*fixed, carry, step, step)
        return [initialized, stepped, jax.jit(evaluate).lower(*fixed, carry)]
    segment = _over_runs(_segment(learner, group.num_kept), mesh, (*of_runs, True, False, False, False))
    return [initialized, jax.jit(segment, donate_argnums=3).lower(*fixed, carry, step, step, step)]


def _fixed_arguments(group: Group, mesh: jax.sharding.Mesh) -> tuple[Any, dict[str, Any], PyTree]:
    """The shapes of seeds, hyper and data, which are arguments of every program, and where they are placed."""
    learner, num_rows = group.learner, group.width * mesh.size
    over_runs, everywhere = NamedSharding(mesh, PartitionSpec("run")), NamedSharding(mesh, PartitionSpec())

    def of_each_run(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_rows,), dtype, sharding=over_runs)

    one_seed = jax.ShapeDtypeStruct((), np.uint32, sharding=everywhere)
    seeds = one_seed if group.layout.shares_seed else of_each_run(np.uint32)
    hyper = {name: of_each_run(planning.hyper_dtype(learner, name)) for name in sorted(learner.hyper)}
    return seeds, hyper, jax.tree.map(_placed_shape(everywhere), learner.data)


def _placed_shape(sharding: NamedSharding) -> Callable[[Any], jax.ShapeDtypeStruct]:
    return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, planning.placed_dtype(leaf), sharding=sharding)


def _over_runs(
    function: Callable, mesh: jax.sharding.Mesh, of_runs: Sequence[bool], vmap: Callable = jax.vmap
) -> Callable:
    """The function of one run as a function of many, spread over the devices.

    Args:
      function: of one run.
      mesh: the devices.
      of_runs: of each argument, whether it has an axis of runs; the others are the same for all runs.
      vmap: `(function, in_axes) -> function` over runs.
    """
    axes = tuple(0 if is_of_runs else None for is_of_runs in of_runs)
    specs = tuple(PartitionSpec("run") if is_of_runs else PartitionSpec() for is_of_runs in of_runs)
    many = vmap(function, axes)
    return jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("run"), check_vma=False)


def to_host(carry: PyTree) -> list[np.ndarray]:
    """Returns the leaves of what runs take from call to call, `[row, ...]`; random keys as the words that make them."""
    return [np.asarray(_words(leaf)) for leaf in jax.tree.leaves(carry)]


def to_devices(leaves: Sequence[np.ndarray], like: PyTree) -> PyTree:
    """Returns host leaves in the places of those of `like`, a carry of equal shapes."""
    expected, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [_placed(*pair) for pair in zip(leaves, expected, strict=True)])


def fits(leaves: Sequence[np.ndarray], like: PyTree) -> bool:
    """Whether host leaves are of the shapes and dtypes of `like`."""
    expected = [(words.shape, words.dtype) for words in map(_words, jax.tree.leaves(like))]
    return [(leaf.shape, leaf.dtype) for leaf in leaves] == expected


def _placed(leaf: np.ndarray, like: jax.Array) -> jax.Array:
    if not _is_key(like):
        return jax.device_put(leaf, like.sharding)
    words = jax.device_put(leaf, _words(like).sharding)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(like))


def _words(leaf: jax.Array) -> jax.Array:
    """The numbers a random key is made of; any other array as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: jax.Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _one_after_another(function: Callable, axes: tuple[int | None, ...]) -> Callable:
    """Like vmap, one run at a time: jax 0.10 hangs on a vmapped QR inside shard_map over several CPU devices."""

    def over_runs(*args: Any) -> Any:
        batched = tuple(arg for arg, axis in zip(args, axes, strict=True) if axis == 0)

        def one(batched: tuple) -> Any:
            remaining = iter(batched)
            return function(*(next(remaining) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)))

        return jax.lax.map(one, batched)

    return over_runs


def _initialize(learner: Learner) -> Callable[..., Carry]:
    def initialize(seed: jax.Array, hyper: Any, data: Any) -> Carry:
        key = keys.of_run(seed, keys.INIT)
        state = learner.init(key, hyper, data)
        means: Any = {}
        if learner.update is not None:
            _, metrics = jax.eval_shape(learner.step, key, hyper, data, state, np.int32(0))
            means = jax.tree.map(_zero_mean, dict(metrics))
        return Carry(state, jnp.full((), -1, jnp.int32), means)

    return initialize


def _one_step(learner: Learner) -> Callable[..., Carry]:
    """Step `index`, in the interval that begins at `origin`."""
    make_step = _step(learner)

    def one_step(seed: jax.Array, hyper: Any, data: Any, carry: Carry, origin: jax.Array, index: jax.Array) -> Carry:
        drawn = learner.told(learner.draw, index)(
            jax.random.fold_in(keys.of_run(seed, keys.UPDATE), index), hyper, data
        )
        return make_step(drawn, hyper, data, carry, origin, index)

    return one_step


def _step(learner: Learner) -> Callable[..., Carry]:
    assert learner.update is not None
    update = learner.update

    def step(drawn: PyTree, hyper: Any, data: Any, carry: Carry, origin: jax.Array, index: jax.Array) -> Carry:
        state, metrics = learner.told(update, index)(drawn, hyper, data, carry.state)
        first_time = (carry.nonfinite_at < 0) & ~_all_finite(metrics)
        nonfinite_at = jnp.where(first_time, index + 1, carry.nonfinite_at)
        means = jax.tree.map(_running_mean(index - origin), carry.means, dict(metrics))
        return Carry(state, nonfinite_at, means)

    return step


def _steps(learner: Learner) -> Callable[..., Carry]:
    """The steps from `first` to `end`, all in the interval that begins at `origin`; drawn for 16 steps at a time.

    The carry is stored as `storage.enter` returns it, before and after.
    """
    make_step = _step(learner)

    def steps(
        seed: jax.Array, hyper: Any, data: Any, carry: Carry, origin: jax.Array, first: jax.Array, end: jax.Array
    ) -> Carry:
        key = keys.of_run(seed, keys.UPDATE)

        def draw(index: jax.Array) -> PyTree:
            return learner.told(learner.draw, index)(jax.random.fold_in(key, index), hyper, data)

        def some_steps(number: jax.Array, carry: Carry) -> Carry:
            begin = first + number * STEPS_DRAWN
            drawn = jax.vmap(draw)(begin + jnp.arange(STEPS_DRAWN))

            def step(index: jax.Array, carry: Carry) -> Carry:
                own = jax.tree.map(lambda leaf: leaf[index - begin], drawn)
                return make_step(own, hyper, data, carry, origin, index)

            return jax.lax.fori_loop(begin, jnp.minimum(begin + STEPS_DRAWN, end), storage.body(step), carry)

        return jax.lax.fori_loop(0, -((first - end) // STEPS_DRAWN), some_steps, carry)

    return steps


def _segment(learner: Learner, num_kept: int) -> Callable[..., tuple[Carry, Evaluation]]:
    """Steps `start` to `stop`, evaluated at multiples of `interval`. All three are arguments: one program fits any.

    Evaluations are inside the program because a call costs about a millisecond on a CPU, whatever it does.
    """
    make_steps, evaluate = _steps(learner), _evaluate(learner)

    def segment(
        seed: jax.Array, hyper: Any, data: Any, carry: Carry, start: jax.Array, stop: jax.Array, interval: jax.Array
    ) -> tuple[Carry, Evaluation]:
        one = jax.eval_shape(evaluate, seed, hyper, data, carry)
        kept = jax.tree.map(lambda leaf: jnp.zeros((num_kept, *leaf.shape), leaf.dtype), one)

        def piece(number: jax.Array, carry_and_kept: tuple[Carry, Evaluation]) -> tuple[Carry, Evaluation]:
            carry, kept = carry_and_kept
            origin = (start // interval + number) * interval
            end = origin + interval
            first = jnp.maximum(jnp.maximum(origin, start), 0)
            carry = make_steps(seed, hyper, data, carry, origin, first, jnp.minimum(end, stop))

            def keep(kept: Evaluation) -> Evaluation:
                made = evaluate(seed, hyper, data, storage.leave(carry))
                return jax.tree.map(lambda all_, one: all_.at[number].set(one), kept, made)

            return carry, jax.lax.cond(end <= stop, keep, lambda kept: kept, kept)

        num_pieces = -(-stop // interval) - start // interval
        carry, kept = jax.lax.fori_loop(0, num_pieces, piece, (storage.enter(carry), kept))
        return storage.leave(carry), kept

    return segment


def _zero_mean(metric: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(metric.shape, jnp.result_type(metric.dtype, jnp.float32))


def _running_mean(count: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Puts the next of numbers into the mean of `count` before it; a mean, unlike a sum, does not overflow."""
    return lambda mean, value: jnp.where(count == 0, value, mean + (value - mean) / (count + 1)).astype(mean.dtype)


def _evaluate(learner: Learner) -> Callable[..., Evaluation]:
    def evaluate(seed: jax.Array, hyper: Any, data: Any, carry: Carry) -> Evaluation:
        metrics = dict(learner.evaluate(keys.of_run(seed, keys.EVALUATE), hyper, data, carry.state))
        wrong = [name for name in (*metrics, *carry.means) if "/" not in name]
        if wrong or metrics.keys() & carry.means.keys():
            raise ValueError(
                "a learner's metrics need names with a slash (test/accuracy), different in update and evaluate; "
                f"got {sorted(carry.means)} and {sorted(metrics)}"
            )
        return Evaluation(metrics, *jax.tree.map(jnp.copy, (carry.means, carry.nonfinite_at)))

    return evaluate


def _all_finite(metrics: PyTree) -> jax.Array:
    checks = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics)]
    return jnp.stack(checks).all() if checks else jnp.ones((), bool)


def compile_once_in(pool: ThreadPoolExecutor) -> Callable[[Lowered], Future]:
    """Compiles lowered programs in the background; equal ones share an executable.

    Programs of equal text that are called with other trees (the evaluation of another optimizer's state, say) are
    compiled after the first, so that the compile cache on disk answers for them.
    """
    shared: MutableMapping[Any, Future] = WeakValueDictionary()  # a sweep of many groups keeps few programs
    first_with: MutableMapping[str, Future] = WeakValueDictionary()

    def after(first: Future, lowered: Lowered) -> Any:
        first.result()
        return lowered.compile()

    def submit(lowered: Lowered) -> Future:
        text = f"{lowered.options} {lowered.program.as_text()}"
        key = (text, lowered.program.in_tree, lowered.program.out_tree)
        future = shared.get(key)
        if future is None:
            first = first_with.get(text)
            future = pool.submit(after, first, lowered) if first else pool.submit(lowered.compile)
            shared[key] = future
            first_with.setdefault(text, future)
        return future

    return submit
