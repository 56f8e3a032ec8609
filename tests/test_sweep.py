"""Grids, run ids, plans and costs."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlexp.sweep import axes, cost, geomspace, grid, layouts, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Block, Grid, Identity, Run, run_id
from dlexp.types import Learner, Measurement, Range, Sweep
from tests.conftest import small_learner

IDENTITY = Identity("tests.any", 1, "main", 100)

names = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: name not in axes.RESERVED)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
texts = st.text("ab_ 0.é中🙂", max_size=5)
hypers = st.dictionaries(names, numbers, max_size=4)
configs = st.dictionaries(names, st.one_of(st.integers(-99, 99), st.booleans(), texts), max_size=3)


def all_runs(declared):
    return [run for family in declared.families() for run in declared.runs(family)]


def test_a_grid_is_the_product_of_its_axes():
    declared = grid(config={"width": (8, 16)}, hyper={"a": (1, 2, 3), "b": (0.5,)}, seeds=4)
    runs = all_runs(declared)
    assert len(runs) == sum(map(declared.num_runs, declared.families())) == 2 * 3 * 4
    assert len({run_id(IDENTITY, run) for run in runs}) == len(runs)
    assert declared.axes == {"width": [8, 16], "a": [1, 2, 3], "b": [0.5], "seed": [0, 1, 2, 3]}


def test_a_union_counts_a_run_once():
    left = grid(config={"width": (8,)}, hyper={"a": (1, 2)}, seeds=2)
    right = grid(config={"width": (8, 16)}, hyper={"a": (2.0, 3)}, seeds=3)
    runs = all_runs(left | right)
    assert len(runs) == len({run_id(IDENTITY, run) for run in runs}) == 4 + 12 - 2
    assert sum(map((left | right).num_runs, (left | right).families())) == len(runs)


def test_a_grid_is_walked_by_seed_in_the_same_order_within_each():
    axis = {"learning_rate": (0.1, 0.2, 0.3)}
    for declared, counts in (
        (grid(hyper=axis, seeds=(5, 7)), {3: 2}),
        (grid(hyper=axis, seeds=(5, 7)) | grid(hyper={"learning_rate": (0.3, 0.4)}, seeds=(7, 9)), {3: 1, 4: 1, 2: 1}),
    ):
        (family,) = declared.families()
        runs = list(declared.runs(family))
        by_seed = list(declared.runs(family, by_seed=True))
        seeds = list(dict.fromkeys(run.seed for run in by_seed))
        assert by_seed == [run for seed in seeds for run in runs if run.seed == seed]
        assert len(by_seed) == len(runs)
        assert declared.numbered(family).seeds_with_num_runs == counts
        assert declared.num_runs(family) == len(runs)


unions = st.lists(
    st.tuples(
        st.permutations(["a", "b"]),
        st.lists(st.sampled_from([0.1, 0.2, 1, 2.0, -0.0]), min_size=1, max_size=4, unique=True),
        st.lists(st.sampled_from([0.1, 1.0]), min_size=1, max_size=2, unique=True),
        st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    ),
    min_size=1,
    max_size=4,
)


@given(unions)
def test_the_runs_of_a_union_are_those_of_its_blocks_each_once(blocks):
    declared = Grid(())
    for (first, second), ours, theirs, seeds in blocks:
        declared |= grid(hyper={first: ours, second: theirs}, seeds=seeds)
    (family,) = declared.families()
    expected = {}
    for (first, second), ours, theirs, seeds in blocks:
        for one, other, seed in itertools.product(ours, theirs, seeds):
            run = Run({}, {first: one, second: other}, seed)
            expected.setdefault(run_id(IDENTITY, run), run)
    assert list(declared.runs(family)) == list(expected.values())
    assert list(declared.run_ids(IDENTITY, family)) == list(expected)
    by_seed = list(declared.runs(family, by_seed=True))
    assert sorted(map(str, by_seed)) == sorted(map(str, expected.values()))
    assert len(list(itertools.groupby(run.seed for run in by_seed))) == len({run.seed for run in by_seed})
    num_runs = Counter(Counter(run.seed for run in expected.values()).values())
    assert declared.numbered(family).seeds_with_num_runs == num_runs


class Values(tuple):
    """The values of an axis, which counts how often they are all walked."""

    walks = 0

    def __iter__(self):
        type(self).walks += 1
        return super().__iter__()


def test_no_axis_is_walked_for_some_of_its_runs(devices):
    axis = Values(geomspace(0.01, 1.0, 1000))
    one = Block({}, {"a": axis, "b": axis}, tuple(range(1000)))
    for declared in (Grid((one,)), Grid((one, one._replace(seeds=(1000, 1001))))):
        (family,) = declared.families()
        runs = declared.numbered(family)
        at_its_end = runs.num_numbers - 3 + np.arange(3)
        assert [run.hyper["b"] for run in runs.at(at_its_end)][-1] == axis[-1]
        next(runs.numbers())
        next(runs.numbers(by_seed=True))
        assert runs.ids(IDENTITY, at_its_end)[-1] == run_id(IDENTITY, list(runs.at(at_its_end))[-1])
        Values.walks = 0
        for _ in range(3):
            assert len(list(itertools.islice(declared.numbered(family).at(np.arange(8)), 8))) == 8
        assert Values.walks == 0


def test_many_millions_of_runs_are_planned_as_fast_as_ten(devices):
    rates = {"learning_rate": geomspace(0.001, 1.0, 1000)}
    large, small = grid(hyper=rates, seeds=10**5), grid(hyper={"learning_rate": (0.1,)}, seeds=10)

    def seconds(declared):
        began = time.process_time()
        plan = plan_of(declared, devices)
        assert plan.num_runs == len(next(iter(plan.groups)).runs)
        return time.process_time() - began

    seconds(small)
    assert seconds(large) < 1.5 * seconds(small) + 0.2


def test_what_is_missing_is_found_by_ids_and_trained_in_the_groups_order(devices):
    declared = grid(hyper={"learning_rate": (0.1, 0.2)}, seeds=3) | grid(hyper={"learning_rate": (0.2, 0.3)}, seeds=2)
    plan = plan_of(declared, devices)
    (group,) = plan.groups
    every = list(plan.runs(group))
    assert [name for name, _ in every] == list(declared.run_ids(IDENTITY._replace(num_steps=100), group.family))
    done = {name for name, run in every if run.seed == 1}
    (missing,) = plan.missing(done)
    assert list(plan.runs(group, missing)) == [pair for pair in every if pair[1].seed != 1]
    assert missing.sum() == len(every) - len(done) == 5
    assert not plan.missing({name for name, _ in every})[0].any()


def test_blocks_with_other_axes_are_other_groups():
    ragged = grid(config={"kind": ("x",)}, hyper={"a": (1,)}) | grid(
        config={"kind": ("x",)}, hyper={"a": (1,), "b": (2,)}
    )
    assert [family.hyper_names for family in ragged.families()] == [("a",), ("a", "b")]


def test_values_from_numpy_are_pythons_own():
    made = grid(
        config={"alpha": np.linspace(0, 1, 2), "kind": np.array(["a"])}, hyper={"n": np.arange(2)}, seeds=np.int64(2)
    )
    plain = grid(config={"alpha": (0.0, 1.0), "kind": ("a",)}, hyper={"n": (0, 1)}, seeds=2)
    assert made == plain
    assert [run_id(IDENTITY, run) for run in all_runs(made)] == [run_id(IDENTITY, run) for run in all_runs(plain)]
    assert {type(value) for axis in made.axes.values() for value in axis} == {float, str, int}


@given(configs, hypers, st.integers(0, 2**32 - 1))
def test_a_run_id_does_not_depend_on_the_order_of_axes(config, hyper, seed):
    def backwards(axes):
        return dict(reversed(axes.items()))

    one = run_id(IDENTITY, Run(config, hyper, seed))
    assert one == run_id(IDENTITY, Run(backwards(config), backwards(hyper), seed))
    assert len(one) == 20


@given(hypers.filter(bool), st.integers(0, 5))
def test_a_run_id_counts_numbers_to_nine_digits_whatever_their_type(hyper, seed):
    as_text = {name: float(format(value, ".9g")) for name, value in hyper.items()}
    as_numpy = {name: np.float64(value) for name, value in hyper.items()}
    ids = {run_id(IDENTITY, Run({}, each, seed)) for each in (hyper, as_text, as_numpy)}
    assert len(ids) == 1


@given(st.lists(st.tuples(configs, hypers, st.integers(0, 3)), max_size=8))
def test_different_runs_have_different_ids(entries):
    def meaning(config, hyper, seed):
        typed = tuple(sorted((name, type(value).__name__, value) for name, value in config.items()))
        return typed, tuple(sorted((name, format(value + 0.0, ".9g")) for name, value in hyper.items())), seed

    ids = {run_id(IDENTITY, Run(*entry)) for entry in entries}
    assert len(ids) == len({meaning(*entry) for entry in entries})


def test_run_ids_say_everything_that_makes_a_run():
    run = Run({"width": 8}, {"a": 1.0}, 0)
    others = [
        run_id(IDENTITY._replace(experiment="tests.other"), run),
        run_id(IDENTITY._replace(version=2), run),
        run_id(IDENTITY._replace(sweep="second"), run),
        run_id(IDENTITY._replace(num_steps=200), run),
        run_id(IDENTITY, run._replace(config={"width": 8.0})),
        run_id(IDENTITY, run._replace(config={"width": "8"})),
        run_id(IDENTITY, run._replace(hyper={"b": 1.0})),
        run_id(IDENTITY, run._replace(seed=1)),
    ]
    assert len({run_id(IDENTITY, run), *others}) == 9


def test_run_ids_are_the_same_in_another_process():
    code = (
        "from dlexp.sweep.grids import *;"
        "print(run_id(Identity('e.x', 1, 'main', 10), Run({'width': 8, 'act': 'relu'}, {'a': 0.1}, 3)))"
    )
    here = run_id(Identity("e.x", 1, "main", 10), Run({"width": 8, "act": "relu"}, {"a": 0.1}, 3))
    assert here == "e32a0440018355a5a4c5"  # stays so across versions: saved results are found by it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.integers(2, 30))
def test_geomspace_has_equal_ratios_and_exact_ends(low, ratio, num):
    values = geomspace(low, low * ratio, num)
    assert len(values) == num
    assert values[0] == pytest.approx(low, rel=1e-8)
    assert values[-1] == pytest.approx(low * ratio, rel=1e-8)
    np.testing.assert_allclose(np.diff(np.log(values)), np.log(ratio) / (num - 1), rtol=1e-5, atol=1e-8)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5, unique_by=lambda x: format(x + 0.0, ".9g")))
def test_an_axis_flag_reads_back_the_numbers_it_was_written_with(values):
    text = ",".join(map(repr, values))
    assert axes.parse_values(text, like=(0.5,)) == tuple(values)
    assert axes.parse_axis(f"a={text}") == ("a", text)


@pytest.mark.parametrize(
    ("text", "like", "expected"),
    [
        ("32,64", (8,), (32, 64)),
        ("relu, tanh", ("gelu",), ("relu", "tanh")),
        ("true,False", (True,), (True, False)),
    ],
)
def test_an_axis_flag_takes_the_type_of_the_axis(text, like, expected):
    assert axes.parse_values(text, like) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hyper": {"a": ()}}, ValueError, "axis a is empty"),
        ({"hyper": {"a": (1, 1.0)}}, ValueError, "axis a repeats a value"),
        ({"hyper": {"a": ("x",)}}, TypeError, "swept axis a takes numbers"),
        ({"hyper": {"a": (float("nan"),)}}, ValueError, "axis a takes finite numbers"),
        ({"hyper": {"a": (10**400,)}}, ValueError, "axis a takes finite numbers, got an integer of more than 40"),
        ({"config": {"a": (2**63,)}}, ValueError, "axis a takes integers from -2"),
        ({"config": {"a": (None,)}}, TypeError, "axis a takes strings, numbers or booleans"),
        ({"config": {"a": (1,)}, "hyper": {"a": (1,)}}, ValueError, "static or swept, not both"),
        ({"config": {"seed": (1,)}}, ValueError, "cannot be named 'seed'"),
        ({"hyper": {"a/b": (1,)}}, ValueError, "cannot be named 'a/b'"),
        ({"hyper": {"a": 0.1}}, TypeError, "axis a takes a list of values"),
        ({"config": {"a": "batch"}}, TypeError, "axis a takes a list of values"),
        ({"seeds": 0}, ValueError, "seeds must be a count"),
        ({"seeds": (1, 1)}, ValueError, "seeds must be a count"),
        ({"seeds": (-1,)}, ValueError, "from 0 to 2"),
    ],
)
def test_axes_that_make_no_grid_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        grid(**options)


def plan_of(declared, devices, num_steps=10, num_evals=2, make_learner=small_learner):
    return planning.make(IDENTITY, Sweep(declared, make_learner, num_steps, num_evals), devices)


@pytest.mark.parametrize(
    ("declared", "options", "message"),
    [
        (
            grid(hyper={"learning_rate": (0.1,), "width": (8,)}),
            {},
            "not 'width'; if it is a static choice, put it in",
        ),
        (grid(config={"learning_rate": (0.1,)}), {}, "move it from config to hyper"),
        (grid(config={"optimizer": ("sgd",)}), {}, "axis learning_rate is missing"),
        (grid(hyper={"learning_rate": (0.1, -1)}), {}, r"must be a number in \[0, inf\), got -1"),
        (grid(hyper={"learning_rate": (0.1,)}), {"num_steps": 7}, "take 8"),
        (grid(hyper={"learning_rate": (0.1,)}), {"num_evals": 0}, "num_evals must be at least 1"),
        (
            grid(hyper={"learning_rate": (0.1,)}),
            {"make_learner": lambda c, n: small_learner(c, n)._replace(update=None)},
            "num_steps must be 0",
        ),
    ],
)
def test_grids_that_do_not_fit_the_learner_are_refused(devices, declared, options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(declared, devices, **options)


def test_a_plan_knows_what_it_will_cost(devices):
    plan = plan_of(grid(config={"optimizer": ("sgd",)}, hyper={"learning_rate": (0.1, 0.2)}, seeds=3), devices)
    (group,) = plan.groups
    assert (group.num_runs, plan.num_runs) == (6, 6)
    assert group.num_params == 64 * 8 + 8 + 8 * 10 + 10
    # Multiply-adds of the matrix products: forward and two backward for a batch of 16 (no gradient for the
    # inputs), forward alone for the 1000 + 359 + 360 rows of three evaluations; the rest adds a little.
    step = 2 * 16 * (2 * 64 * 8 + 3 * 8 * 10)
    evaluation = 2 * (1000 + 359 + 360) * (64 * 8 + 8 * 10)
    assert group.flops == pytest.approx(10 * step + 3 * evaluation, rel=0.1)


def test_the_width_shrinks_until_a_call_fits_into_memory(devices, monkeypatch):
    monkeypatch.setattr(machine, "device_memory", lambda devices: 2e6)
    (narrow,) = plan_of(grid(hyper={"learning_rate": (0.1,)}), devices).groups
    assert narrow.width < layouts.DEFAULT_WIDTH["cpu"]


def test_many_small_networks_are_begun_wide_and_few_as_any_others(devices):
    def width_of(num_runs):
        (group,) = plan_of(grid(hyper={"learning_rate": (0.1,)}, seeds=num_runs), devices).groups
        return group.width

    usual, wide = width_of(1), width_of(100_000)
    assert usual == layouts.DEFAULT_WIDTH["cpu"]
    assert usual < wide <= layouts.MAX_WIDTH_OF_SMALL
    full = layouts.MIN_WIDE_CALLS * wide * len(devices)
    assert {width_of(num_runs) for num_runs in (2, full - 1)} == {usual}  # more runs compile nothing
    assert {width_of(num_runs) for num_runs in (full, 10 * full)} == {wide}


def test_costs_are_counted_through_scans_and_at_the_most_expensive_branch():
    matrix = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    product = 2 * 32**3

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert cost.of(cost.traced(scanned, matrix)).flops == 7 * product
    assert cost.of(cost.traced(jax.jit(branched), matrix)).flops == pytest.approx(2 * product, rel=0.01)
    image = jax.ShapeDtypeStruct((5, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)

    def convolved(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=layout)

    assert cost.of(cost.traced(convolved, image, kernel)).flops == 2 * (5 * 6 * 6 * 4) * (3 * 3 * 3)


@pytest.mark.parametrize(
    ("legal", "inside", "outside"),
    [
        (Range(0.0, 1.0, open_high=True), (0, 0.5), (1, -0.1, float("nan"), "x")),
        (Range(0.0, open_low=True), (1e-9, 1e9), (0, float("inf"))),
        (Range(1, 10, integer=True), (1, 3.0), (2.5, 11)),
    ],
)
def test_ranges_hold_what_they_say(legal, inside, outside):
    assert all(value in legal for value in inside)
    assert not any(value in legal for value in outside)


@pytest.mark.parametrize(
    ("legal", "dtype", "inside", "outside"),
    [
        (Range(0.0, open_low=True), np.float32, (1.2e-38, 1e-8, 3.4e38), (1e-50, 1e-40, 1e39)),
        (Range(0.0, open_low=True), np.float64, (1e-50, 1e300), (0.0, 1e-310)),
        (Range(0.0, 1.0, open_high=True), np.float32, (0.0, 1e-50, 0.9999999), (0.999999999, 1.0)),
        (Range(0.0, 1.0, open_high=True), np.float64, (0.999999999,), (1.0,)),
        (Range(0.1, 0.7), np.float32, (0.1, 0.7), (0.09999, 0.70000001)),
        (Range(1, integer=True), np.int32, (1, 20.0, 2**31 - 1), (0, 2.5, 3e9, 2**31)),
        (Range(integer=True), np.int32, (-(2**31),), (-(2**31) - 1, 1e300)),
        (Range(), np.float32, (0.0, -3e38), (-1e39, float("nan"), float("inf"))),
    ],
)
def test_a_value_is_legal_as_the_number_that_a_program_gets(legal, dtype, inside, outside):
    assert legal.first_illegal(inside, dtype) is None
    for value in outside:
        assert legal.first_illegal((*inside, value, *inside), dtype) == len(inside)


def test_programs_take_for_zero_what_ranges_do(devices):
    is_positive = jax.jit(lambda number: number > 0)
    assert bool(is_positive(np.float32(1.2e-38)))
    if devices[0].platform == "cpu":
        assert not bool(is_positive(np.float32(1e-40)))


POSITIVE, WHOLE = Range(0.0, default=1.0, open_low=True), Range(1, default=5, integer=True)


def idle_learner(hyper):
    return lambda config, num_steps: Learner(
        (), hyper, lambda *_: jnp.zeros(()), None, lambda *_: {"a/b": jnp.zeros(())}
    )


@pytest.mark.parametrize(
    ("values", "hyper", "message"),
    [
        ({"eps": (1e-8, 1e-50)}, {"eps": POSITIVE}, "axis eps must be .*, got 1e-50, which is 0 in float32"),
        ({"rate": (1e39,)}, {"rate": POSITIVE}, "got 1e.39, which is inf in float32"),
        ({"count": (20, 3e9)}, {"count": WHOLE}, "got 3000000000.0, which int32 cannot hold; take one from"),
        ({}, {"count": WHOLE._replace(default=2**31)}, "the default of count must be .*, got 2147483648, which int32"),
        ({}, {"eps": POSITIVE._replace(default=1e-46)}, "the default of eps must be .*, which is 0 in float32"),
    ],
)
def test_values_that_leave_their_range_in_the_programs_precision_are_refused(devices, values, hyper, message):
    with pytest.raises(ValueError, match=message):
        plan_of(grid(hyper=values), devices, num_steps=0, num_evals=1, make_learner=idle_learner(hyper))


def test_values_that_are_legal_in_double_precision_are_taken_there(devices, x64):
    plan_of(grid(hyper={"eps": (1e-50,)}), devices, 0, 1, idle_learner({"eps": POSITIVE}))


def test_a_measurement_gets_its_numbers_as_python_has_them(devices):
    def make_learner(config, num_steps):
        return Measurement(lambda hyper, seed: {"a/b": hyper["eps"]}, {"eps": POSITIVE, "count": WHOLE})

    plan_of(grid(hyper={"eps": (1e-50,), "count": (3e9,)}), devices, 0, 1, make_learner)
