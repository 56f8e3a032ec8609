"""How a sweep will be trained: its groups, the width of a call, what each costs. Nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlexp import choices, xla
from dlexp.sweep import cost, machine, pace
from dlexp.sweep.grids import GroupKey, Identity, Run, Runs
from dlexp.sweep.pace import Layout, Measured
from dlexp.types import Learner, Measurement, Range, Sweep, rounded_to

DEFAULT_WIDTH = {"cpu": 8, "gpu": 512, "tpu": 512}  # runs vmapped on one device unless measured otherwise
WIDEST = 128  # the same, at most, on a CPU where networks are so small that many cost no more than few
SMALL_BYTES = 8 * 2**20  # all intermediate values of a step of such networks, by the estimate
FULL_CALLS = 4  # at least, of a group that is begun wide: the last call is filled up, by a quarter at most
CACHED_BYTES = 24 * 2**20  # all intermediate values of a call on a CPU, by the estimate: more, and caches do not help
EVALUATIONS_KEPT = 16  # at most, by one call
KEPT_BYTES = 2**14  # of a run's evaluations, at most
MEMORY_SHARE = 0.5  # of a device's memory that one call may take by estimate


class Group(NamedTuple):
    """The runs of one config: what they do, how many, and how wide a call is.

    Attributes:
      family: config and swept names.
      learner: what a run does.
      runs: the grid's runs of this config, by number.
      layout: how its programs are made; fixed for the group.
      open: choice -> the options that its networks and optimizers leave open.
      program: names what its programs compute, on these devices: groups of equal name are equally fast.
      measured: how fast it was here before, None where it was not.
      num_params: numbers in the learner's `params`.
      state_bytes: of one run between steps.
      flops: of one run, training and evaluations.
      evaluation_flops: of one evaluation of one run.
      num_kept: evaluations that one call may make.
      measure: of a Measurement, whose learner only says what is swept.
    """

    family: GroupKey
    learner: Learner
    runs: Runs
    layout: Layout
    num_params: int
    state_bytes: int
    flops: float
    evaluation_flops: float = 0.0
    num_kept: int = 1
    open: Mapping[str, tuple[str, ...]] = {}
    program: str = ""
    measured: Measured | None = None
    measure: Callable[..., Mapping[str, Any]] | None = None

    @property
    def num_runs(self) -> int:
        """Runs of the grid in this group."""
        return len(self.runs)

    @property
    def seeds_with_num_runs(self) -> Mapping[int, int]:
        """How many seeds have how many runs: `{number of runs: number of seeds that have that many}`."""
        return self.runs.seeds_with_num_runs

    @property
    def width(self) -> int:
        """Runs vmapped on one device."""
        return self.layout.width

    def with_layout(self, layout: Layout) -> Group:
        """Returns the group laid out like this; a pace that was measured otherwise is dropped."""
        fits = self.measured is not None and self.measured.layout == layout
        return self._replace(layout=layout, measured=self.measured if fits else None)


class Plan(NamedTuple):
    """One sweep, laid out for the devices at hand."""

    identity: Identity
    sweep: Sweep
    groups: tuple[Group, ...]
    num_devices: int

    def runs(self, group: Group, among: np.ndarray | None = None) -> Iterator[tuple[str, Run]]:
        """Yields runs of a group with their ids, in the order in which they are trained.

        Args:
          group: of this plan.
          among: `[number]`, which of its runs, as `missing` says; None for all.
        """
        for numbers in group.runs.numbers(by_seed=group.layout.shares_seed):
            chosen = numbers if among is None else numbers[among[numbers]]
            if len(chosen):
                yield from zip(group.runs.ids(self.identity, chosen), group.runs.at(chosen), strict=True)

    def missing(self, done: Container[str]) -> tuple[np.ndarray, ...]:
        """Returns which runs of each group are not done, `[number]`: a byte a run; a million take about a second.

        Args:
          done: ids of runs.
        """
        return tuple(self._missing(group, done) for group in self.groups)

    def _missing(self, group: Group, done: Container[str]) -> np.ndarray:
        is_missing = np.zeros(group.runs.num_numbers, bool)
        for numbers in group.runs.numbers():
            is_missing[numbers] = [name not in done for name in group.runs.ids(self.identity, numbers)]
        return is_missing

    def evaluation_steps(self) -> list[int]:
        """Returns the steps at which runs are evaluated, 0 first."""
        interval = self.sweep.num_steps // self.sweep.num_evals
        return [interval * place for place in range(self.sweep.num_evals + 1 if interval else 1)]

    @property
    def num_runs(self) -> int:
        """Runs of the whole grid."""
        return sum(group.num_runs for group in self.groups)

    def num_chunks(self, group: Group, num_missing: int | None = None) -> int:
        """Returns how many calls train a group, or about how many train the runs that are missing of it."""
        rows, num_runs = group.width * self.num_devices, group.num_runs
        num_missing = num_runs if num_missing is None else num_missing
        if not group.layout.shares_seed:
            return -(-num_missing // rows)
        in_all = sum(seeds * -(-runs // rows) for runs, seeds in group.seeds_with_num_runs.items())
        return -(-in_all * num_missing // num_runs)

    def seconds(self, group: Group) -> float | None:
        """Returns how long a group will train, compilation not counted; None where it was not measured yet."""
        if group.measured is None:
            return None
        sweep = self.sweep
        return self.num_chunks(group) * group.measured.pace.seconds(sweep.num_steps, sweep.num_evals + 1)


def make(identity: Identity, sweep: Sweep, devices: list[jax.Device]) -> Plan:
    """Returns the plan of a sweep on these devices.

    Raises:
      ValueError: where the grid and the learner do not fit (an axis the learner does not read, a value out of its
        range, a value missing), or the evaluations do not divide the training evenly.
    """
    if sweep.num_evals < 1 or not 0 <= sweep.num_steps < 2**31:
        raise ValueError(
            f"sweep {identity.sweep}: num_evals must be at least 1 and num_steps in [0, 2^31), got {sweep.num_evals} "
            f"and {sweep.num_steps}"
        )
    if sweep.num_steps % sweep.num_evals:
        raise ValueError(
            f"sweep {identity.sweep}: num_steps must be a multiple of num_evals={sweep.num_evals}, "
            f"got {sweep.num_steps}; take {_nearest_multiple(sweep.num_steps, sweep.num_evals)}"
        )
    with machine.usual_promotion():
        groups = tuple(_group(identity, sweep, family, devices) for family in sweep.grid.families())
    return Plan(identity, sweep, groups, len(devices))


def full_hyper(learner: Learner, run: Run) -> dict[str, float]:
    """Returns a value for everything the learner reads: the run's own, else the default."""
    ordered = sorted(learner.hyper.items())
    return {name: run.hyper[name] if name in run.hyper else _default(name, legal) for name, legal in ordered}


def _default(name: str, legal: Range) -> float:
    if legal.default is None:
        raise ValueError(f"{name} has no default; give it values in the grid's hyper ({legal})")
    return legal.default


def placed_dtype(leaf: Any) -> Any:
    """Returns what a host array's numbers are on a device: float64 is float32 there unless JAX was told otherwise."""
    extended = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf.dtype if extended else jax.dtypes.canonicalize_dtype(leaf.dtype)


def hyper_dtype(learner: Learner, name: str) -> Any:
    """Returns int32 for integers, else JAX's float."""
    return np.int32 if learner.hyper[name].integer else jnp.result_type(float)


def _group(identity: Identity, sweep: Sweep, family: GroupKey, devices: list[jax.Device]) -> Group:
    try:
        learner = sweep.make_learner(family.config, sweep.num_steps)
    except KeyError as error:
        config = ", ".join(f"{name}={value!r}" for name, value in family.config.items())
        raise ValueError(
            f"sweep {identity.sweep}: the experiment knows no {error} ({config}); --help and the "
            "module's docstring say what there is, --sweep=NAME changes one sweep alone"
        ) from error
    _check(identity, sweep, family, learner)
    runs = sweep.grid.numbered(family)
    if isinstance(learner, Measurement):
        if sweep.num_steps:
            raise ValueError(f"sweep {identity.sweep}: a measurement takes no steps, so num_steps must be 0")
        idle = Learner({}, learner.hyper, _never, None, _never)
        return Group(family, idle, runs, Layout(1), 0, 0, 0.0, measure=learner.measure)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in jax.tree.leaves(learner.data)):
        raise TypeError(
            f"sweep {identity.sweep}: a learner's data must be arrays; wrap numbers and lists in np.asarray"
        )
    if not sweep.num_steps:
        learner = learner._replace(update=None)  # measured at initialization alone
    if learner.update is None and sweep.num_steps:
        raise ValueError(f"sweep {identity.sweep}: the learner has no update, so num_steps must be 0")
    key = jax.eval_shape(lambda: machine.key(0))
    hyper = {name: jax.ShapeDtypeStruct((), hyper_dtype(learner, name)) for name in sorted(learner.hyper)}
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, placed_dtype(leaf)), learner.data)
    state = jax.eval_shape(learner.init, key, hyper, data)
    with choices.asked() as asked:
        traced = [
            cost.traced(function, key, hyper, data, state)
            for function in (learner.evaluate, learner.update and learner.step)
            if function
        ]
    costs = [cost.of(jaxpr) for jaxpr in traced]
    left_open = {name: options for name, options in asked.items() if len(options) > 1}
    width = _default_width(devices, state, data, costs, len(runs))
    default = Layout(width, choices=_usual_choices(left_open))
    if learner.update is not None and _can_share(
        runs.seeds_with_num_runs, min(width, _usual_width(devices)) * len(devices)
    ):
        left_open["seed"] = (choices.OWN, choices.SHARED)
    program = pace.name_of([*traced, sorted(left_open.items())], devices)  # with other options the fastest is another
    measured = pace.recall(program)
    group = Group(
        family,
        learner,
        runs,
        default,
        _num_params(state),
        cost.num_bytes(state),
        sum(times * each.flops for times, each in zip((sweep.num_evals + 1, sweep.num_steps), costs, strict=False)),
        costs[0].flops,
        max(1, min(EVALUATIONS_KEPT, KEPT_BYTES // max(_num_bytes_made(traced[0]), 1))),
        left_open,
        program,
        measured,
    )
    layout = measured.layout if measured and measured.is_chosen else default
    return group.with_layout(evened(layout, runs.seeds_with_num_runs, len(devices)))


def evened(layout: Layout, seeds_with_num_runs: Mapping[int, int], num_devices: int) -> Layout:
    """Returns the layout; if the runs of a call share a seed, as narrow as fills all calls of a seed equally."""
    if not layout.shares_seed:
        return layout
    most = max(seeds_with_num_runs)
    num_calls = -(-most // (layout.width * num_devices))
    return layout._replace(width=-(-most // (num_calls * num_devices)))


def _can_share(seeds_with_num_runs: Mapping[int, int], num_rows: int) -> bool:
    """Whether most runs have a seed with so many of them that they fill half a call at least."""
    num_sharing = sum(runs * seeds for runs, seeds in seeds_with_num_runs.items() if 2 * runs >= num_rows)
    return 2 * num_sharing > sum(runs * seeds for runs, seeds in seeds_with_num_runs.items())


def _never(*args: Any) -> Any:
    raise AssertionError("a measurement has no programs")


def _usual_width(devices: list[jax.Device]) -> int:
    return DEFAULT_WIDTH.get(devices[0].platform, 64)


def _default_width(devices: list[jax.Device], state: Any, data: Any, costs: list[cost.Cost], num_runs: int) -> int:
    """The backend's, halved until the estimate fits into memory and, on a CPU, a step near the caches.

    On a CPU up to `WIDEST` for small networks where runs are many: a chunk takes some milliseconds beside its steps,
    however many runs it has.
    """
    width = _usual_width(devices)
    available = MEMORY_SHARE * machine.device_memory(devices) - cost.num_bytes(data)
    held = 2 * cost.num_bytes(state) + max(each.temporary_bytes for each in costs)
    touched = cost.num_bytes(state) + costs[-1].temporary_bytes  # of a step
    on_cpu = devices[0].platform == "cpu"

    def fits(width: int, in_caches: int) -> bool:
        return width * held <= available and (not on_cpu or width * touched <= in_caches)

    while width > 1 and not fits(width, CACHED_BYTES):
        width //= 2
    wide = width
    while on_cpu and wide < WIDEST and fits(2 * wide, SMALL_BYTES):
        wide *= 2
    is_many = FULL_CALLS * wide * len(devices) <= num_runs
    return wide if is_many else width  # two programs at most, whatever the number of runs


def _usual_choices(left_open: Collection[str]) -> tuple[tuple[str, str], ...]:
    """What is known better than by the first options: an update in one pass costs convolutions more than it gains."""
    return (("optimizer", xla.PASSES),) if {"convolution", "optimizer"} <= set(left_open) else ()


def _num_bytes_made(jaxpr: Any) -> int:
    return cost.num_bytes([variable.aval for variable in jaxpr.outvars])


def _num_params(state: Any) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return sum(leaf.size for path, leaf in leaves if "params" in jax.tree_util.keystr(path[:1]))


def _check(identity: Identity, sweep: Sweep, family: GroupKey, learner: Learner | Measurement) -> None:
    where = f"sweep {identity.sweep}"
    for name in family.hyper_names:
        if name not in learner.hyper:
            known = ", ".join(sorted(learner.hyper)) or "nothing"
            raise ValueError(
                f"{where}: the learner of {dict(family.config)} sweeps {known}, not {name!r}; "
                "if it is a static choice, put it in config"
            )
    for name in family.config:
        if name in learner.hyper:
            raise ValueError(f"{where}: {name!r} is a swept value of the learner; move it from config to hyper")
    for name, legal in learner.hyper.items():
        if name in family.hyper_names:
            continue
        if legal.default is None:
            raise ValueError(f"{where}: axis {name} is missing; give it values in the grid's hyper ({legal})")
        _check_values(f"{where}: the default of {name}", (legal.default,), learner, name)
    for block in sweep.grid.blocks:
        for name in family.hyper_names if tuple(sorted(block.hyper)) == family.hyper_names else ():
            _check_values(f"{where}: axis {name}", block.hyper[name], learner, name)


def _check_values(what: str, values: Sequence[float], learner: Learner | Measurement, name: str) -> None:
    """Raises unless they are legal, as declared and as the numbers that the runs get."""
    legal = learner.hyper[name]
    dtype = np.dtype(float if isinstance(learner, Measurement) else hyper_dtype(learner, name))
    place = legal.first_illegal(values, dtype)
    if place is None:
        return
    value, remedy = values[place], ""
    if value in legal and dtype.kind == "i":
        remedy = f", which {dtype} cannot hold; take one from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
    elif value in legal:
        used = rounded_to(np.array(value, float), dtype)
        remedy = f", which is {used:g} in {dtype}, the precision of its programs"
    raise ValueError(f"{what} must be {legal}, got {value!r}{remedy}")


def _nearest_multiple(number: int, divisor: int) -> int:
    return max(round(number / max(divisor, 1)), 1) * max(divisor, 1)
