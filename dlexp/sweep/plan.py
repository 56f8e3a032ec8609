"""How a sweep will be trained: its groups, the width of a call, what each costs. Nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlexp import keys
from dlexp.ops import compiler
from dlexp.ops.choices import OWN, SHARED, recording_choices
from dlexp.sweep import contract, cost, layouts, machine, pace
from dlexp.sweep.grids import GroupKey, Identity, Run, Runs
from dlexp.sweep.layouts import Layout
from dlexp.sweep.pace import Measured
from dlexp.types import Learner, Measurement, Range, Sweep, rounded_to

MAX_EVALUATIONS_KEPT = 16  # by one call
MAX_BYTES_KEPT = 2**14  # of a run's evaluations in one call


class Group(NamedTuple):
    """The runs of one config: what they do, how many, and how wide a call is.

    Attributes:
      family: config and swept names.
      learner: what a run does.
      runs: the grid's runs of this config, by number.
      layout: how its programs are made; fixed for the group.
      choices: name -> the options that its networks and optimizers leave open.
      program_hash: of what its programs compute, on these devices: groups of equal hash are equally fast.
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
    choices: Mapping[str, tuple[str, ...]] = {}
    program_hash: str = ""
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
      TypeError: where a function of the experiment's returns something else than its contract says.
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
    axes_read = set[str]()
    guarded = contract.guarded(f"sweep {identity.sweep}", sweep, axes_read)
    with machine.usual_promotion():
        groups = tuple(_group(identity, guarded, family, devices) for family in sweep.grid.families())
    if not any(group.measure for group in groups):  # those read when they measure
        contract.check_all_read(f"sweep {identity.sweep}", sweep.grid, axes_read)
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
    learner = sweep.make_learner(family.config, sweep.num_steps)
    _check(identity, sweep, family, learner)
    runs = sweep.grid.numbered(family)
    if isinstance(learner, Measurement):
        return _measurement(identity, sweep, family, runs, learner)
    learner = _with_steps(identity, sweep, learner)
    traced = _traced(identity, learner, devices)
    costs = [cost.of(jaxpr) for jaxpr in traced.jaxprs]
    state_bytes, platform, choices = cost.num_bytes(traced.state), devices[0].platform, dict(traced.choices)
    needs = layouts.Needs(
        held=2 * state_bytes + max(each.temporary_bytes for each in costs),
        touched=state_bytes + costs[-1].temporary_bytes,
    )
    available = layouts.MEMORY_SHARE * machine.device_memory(devices) - cost.num_bytes(traced.data)
    default = layouts.default_layout(platform, available, needs, len(runs), len(devices), choices)
    num_rows = min(default.width, layouts.usual_width(platform)) * len(devices)
    if learner.update is not None and layouts.can_share_seeds(runs.seeds_with_num_runs, num_rows):
        choices["seed"] = (OWN, SHARED)
    program_hash = pace.name_of([*traced.jaxprs, sorted(choices.items())], devices)  # other options, another fastest
    measured = pace.recall(program_hash)
    group = Group(
        family=family,
        learner=learner,
        runs=runs,
        layout=default,
        num_params=_num_params(traced.state),
        state_bytes=state_bytes,
        flops=sum(times * each.flops for times, each in zip(_times(sweep), costs, strict=False)),
        evaluation_flops=costs[0].flops,
        num_kept=max(1, min(MAX_EVALUATIONS_KEPT, MAX_BYTES_KEPT // max(_num_bytes_made(traced.jaxprs[0]), 1))),
        choices=choices,
        program_hash=program_hash,
        measured=measured,
    )
    layout = measured.layout if measured and measured.is_chosen else default
    return group.with_layout(layouts.with_equal_calls(layout, runs.seeds_with_num_runs, len(devices)))


def _measurement(identity: Identity, sweep: Sweep, family: GroupKey, runs: Runs, measurement: Measurement) -> Group:
    if sweep.num_steps:
        raise ValueError(f"sweep {identity.sweep}: a measurement takes no steps, so num_steps must be 0")
    idle = Learner({}, measurement.hyper, _never, None, _never)
    return Group(family, idle, runs, Layout(1), num_params=0, state_bytes=0, flops=0.0, measure=measurement.measure)


def _with_steps(identity: Identity, sweep: Sweep, learner: Learner) -> Learner:
    """The learner, without its update where no steps are made; its data must be arrays."""
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in jax.tree.leaves(learner.data)):
        raise TypeError(
            f"sweep {identity.sweep}: a learner's data must be arrays; wrap numbers and lists in np.asarray"
        )
    if not sweep.num_steps:
        return learner._replace(update=None)  # measured at initialization alone
    if learner.update is None:
        raise ValueError(f"sweep {identity.sweep}: the learner has no update, so num_steps must be 0")
    return learner


class _Traced(NamedTuple):
    """What one run does, traced: the shapes of data and state, evaluation and step (if any), and their choices."""

    data: Any
    state: Any
    jaxprs: list[Any]
    choices: Mapping[str, tuple[str, ...]]


def _traced(identity: Identity, learner: Learner, devices: list[jax.Device]) -> _Traced:
    key = jax.eval_shape(lambda: keys.of_run(0, keys.INIT))
    hyper = {name: jax.ShapeDtypeStruct((), hyper_dtype(learner, name)) for name in sorted(learner.hyper)}
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, placed_dtype(leaf)), learner.data)
    checked = contract.checked(f"sweep {identity.sweep}", learner)
    state = jax.eval_shape(checked.init, key, hyper, data)
    with compiler.tracing_for(devices[0].platform), recording_choices() as recorded:
        jaxprs = [cost.traced(checked.evaluate, key, hyper, data, state)]
        if checked.update:
            step = [jax.ShapeDtypeStruct((), np.int32)] if checked.is_told_the_step else []
            jaxprs.append(cost.traced(checked.step, key, hyper, data, state, *step))
    return _Traced(data, state, jaxprs, {name: options for name, options in recorded.items() if len(options) > 1})


def _times(sweep: Sweep) -> tuple[int, int]:
    """How often a run is evaluated, and how many steps it makes."""
    return sweep.num_evals + 1, sweep.num_steps


def _never(*args: Any) -> Any:
    raise AssertionError("a measurement has no programs")


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
