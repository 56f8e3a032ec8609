"""The product as a user meets it: flags, folders, interruptions; each in a process of its own where it matters."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from dlexp import api, cli, learners, losses, models, optim, progress
from dlexp.data import bundled
from dlexp.results import folders, load, store
from dlexp.study import style
from dlexp.sweep import grid, machine
from dlexp.types import Experiment, Sweep
from experiments.optimization.optimizers import EXPERIMENT
from tests.conftest import small_learner

ROOT = Path(__file__).parents[1]
MODULE = "experiments.optimization.optimizers"


def small_sweeps(scale):
    rates = {"learning_rate": (0.01, 0.1)}
    return {
        "main": Sweep(grid(hyper=rates, seeds=2), small_learner, 20, 2),
        "other": Sweep(grid(config={"optimizer": ("sgd",)}, hyper=rates, seeds=1), small_learner, 10, 1),
    }


SMALL = Experiment("tests.small", 1, "Does it run?", small_sweeps)


def main(*flags, experiment=SMALL, out=None):
    """Exit status, what was said, and what was said as an error."""
    console, errors = (Console(record=True, file=io.StringIO(), width=200) for _ in range(2))
    argv = ["x", "--scale=smoke", *([f"--out={out}"] if out else []), *flags]
    status = cli.run(experiment, argv, console, errors)
    return status, console.export_text(), errors.export_text()


def sweeps_with_every_kind_of_axis(scale):
    def make_learner(config, num_steps):
        data = bundled.load("digits")
        model = models.mlp(width=8, num_layers=2, num_outputs=10)
        return learners.supervised(
            model, losses.softmax_cross_entropy, optim.adam(optim.cosine(10)), data, batch_size=16
        )

    hyper = {"eps": (1e-8,), "decay_steps": (10,)}
    scheduled = Sweep(grid(hyper={"learning_rate": (0.1,), **hyper}), make_learner, 10)
    return {**small_sweeps(scale), "scheduled": scheduled}


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    assert main(out=out)[0] == 0
    return out


@pytest.fixture
def trained(trained_once, tmp_path):
    """A folder of its own in which all of SMALL is trained."""
    return shutil.copytree(trained_once, tmp_path / "trained")


BAD_INPUT = [
    ("--axis=depth=3", "there is no axis 'depth'; the axes are learning_rate, seed, optimizer"),
    ("--axis=learning_rate=", "write NAME=VALUE"),
    ("--axis=learning_rate", "write NAME=VALUE"),
    ("--axis=learning_rate=-1", "must be a number in [0, inf)"),
    ("--axis=learning_rate=nan", "takes finite numbers"),
    ("--axis=learning_rate=fast", "must be values of type float"),
    ("--axis=learning_rate=0.1,0.10", "repeats a value"),
    ("--axis=learning_rate=geom:0:1:5", "0 < LOW"),
    ("--axis=learning_rate=geom:1:2", "geom:LOW:HIGH:COUNT"),
    ("--axis=optimizer=lion", "no optimizer named 'lion'"),
    ("--sweep=third", "sweep must be one of main, other"),
    ("--num_steps=7", "take 8"),
    ("--num_steps=0", "in the range [1, 2147483647]"),
    ("--seeds=0", "in the range [1, 10000000]"),
    ("--seeds=many", "--seeds=many"),
    ("--scale=huge", "smoke|cpu|gpu"),
    ("--data_dir=/no/such/folder", "there is no such folder"),
    ("--run_id=0123", "there is no run '0123'"),
    ("--run_id=", "there is no run ''"),
    ("--axis=learning_rate=1e300", "must be a number in [0, inf), got 1e+300, which is inf in float32"),
    ("--axis=eps=1e-50", "must be a number in (0, inf), got 1e-50, which is 0 in float32"),
    ("--axis=decay_steps=20,3e9", "got 3000000000.0, which int32 cannot hold; take one from -2147483648 to 2147483647"),
    ("--axis=decay_steps=20,2.5", "must be an integer in [1, inf), got 2.5"),
    ("--axis=learning_rate=geom:1e-5:1:1000000000000", "COUNT from 1 to 1,000,000"),
    ("--axis=learning_rate=geom:-1:10:5", "'geom:-1:10:5' is no geom"),
    ("--seeds=1000000000000", "in the range [1, 10000000]"),
    ("--num_steps=2147483648", "--num_steps=2147483648"),
    ("--learning_rate=0.1", "--help lists the flags"),
    ("cpu", "is no flag"),
]


@pytest.mark.parametrize(("flag", "remedy"), BAD_INPUT)
def test_bad_input_ends_with_one_sentence_and_writes_nothing(tmp_path, flag, remedy):
    experiment = (
        SMALL._replace(sweeps=sweeps_with_every_kind_of_axis) if re.match("--axis=(eps|decay)", flag) else SMALL
    )
    for mode in ((), ("--plan",)) if flag.startswith("--axis") else ((),):
        status, _, said = main(flag, *mode, out=tmp_path / "runs", experiment=experiment)
        assert status == 2
        assert remedy in said
        assert flag in said or flag in ("--learning_rate=0.1", "cpu")
        assert flag.removeprefix("--").split("=")[0] in said
        assert len(said.strip().splitlines()) == 1
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("jax_disable_jit", True, "JAX_DISABLE_JIT=True cannot be used: the engine trains compiled programs; unset it"),
        ("jax_threefry_partitionable", False, "unset it, or set it to True"),
        ("jax_random_seed_offset", 3, "unset it, or set it to 0"),
    ],
)
def test_settings_under_which_runs_are_not_what_their_ids_say_are_refused(tmp_path, setting, value, remedy):
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        status, _, said = main(out=tmp_path / "runs")
    finally:
        jax.config.update(setting, before)
    assert status == 2
    assert remedy in said
    assert not (tmp_path / "runs").exists()


def test_the_time_left_counts_what_this_process_trains(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(record=True, file=io.StringIO(), width=200)
    with progress.Display(console, "main", num_runs=100, num_done=60, num_steps=10) as display:
        now[0] = 50.0  # starting up and compiling
        display.compiling("all runs")
        display.advanced(8 * 9, 0, 8, None)  # of a chunk of 8 runs whose state was kept
        now[0] = 60.0
        display.advanced(8 * 1, 0, 8, 10.0)
        display.finished(8, 0, 10.0)
        now[0] = 70.0
        display.advanced(4 * 10, 0, 4, 10.0)
    # 0.8 + 4 runs in 20 seconds; 28 are left.
    assert "68 of 100 runs (4 under way, 100%), 720 steps, 2 steps/s, 0 non-finite, 117 s left" in console.export_text()


@pytest.mark.parametrize(
    "flags",
    [
        ("--plan", "--redraw"),
        ("--redraw", "--seeds=3"),
        ("--redraw", "--axis=learning_rate=0.1"),
        ("--plan", "--fresh"),
        ("--axis=learning_rate=0.1", "--axis=learning_rate=0.2"),
        ("--seeds=2", "--axis=seed=1,2"),
    ],
)
def test_flags_of_which_one_would_be_ignored_are_refused(tmp_path, flags):
    status, _, said = main(*flags, out=tmp_path / "runs")
    assert status == 2
    assert flags[1].split("=")[0].removeprefix("--") in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", "figures", "x y"])
def test_names_that_would_leave_their_folder_are_refused(tmp_path, name):
    def sweeps(scale):
        return {name: small_sweeps(scale)["main"]}

    assert "cannot be a part of" in main(experiment=SMALL._replace(sweeps=sweeps), out=tmp_path / "runs")[2]
    if name != "figures":
        assert "cannot be a part of" in main(experiment=SMALL._replace(name=f"tests.{name}"), out=tmp_path / "runs")[2]
    assert not (tmp_path / "runs").exists()


def test_results_of_another_version_are_not_drawn(trained):
    status, _, said = main("--redraw", experiment=SMALL._replace(version=2), out=trained)
    assert status == 1
    assert "is of version 1, the experiment is at 2; train again" in said


def test_figures_may_have_dots_in_their_names(tmp_path):
    from matplotlib.figure import Figure

    for name in ("rate_0.1", "rate_0.2"):
        style.save(Figure(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["rate_0.1.svg", "rate_0.2.svg"]


def saved_ids(folder):
    return store.finished(folder / "main", SMALL.name, SMALL.version, "main")[0]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder; choose another --out" in main(out=tmp_path / "file")[2]
    theirs = folders.folder_of(tmp_path, SMALL.name, "smoke")
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine")
    status, _, said = main(out=tmp_path)
    assert status == 1
    assert "holds files that are no results" in said
    assert [path.name for path in theirs.iterdir()] == ["notes.txt"]
    status, _, said = main("--redraw", out=tmp_path / "empty")
    assert status == 1
    assert "has no results at scale smoke" in said


def test_the_same_command_trains_only_what_is_missing(trained):
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    before = load(folder)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert "all 4 runs are saved" in main(out=trained)[1]
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    status, said, _ = main("--axis=learning_rate=0.1,0.3", "--sweep=main", out=trained)
    assert status == 0
    assert "4 of 4 runs" in said
    grown = load(folder)
    shared = grown["main"].select(learning_rate=0.1).frame["test/loss"]
    np.testing.assert_array_equal(shared, before["main"].select(learning_rate=0.1).frame["test/loss"])
    assert len(grown["main"]) == 4
    assert len(saved_ids(folder)) == 6  # the runs at 0.01 stay on the disk
    assert len(grown["other"]) == 2


def test_a_longer_training_stands_beside_the_shorter_one(trained):
    assert main("--num_steps=40", "--sweep=main", out=trained)[0] == 0
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    assert load(folder)["main"].steps("test/loss").tolist() == [0, 20, 40]
    assert len(saved_ids(folder)) == 8


def test_fresh_starts_over_and_says_what_it_drops(trained):
    status, said, _ = main("--fresh", "--seeds=1", out=trained)
    assert status == 0
    assert "--fresh drops" in said
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    assert len(saved_ids(folder)) == 2


def test_fresh_drops_only_the_chosen_sweeps_and_the_seconds_spent_on_them(trained):
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    about = json.loads((folder / "manifest.json").read_text())
    about["sweeps"]["main"]["seconds"] += 1000.0
    about["seconds"] += 1000.0
    (folder / "manifest.json").write_text(json.dumps(about))
    main("--fresh", "--sweep=main", "--seeds=1", out=trained)
    assert {name: len(table) for name, table in load(folder).items()} == {"other": 2, "main": 2}
    about = json.loads((folder / "manifest.json").read_text())
    by_sweep = [sweep["seconds"] for sweep in about["sweeps"].values()]
    assert all(0 < seconds < 1000 for seconds in by_sweep)
    assert about["seconds"] == pytest.approx(sum(by_sweep), abs=0.2)


def test_figures_and_claims_of_another_grid_do_not_stay(tmp_path):
    def drawn(results):
        from matplotlib.figure import Figure

        if len(results["main"]) != 4:
            raise KeyError("a rate that the figure needs")
        return Figure()

    experiment = SMALL._replace(figures=(drawn,))
    main(experiment=experiment, out=tmp_path)
    folder = folders.folder_of(tmp_path, SMALL.name, "smoke")
    assert (folder / "figures/drawn.svg").exists()
    status, said, _ = main("--seeds=3", experiment=experiment, out=tmp_path)
    assert status == 0
    assert "no figures and claims" in said
    assert not (folder / "figures").exists()
    assert not (folder / "claims.json").exists()
    broken = SMALL._replace(figures=(lambda results: 1 / 0,))
    with pytest.raises(ZeroDivisionError):  # the author's mistake on the author's own grid keeps its traceback
        main(experiment=broken, out=tmp_path / "own")
    for wrong in (lambda results: None, (lambda results: None,)):
        with pytest.raises(TypeError, match=r"must return a matplotlib Figure|must be functions, got a function"):
            main(experiment=SMALL._replace(figures=wrong), out=tmp_path / "own")


def test_results_with_runs_missing_are_not_judged(trained):
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    next((folder / "main").glob("*.parquet")).unlink()
    status, _, said = main("--redraw", out=trained)
    assert status == 1
    assert "sweep main has 0 of 4 runs; run the same command again to finish it" in said


def test_a_static_choice_among_the_swept_is_named():
    def sweeps(scale):
        return {"main": Sweep(grid(hyper={"learning_rate": (0.1,), "width": (8, 16)}), small_learner, 20, 2)}

    status, _, said = main("--plan", experiment=SMALL._replace(sweeps=sweeps))
    assert status == 2
    assert "not 'width'; if it is a static choice, put it in config" in said


def test_an_authors_own_error_keeps_its_traceback():
    def sweeps(scale):
        return {
            "main": Sweep(grid(hyper={"learning_rate": (0.1,)}), lambda config, num_steps: len(config) + "x", 20, 2)
        }

    with pytest.raises(TypeError, match="unsupported operand"):
        main("--plan", experiment=SMALL._replace(sweeps=sweeps))


def test_a_data_set_without_a_test_split_is_summed_up_by_validation(tmp_path):
    def make_learner(config, num_steps):
        made = small_learner(config, num_steps)
        return made._replace(data=made.data._replace(test=None))

    def sweeps(scale):
        return {"main": Sweep(grid(hyper={"learning_rate": (0.1, 0.2)}, seeds=2), make_learner, 20, 2)}

    status, said, _ = main(experiment=SMALL._replace(sweeps=sweeps), out=tmp_path)
    assert status == 0
    assert "best point by validation, validation/accuracy there" in said


def test_damaged_results_are_moved_aside_and_trained_again(trained):
    folder = folders.folder_of(trained, SMALL.name, "smoke")
    before = load(folder)["main"].frame
    victim = next((folder / "main").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-100])
    status, said, _ = main(out=trained)
    assert status == 0
    assert "damaged or foreign results moved to" in said
    assert load(folder)["main"].frame.equals(before)


def test_the_plan_shows_what_it_would_cost_and_trains_nothing(tmp_path):
    status, said, _ = main("--plan", out=tmp_path / "runs")
    assert status == 0
    assert "in all: 2 groups, at most 4 programs to compile, 6 runs in 2 chunks" in said
    assert re.search(r"4 +16 +1 +610 .*FLOP", said)  # runs, at once, chunks, parameters
    assert not (tmp_path / "runs").exists()


def test_one_run_can_be_trained_again_alone_bit_for_bit(trained):
    table = load(folders.folder_of(trained, SMALL.name, "smoke"))["main"]
    row = 2
    again = api.train_again(api.plan(SMALL, scale="smoke"), table.frame["run_id"][row])
    for name, values in again.items():
        np.testing.assert_array_equal(values, table.curves(name)[row])
    status, said, _ = main(f"--run_id={table.frame['run_id'][row]}")
    assert status == 0
    assert f"{again['test/loss'][-1]:.5g}" in said
    main("--num_steps=40", "--axis=learning_rate=0.3", out=trained)
    longer = load(folders.folder_of(trained, SMALL.name, "smoke"))["main"]
    asked = f"--run_id={longer.frame['run_id'][1]}"
    status, said, _ = main("--num_steps=40", "--axis=learning_rate=0.3", asked)
    assert status == 0
    assert f"{longer.frame['test/loss'][1]:.5g}" in said


def test_an_axis_of_an_experiment_whose_scales_are_derived_may_be_changed(tmp_path):
    flags = ("--plan", "--sweep=digits", "--axis=learning_rate=0.1,0.2,0.3")
    status, said, errors = main(*flags, experiment=EXPERIMENT, out=tmp_path)
    assert status == 0, errors
    assert "6 runs" in said


def test_help_names_the_question_and_every_flag():
    status, said, _ = main("--help")
    assert status == 0
    assert SMALL.question in said
    for name in cli._flags():
        assert f"--{name}" in said or f"[no]{name}" in said


def test_provenance_tells_how_to_train_the_numbers_again(trained_once):
    folder = folders.folder_of(trained_once, SMALL.name, "smoke")
    for _, _, about in store.chunks(folder / "main"):
        assert about["provenance"].keys() >= {
            "jax",
            "flax",
            "optax",
            "device",
            "width",
            "git_commit",
            "num_devices",
            "random_numbers",
        }
        assert about["provenance"]["random_numbers"] == "threefry2x32"
    text = (folder / "manifest.json").read_text()
    assert str(trained_once) not in text
    assert json.loads(text)["sweeps"]["main"]["num_runs"] == 4


def test_redrawing_imports_no_engine(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['x', '--redraw', '--out=' + sys.argv[1]]\n"
        "try: runpy.run_module('experiments.optimization.optimizers', run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        "print('dlexp.sweep.engine' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("False"), done.stderr
    assert (tmp_path / "optimization/optimizers/cpu/figures/accuracy_by_rate.svg").exists()


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path):
    seeds = 10 * machine.num_cores()  # two rates: three chunks
    flags = ["--num_steps=500", "--sweep=mnist1d", "--axis=optimizer=sgd", f"--seeds={seeds}"]
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "--scale=smoke", *flags, f"--out={tmp_path / 'stopped'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    folder = folders.folder_of(tmp_path / "stopped", EXPERIMENT.name, "smoke") / "mnist1d"
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(folder.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == cli.INTERRUPTED, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    saved, moved = store.finished(folder, EXPERIMENT.name, 1, "mnist1d")
    assert not moved
    assert 0 < len(saved) < 2 * seeds
    for out in ("stopped", "undisturbed"):
        status, _, said = main(*flags, experiment=EXPERIMENT, out=tmp_path / out)
        assert status == 0, said
    stopped, undisturbed = (
        load(folders.folder_of(tmp_path / out, EXPERIMENT.name, "smoke")) for out in ("stopped", "undisturbed")
    )
    assert stopped["mnist1d"].frame.equals(undisturbed["mnist1d"].frame)
    curves = [each["mnist1d"].curves("test/loss") for each in (stopped, undisturbed)]
    np.testing.assert_array_equal(*curves)


def test_a_notebook_with_the_backend_up_takes_the_devices_there_are(tmp_path):
    code = (
        "import jax; jax.devices()\n"
        "from dlexp import api\n"
        "from tests.test_cli import SMALL\n"
        f"results = api.run(SMALL, scale='smoke', out={str(tmp_path)!r})\n"
        "print(len(jax.devices()), len(results['main']), results['main'].frame['test/loss'].notna().all())"
    )
    # tests.conftest would start the devices first; the notebook comes without it
    code = code.replace("from tests.test_cli import SMALL\n", _SMALL_IN_FULL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("1 4 True"), done.stderr


_SMALL_IN_FULL = """
from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import grid
from dlexp.types import Experiment, Sweep
def make(config, num_steps):
    model = models.mlp(width=8, num_layers=2, num_outputs=10)
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), bundled.load(), batch_size=16)
GRID = grid(hyper={"learning_rate": (.1, .01)}, seeds=2)
SMALL = Experiment("tests.note", 1, "?", lambda scale: {"main": Sweep(GRID, make, 20, 2)})
"""


def test_what_a_smaller_grid_can_show_is_drawn_and_the_rest_is_named(tmp_path):
    from matplotlib.figure import Figure

    def needs(table, rate):
        table.select(learning_rate=rate)
        return Figure()

    def low(results):
        return needs(results["main"], 0.01)

    def high(results):
        return needs(results["main"], 0.1)

    partly = SMALL._replace(figures=(low, high))
    folder = folders.folder_of(tmp_path, SMALL.name, "smoke")
    main(experiment=partly, out=tmp_path)
    assert {path.stem for path in (folder / "figures").iterdir()} == {"low", "high"}
    status, said, _ = main("--axis=learning_rate=0.1", experiment=partly, out=tmp_path)
    assert status == 0
    assert "figure low is left out: select: no run of sweep main has {'learning_rate': 0.01}" in said.replace("\n", " ")
    assert {path.stem for path in (folder / "figures").iterdir()} == {"high"}
    status, said, _ = main("--axis=learning_rate=0.3", experiment=partly, out=tmp_path)
    assert "no figures and claims" in said


def test_a_choice_that_the_experiment_does_not_know_is_said_in_a_sentence(tmp_path):
    def make(config, num_steps):
        return {"plain": small_learner(config, num_steps)}[config["kind"]]

    def sweeps(scale):
        points = grid(config={"kind": ("plain",)}, hyper={"learning_rate": (0.1,)})
        return {"main": Sweep(points, make, 20, 2)}

    status, _, said = main("--axis=kind=fancy", experiment=SMALL._replace(sweeps=sweeps), out=tmp_path / "runs")
    assert status == 2
    assert "--axis=kind=fancy: the experiment knows no 'fancy'" in said
    assert not (tmp_path / "runs").exists()


def test_more_seeds_go_on_from_the_declared_ones(tmp_path):
    def sweeps(scale):
        points = grid(hyper={"learning_rate": (0.1,)}, seeds=(8, 9))
        return {"main": Sweep(points, lambda config, num_steps: small_learner(config, num_steps), 20, 2)}

    held_out = SMALL._replace(sweeps=sweeps)
    main(experiment=held_out, out=tmp_path)
    main("--seeds=4", experiment=held_out, out=tmp_path)
    results = load(folders.folder_of(tmp_path, SMALL.name, "smoke"))
    assert sorted(results["main"].frame["seed"]) == [8, 9, 10, 11]
