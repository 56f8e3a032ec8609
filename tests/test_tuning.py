"""The layout of programs: what is left open, that it changes no meaning, how it is chosen, kept and shown."""

from __future__ import annotations

import copy
import io
import json
import re
import time
from collections import deque
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from dlexp import api, learners, losses, models, optim, report, training
from dlexp.data import Dataset, bundled
from dlexp.models import ConvLayer, perceptron
from dlexp.ops import choices, compiler
from dlexp.results import load
from dlexp.sweep import engine, grid, layouts, machine, pace, programs, tuning
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.sweep.layouts import Layout
from dlexp.sweep.pace import Measured, Pace
from dlexp.sweep.recorder import Recorder
from dlexp.types import Experiment, Sweep
from tests.conftest import small_learner

RATES = (0.001, 0.01, 0.1)
SHARED = (("seed", "shared"),)


@pytest.fixture(autouse=True)
def own_measurements(monkeypatch, tmp_path):
    """What one test has measured of a program is not known to the next."""
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path / "measured"))


def network(kind):
    if kind == "cnn":
        layers = (ConvLayer(3, 3, padding=1), ConvLayer(4, 3, stride=2))
        return models.cnn(input_shape=(8, 8, 1), conv_layers=layers, num_outputs=10)
    if kind == "wide":
        return models.mlp(width=16, num_layers=2, num_outputs=10)
    if kind == "regularized":
        options = {"normalization": "batch", "dropout": "inverted", "residual": True}
        return models.mlp(width=16, num_layers=4, num_outputs=20, **options)
    if kind == "own block":
        return models.mlp(width=16, num_layers=3, num_outputs=10, block=perceptron.dense_block)
    if kind == "preactivation":
        return models.mlp(width=16, num_layers=4, num_outputs=10, preactivation=True, normalization="layer")
    return models.mlp(width=5, num_layers=2 if kind == "shallow" else 20, num_outputs=10, residual=True)


def plan_of(kind, devices, *, num_steps=20, num_evals=2):
    def make_learner(config, num_steps):
        data = Dataset(bundled.load("digits").train)
        return learners.supervised(
            network(kind),
            losses.softmax_cross_entropy,
            optim.adam(),
            data,
            batch_size=16,
            sweep_num_train=kind == "own block",
        )

    swept = {"learning_rate": RATES} | ({"dropout_rate": (0.3,)} if kind == "regularized" else {})
    if kind == "own block":
        swept = {"learning_rate": (0.01,), "num_train": (30, 300, 1000)}  # batches differ all the same
    sweep = Sweep(grid(hyper=swept, seeds=2), make_learner, num_steps, num_evals)
    return planning.make(Identity("tests.tuning", 1, "main", num_steps), sweep, devices)


def losses_of(plan, devices, **options):
    """[run, evaluation], by run id."""
    rows = {}
    for event in engine.train(plan, devices, **options):
        if isinstance(event, engine.Finished):
            for (name, _), row in zip(event.runs, event.metrics["train/loss"], strict=True):
                rows[name] = row
    return np.array([rows[name] for name in sorted(rows)])


@pytest.mark.parametrize(
    ("kind", "open_choices"),
    [
        ("shallow", {}),
        ("deep", {"layers": ("scanned", "unrolled")}),
        ("cnn", {"convolution": ("winograd", "batch_last", "patches", "rows", "shifted", "native")}),
    ],
)
def test_a_group_says_what_its_networks_leave_open(devices, kind, open_choices):
    group = plan_of(kind, devices).groups[0]
    assert group.choices == open_choices | {"optimizer": ("one_pass", "passes")}
    assert plan_of(kind, devices).groups[0].program_hash == group.program_hash  # asked anew, named alike


def test_a_choice_that_is_none_of_the_options_is_refused():
    with (
        choices.with_choices({"convolution": "fourier"}),
        pytest.raises(ValueError, match="patches, native here, not 'four"),
    ):
        choices.choose("convolution", ("patches", "native"))


@cache
def losses_in_the_first_layout(kind):
    devices = jax.local_devices()
    return losses_of(plan_of(kind, devices), devices)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("cnn", Layout(2, True, (("convolution", "native"),))),
        ("cnn", Layout(2, False, SHARED)),
        # that every lowering computes the same is tested by itself, quickly, with the networks
        pytest.param("cnn", Layout(1, False, (("convolution", "rows"),)), marks=pytest.mark.slow),
        pytest.param("cnn", Layout(4, False, (("convolution", "shifted"),)), marks=pytest.mark.slow),
        ("deep", Layout(2, False, (("layers", "unrolled"),))),
        ("deep", Layout(2, False, SHARED)),
        ("wide", Layout(8, False, (("optimizer", "passes"),))),
        ("wide", Layout(2, False, SHARED)),
        ("regularized", Layout(2, False, SHARED)),
        ("preactivation", Layout(1, True, SHARED)),
        ("own block", Layout(2, False, SHARED)),
    ],
)
@pytest.mark.usefixtures("x64")
def test_no_layout_changes_what_is_computed(devices, kind, layout):
    plan = plan_of(kind, devices)
    other = plan._replace(groups=tuple(group.with_layout(layout) for group in plan.groups))
    np.testing.assert_allclose(losses_of(other, devices), losses_in_the_first_layout(kind), rtol=1e-9)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="multi-output fusion is asked for on a CPU")
def test_adam_updates_moments_and_weights_in_one_loop_where_that_was_chosen(devices):
    group = plan_of("wide", devices).groups[0]
    made = {}
    for way in ("one_pass", "passes"):
        other = group.with_layout(Layout(2, False, (("optimizer", way),)))
        text = programs.lower(other, machine.mesh(devices))[1].compile().as_text()
        made[way] = [line for line in text.splitlines() if re.search(r"= \((f32\[2,64,16\]\S*( |\)) ?){3}fusion", line)]
    assert len(made["one_pass"]) == 1
    assert made["passes"] == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere there is one way to update")
def test_what_was_timed_with_other_options_open_is_timed_again(devices, monkeypatch):
    before = plan_of("shallow", devices).groups[0].program_hash
    assert plan_of("shallow", devices).groups[0].program_hash == before
    monkeypatch.setattr(compiler, "ways_to_update", lambda: (compiler.ONE_PASS,))
    assert plan_of("shallow", devices).groups[0].program_hash != before


def sweep_of(runs, devices):
    return planning.make(Identity("tests.tuning", 1, "main", 20), Sweep(runs, small_learner, 20, 2), devices)


@pytest.mark.parametrize(
    ("runs", "width"),
    [
        (grid(hyper={"learning_rate": RATES}, seeds=2), 1),
        (grid(hyper={"learning_rate": RATES}, seeds=(3, 1)), 8),
        (grid(hyper={"learning_rate": RATES}, seeds=2) | grid(hyper={"learning_rate": (0.1, 0.2)}, seeds=(1, 5)), 1),
    ],
)
def test_runs_that_share_a_seed_are_trained_one_seed_after_another(devices, runs, width):
    plan = sweep_of(runs, devices)
    (own,) = plan.groups
    shared = own.with_layout(Layout(width, False, SHARED))
    plan = plan._replace(groups=(shared,))
    ids = [name for name, _ in plan.runs(shared)]
    assert len(ids) == plan.num_runs
    assert set(ids) == {name for name, _ in plan.runs(own)}
    for done in (set(), {ids[0], ids[-1]}):
        chunks = [
            event for event in engine.train(plan, devices, plan.missing(done)) if isinstance(event, engine.Finished)
        ]
        assert [name for chunk in chunks for name, _ in chunk.runs] == [name for name in ids if name not in done]
        seeds = [{run.seed for _, run in chunk.runs} for chunk in chunks]
        assert all(len(each) == 1 for each in seeds)
        assert done or len(chunks) == plan.num_chunks(shared)


def test_a_call_of_one_seed_goes_on_where_it_stopped(devices, monkeypatch):
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)  # a look after every step
    (own,) = plan_of("wide", devices).groups
    plan = plan_of("wide", devices)._replace(groups=(own.with_layout(Layout(8, False, SHARED)),))
    whole, halfway = losses_of(plan, devices), {}
    for event in engine.train(plan, devices):
        if isinstance(event, engine.Advanced) and event.snapshot().step == 10:
            halfway[event.chunk] = copy.deepcopy(event.snapshot())
    assert len(halfway) == 2
    np.testing.assert_array_equal(losses_of(plan, devices, resume=halfway.get), whole)


@pytest.mark.alone
def test_a_grid_of_many_seeds_is_walked_seed_by_seed_in_no_time(devices):
    plan = sweep_of(grid(hyper={"learning_rate": RATES}, seeds=200_000), devices)
    shared = plan.groups[0].with_layout(Layout(1, False, SHARED))
    began = time.perf_counter()
    last = deque(plan.sweep.grid.runs(shared.family, by_seed=True), maxlen=3)
    assert [run.seed for run in last] == [199_999] * 3
    assert time.perf_counter() - began < 30  # hours, were it quadratic


@pytest.mark.parametrize(
    ("num_rates", "num_seeds", "more", "is_open"),
    [(32, 2, 0, True), (1, 50, 0, False), (32, 1, 500, False), (32, 20, 5, True)],
)
def test_a_seed_may_be_shared_where_most_runs_have_many_of_theirs(devices, num_rates, num_seeds, more, is_open):
    rates = tuple(float(place) for place in range(1, num_rates + 1))
    runs = grid(hyper={"learning_rate": rates}, seeds=num_seeds)
    if more:
        runs |= grid(hyper={"learning_rate": (0.5,)}, seeds=range(100, 100 + more))
    assert ("seed" in sweep_of(runs, devices).groups[0].choices) == is_open


def test_calls_of_one_seed_are_equally_full():
    own, shared = Layout(8), Layout(8, False, SHARED)
    assert layouts.with_equal_calls(own, {20: 3}, 2) == own
    evened = layouts.with_equal_calls(shared, {20: 3}, 2)
    assert evened.width == 5
    assert layouts.with_equal_calls(evened, {20: 3}, 2) == evened


def test_a_layout_kept_for_other_runs_of_a_seed_is_evened(devices, monkeypatch, tmp_path):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path))
    rates = tuple(float(place) for place in range(1, 41))
    (group,) = sweep_of(grid(hyper={"learning_rate": rates}), devices).groups
    pace.remember(group.program_hash, Measured(Layout(20, False, SHARED), Pace(0.1, 0.2, 0.3), is_chosen=True))
    for num_rates, width in ((40, 20 * 2 // len(devices)), (30, -(-30 // len(devices)))):
        (known,) = sweep_of(grid(hyper={"learning_rate": rates[:num_rates]}), devices).groups
        assert known.layout == layouts.with_equal_calls(Layout(20, False, SHARED), {num_rates: 1}, len(devices))
        assert known.width <= max(width, 20)
        assert (known.measured is None) == (known.layout.width != 20)


def test_calls_of_one_seed_are_kept_for_a_run_alone_but_not_for_a_grid_of_few_runs_a_seed(devices):
    few = {"main": sweep_of(grid(hyper={"learning_rate": RATES}, seeds=9), devices)}
    layout = Layout(5, False, SHARED)
    key = training._family_key(few["main"], few["main"].groups[0])
    manifest = {"sweeps": {"main": {"layouts": {key: layout._asdict()}}}}
    (exactly,) = training.as_saved(few, manifest, exactly=True)["main"].groups
    (going_on,) = training.as_saved(few, manifest)["main"].groups
    assert exactly.layout == layout
    assert going_on.layout == Layout(5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the batch stays first")
def test_first_layers_of_runs_that_share_a_seed_are_one_product(devices):
    (group,) = plan_of("wide", devices).groups
    texts = [
        programs.lower(group.with_layout(Layout(2, False, made)), machine.mesh(devices))[1].compile().as_text()
        for made in ((), SHARED)
    ]
    assert ["dot(" in text and "f32[32,16]" in text and "f32[16,64]" in text for text in texts] == [False, True]
    gathered = [re.findall(r"f32\[(\d+),(?:1,)?64\]\S* gather\(", text) for text in texts]
    assert gathered == [["32"], ["16"]]  # rows of batches


def search(group, seconds_of):
    """The layouts that are timed, were each as slow as said."""
    rounds, tried = tuning.rounds(group, lambda layout: layout), {}
    layouts = next(rounds)
    while True:
        tried |= {layout: seconds_of(layout) for layout in layouts}
        try:
            layouts = rounds.send(tried)
        except StopIteration:
            return tried


def test_the_search_widens_as_long_as_that_helps(devices):
    group = plan_of("shallow", devices).groups[0]
    tried = search(group, lambda layout: abs(layout.width - 64) + 1)
    assert [layout.width for layout in tried] == [8, 8, 16, 4, 32, 64, 128, 64]


def test_the_search_takes_one_call_a_step_where_a_loop_hurts(devices):
    def seconds(layout):
        native = dict(layout.choices).get("convolution") == "native"
        return 4.0 * layout.width if native and layout.stepwise else 150.0 if native else 50.0

    tried = search(plan_of("cnn", devices).groups[0], seconds)
    assert min(tried, key=lambda layout: tried[layout]) == Layout(
        1, True, (("convolution", "native"), ("optimizer", "passes"))
    )
    stepwise = [layout for layout in tried if layout.stepwise]
    assert {dict(layout.choices)["convolution"] for layout in stepwise} == {"native"}
    assert [layout.width for layout in stepwise] == [8, 8, 16, 4, 2, 1, 1]


def test_layouts_are_compared_with_the_best_so_far_while_other_work_slows_all():
    narrow, wide = Layout(1), Layout(2)

    class Slowing:
        calls = 0

        def rates(self, layouts, seconds=0.0):
            self.calls += 1
            return {layout: {narrow: 100.0, wide: 150.0}[layout] / self.calls for layout in layouts}

    bench = Slowing()
    first = tuning._beside_the_best(bench, [narrow], {}, {})
    assert first == {narrow: 100.0}
    second = tuning._beside_the_best(bench, [wide], {narrow: 1.0}, {str(narrow): 100.0})
    assert second == {wide: pytest.approx(150.0)}


def test_the_fastest_turn_counts_and_a_long_training_has_more_of_them():
    class Disturbed:
        turns = 0

        def rates(self, layouts, seconds=0.0):
            self.turns += 1
            return dict.fromkeys(layouts, 100.0 if self.turns == 2 else 50.0)

    for seconds, num_turns in ((0.0, tuning.TURNS), (60.0, tuning.MAX_TURNS)):
        bench = Disturbed()
        assert tuning._in_turn(bench, [Layout(1), Layout(2)], seconds) == {Layout(1): 100.0, Layout(2): 100.0}
        assert bench.turns == num_turns


def test_what_came_close_is_tried_again_at_the_best_width(devices):
    def seconds(layout):
        is_one_pass = dict(layout.choices)["optimizer"] == "one_pass" if layout.choices else True
        return abs(layout.width - 2) + (1.0 if is_one_pass == (layout.width < 8) else 0.9)

    tried = search(plan_of("shallow", devices).groups[0], seconds)
    assert [layout.width for layout in tried] == [8, 8, 16, 4, 2, 1, 2, 4, 1]
    assert tuning._best(tried) == Layout(2, False, (("optimizer", "passes"),))


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["shallow", pytest.param("cnn", marks=pytest.mark.slow)])
def test_a_group_that_pays_is_timed_and_the_fastest_layout_kept(devices, monkeypatch, kind):
    plan = plan_of(kind, devices, num_steps=50_000)
    said = []
    short = plan_of(kind, devices)
    assert tuning.tuned(short, devices, [6], tell=said.append) == short
    assert not said  # 20 steps are over before anything is compiled
    monkeypatch.setattr(tuning, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "MAX_SHARE", 10.0)
    monkeypatch.setattr(tuning, "MAX_TURNS", tuning.TURNS)
    tuned = tuning.tuned(plan, devices, [6], tell=said.append)
    (group,) = tuned.groups
    assert "about" in said[0]
    assert len(group.measured.rates) >= 4
    fastest = max(group.measured.rates.values())
    assert group.measured.rates[str(group.layout)] * (tuning.LEAST_GAIN + 0.01) * 2 > fastest  # padding counts, too
    again = plan_of(kind, devices, num_steps=50_000)
    assert again.groups[0].layout == group.layout  # from the disk
    assert tuning.tuned(again, devices, [6]) == again
    assert again.seconds(again.groups[0]) > 0
    shown = list(report.plan_tables({"main": again}))
    assert any(isinstance(part, str) and "layouts timed here" in part for part in shown)
    assert "of training if none is saved" in shown[-1]


def test_what_is_kept_on_the_disk_survives_damage(monkeypatch, tmp_path):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path))
    known = Measured(Layout(4, True, (("convolution", "rows"),)), Pace(0.1, 0.2, 0.3), True, {"4 at once": 5.0})
    pace.remember("any", known)
    assert pace.recall("any") == known
    assert pace.recall("another") is None
    (tmp_path / "pace" / "any.json").write_text("{")
    assert pace.recall("any") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path / "file"))
    pace.remember("any", Measured(Layout(1), Pace(0, 0, 0)))
    assert pace.recall("any") is None


def experiment(num_seeds):
    def sweeps(scale):
        return {"main": Sweep(grid(hyper={"learning_rate": RATES}, seeds=num_seeds), small_learner, 20, 2)}

    return Experiment(name="tests.layout", version=1, doc="Which way?", sweeps=sweeps)


def test_a_resumed_sweep_and_a_run_alone_keep_the_layout(devices, tmp_path, monkeypatch):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path / "cache"))
    console = Console(file=io.StringIO())
    quiet = {"out": tmp_path, "scale": "smoke", "console": console}
    first = api.run(experiment(2), **quiet)
    (group,) = api.plan(experiment(2), scale="smoke")["main"].groups
    assert group.measured.pace.step > 0  # from the training
    pace.remember(group.program_hash, Measured(Layout(2), group.measured.pace, is_chosen=True))
    assert api.plan(experiment(2), scale="smoke")["main"].groups[0].layout == Layout(2)
    api.run(experiment(3), **quiet)
    about = json.loads((first.folder / "manifest.json").read_text())
    assert [layout["width"] for layout in about["sweeps"]["main"]["layouts"].values()] == [8]
    results = load(first.folder)["main"]
    assert len(results.frame) == 9
    elsewhere = api.run(experiment(2), out=tmp_path / "new", scale="smoke", console=console)
    about = json.loads((Path(elsewhere.folder) / "manifest.json").read_text())
    assert [layout["width"] for layout in about["sweeps"]["main"]["layouts"].values()] == [2]


@pytest.mark.parametrize("is_chosen", [False, True])
def test_the_pace_of_the_last_training_is_known_unless_another_layout_was_chosen(tmp_path, monkeypatch, is_chosen):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path / "cache"))
    (group,) = api.plan(experiment(2), scale="smoke")["main"].groups
    former = Measured(Layout(2), Pace(1.0, 1.0, 1.0), is_chosen)
    pace.remember(group.program_hash, former)
    plan = api.plan(experiment(2), scale="smoke")
    narrow = {"main": plan["main"]._replace(groups=(group.with_layout(Layout(8)),))}
    quiet = Console(file=io.StringIO())
    training.train(experiment(2), narrow, scale="smoke", folder=tmp_path / "any", fresh=False, console=quiet)
    known = pace.recall(group.program_hash)
    assert (known == former) == is_chosen
    assert known.layout == Layout(2 if is_chosen else 8)


def test_a_sweep_goes_on_in_a_process_that_cannot_be_told_the_same(devices, tmp_path, monkeypatch):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path / "cache"))
    quiet = {"out": tmp_path, "scale": "smoke", "console": Console(file=io.StringIO())}
    folder = Path(api.run(experiment(1), **quiet).folder)
    about = json.loads((folder / "manifest.json").read_text())
    for layout in about["sweeps"]["main"]["layouts"].values():
        layout["choices"] = [["optimizer", "one_pass"]]
    (folder / "manifest.json").write_text(json.dumps(about))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_extra_options=")  # the user has other plans
    assert len(load(api.run(experiment(2), **quiet).folder)["main"].frame) == 6


def test_the_pieces_of_a_call_end_at_every_evaluation():
    assert list(programs.pieces(5, 25, 10)) == [(5, 10, True), (10, 20, True), (20, 25, False)]
    assert list(programs.pieces(-10, 0, 10)) == [(-10, 0, True)]
    assert list(programs.pieces(0, 0, 10)) == []


def test_a_call_makes_no_more_evaluations_than_it_may_keep():
    recorder = Recorder(1, 60, 6)
    calls = list(recorder.calls(5, 55, 2))
    assert calls == [(5, 20), (20, 40), (40, 55)]
    assert [list(recorder.evaluated(*call)) for call in calls] == [[10, 20], [30, 40], [50]]
    assert [list(recorder.evaluated(*call)) for call in recorder.calls(3, 7, 2)] == [[]]


def test_how_many_evaluations_a_call_keeps_changes_nothing(devices):
    plan = plan_of("shallow", devices, num_steps=60, num_evals=30)
    (group,) = plan.groups
    assert group.num_kept == planning.MAX_EVALUATIONS_KEPT
    all_at_once = losses_of(plan, devices)
    for num_kept in (1, 7):
        few = plan._replace(groups=(group._replace(num_kept=num_kept),))
        np.testing.assert_array_equal(losses_of(few, devices), all_at_once)


def test_evaluations_under_way_together_are_those_made_one_by_one(devices, monkeypatch):
    plan = plan_of("shallow", devices, num_steps=200, num_evals=100)
    together = losses_of(plan, devices)
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)  # a look after every step
    np.testing.assert_array_equal(losses_of(plan, devices), together)


@pytest.mark.alone
def test_a_pace_predicts_the_seconds_of_the_next_training(devices):
    plan = plan_of("deep", devices, num_steps=1000, num_evals=4)
    chunks = [event for event in engine.train(plan, devices) if isinstance(event, engine.Finished)]
    expected = chunks[-1].pace.seconds(1000, 5)
    assert expected == pytest.approx(chunks[-1].seconds, rel=0.25)


def test_evaluations_that_cost_less_together_than_alone_leave_the_start_of_a_chunk_what_it_was(monkeypatch):
    now = 0.0
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now)
    clock = engine._Clock()
    clock.started(1.0)
    clock.noted(10, 10, 2.0)
    now = 3.5
    assert clock.pace().start == pytest.approx(0.5)
    assert clock.pace().seconds(10, 11) == pytest.approx(3.5)


def test_what_does_not_fit_is_left_to_the_engine(devices, tmp_path, monkeypatch):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path))  # where no layout of these programs was chosen yet
    plan = plan_of("shallow", devices, num_steps=50_000)
    monkeypatch.setattr(tuning, "WORTH_SECONDS", 0.0)

    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(tuning.Bench, "_rate", full)
    assert tuning.tuned(plan, devices, [6]) == plan
    monkeypatch.setattr(tuning.programs, "to_host", full)
    assert tuning.tuned(plan, devices, [6]) == plan


def test_timing_ends_when_the_user_wants_to_stop(devices, tmp_path, monkeypatch):
    monkeypatch.setenv("DLEXP_CACHE_DIR", str(tmp_path))  # where no layout of these programs was chosen yet
    plan = plan_of("shallow", devices, num_steps=50_000)
    monkeypatch.setattr(tuning, "WORTH_SECONDS", 0.0)
    timed = []

    def rate(*args):
        timed.append(args)
        return 1.0

    monkeypatch.setattr(tuning.Bench, "_rate", rate)
    with pytest.raises(KeyboardInterrupt):
        tuning.tuned(plan, devices, [6], stopping=lambda: len(timed) == 2)
    assert len(timed) == 2
    again = plan_of("shallow", devices, num_steps=50_000).groups[0]
    assert again.measured == plan.groups[0].measured  # nothing was kept
