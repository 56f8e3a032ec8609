"""Whatever happens, no finished run is lost and the same command goes on: kills, full disks, little memory."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dlexp import api, cli, progress, training
from dlexp.results import checkpoint, files, folders, load, store
from dlexp.sweep import engine, grid, layouts, programs
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.types import Experiment, Learner, Range, Sweep
from tests.conftest import finished, small_learner
from tests.test_cli import main

ROOT = Path(__file__).parents[1]

# An experiment of its own process: `python child.py OUT KIND NUMBER`; KIND says how it comes to its end.
CHILD = """
import builtins, os, resource, signal, sys
from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import grid, layouts, machine
from dlexp.types import Experiment, Sweep

layouts.CACHED_BYTES = float("inf")  # large networks, too, are begun 8 at once on a device
layouts.MAX_WIDTH_OF_SMALL = 8  # and small ones: there are many chunks
out, kind, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
width, num_layers = {"memory": (1024, 8)}.get(kind, (8, 2))
num_steps = {"store": 20, "random": 400, "memory": 2}[kind]
seeds = {"store": 20, "random": 200, "memory": 8}[kind]


def make_learner(config, num_steps):
    model = models.mlp(width=width, num_layers=num_layers, num_outputs=10)
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), bundled.load(), batch_size=16)


def sweeps(scale):
    return {"main": Sweep(grid(hyper={"learning_rate": (0.01, 0.1)}, seeds=seeds), make_learner, num_steps, 2)}


def moment():
    global number
    number -= 1
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_at(function):
    def counted(*args, **kwargs):
        moment()
        return function(*args, **kwargs)
    return counted


class HalfWritten:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, content):
        moment()  # open and empty
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        moment()  # half of it written
        self.file.write(content[len(content) // 2 :])


if kind == "store" and number:
    from dlexp.results import files
    for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rename"), (os, "mkdir"), (os, "rmdir")):
        setattr(module, name, killed_at(getattr(module, name)))
    plain_open = killed_at(builtins.open)
    files.open = lambda path, mode: HalfWritten(plain_open(path, mode))
if kind == "memory":
    from dlexp.sweep import engine
    train_chunk, limited = engine._train_chunk, []
    def with_little_memory(*args):
        if not limited:
            limited.append(int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 800 * 2**20)
            resource.setrlimit(resource.RLIMIT_AS, (limited[0], limited[0]))
        yield from train_chunk(*args)
    engine._train_chunk = with_little_memory
EXPERIMENT = Experiment("tests.child", 1, "Does it survive?", sweeps)
cli.main(EXPERIMENT, ["child", "--scale=smoke", f"--out={out}"])
"""


@pytest.fixture
def child(tmp_path):
    path = tmp_path / "child.py"
    path.write_text(CHILD)

    def command(out, kind, number=0):
        return [sys.executable, str(path), str(out), kind, str(number)]

    return command


def table_of(out):
    return load(folders.folder_of(out, "tests.child", "smoke"))["main"]


def chunks_of(folder):
    return [store.read_chunk(path)[0]["run_id"].to_pylist() for path in folder.glob("*.parquet")]


def saved_ids(folder):
    return {run_id for run_ids in chunks_of(folder) for run_id in run_ids}


def trained_ids(folder):
    """Of files that hold what one process trained; merged ones, which may hold a run once more, tell of several."""
    read = [store.read_chunk(path) for path in folder.glob("*.parquet")]
    return [
        run_id
        for table, about in read
        if isinstance(about["provenance"], dict)
        for run_id in table["run_id"].to_pylist()
    ]


def assert_same(one, other):
    assert one.frame.equals(other.frame)
    for metric in one.metrics:
        np.testing.assert_array_equal(one.curves(metric), other.curves(metric))


@pytest.mark.slow
def test_a_kill_at_any_write_rename_or_sync_of_the_store_loses_nothing(child, tmp_path):
    subprocess.run(child(tmp_path / "whole", "store"), check=True, capture_output=True)
    whole, number, out = table_of(tmp_path / "whole"), 0, tmp_path / "killed"
    while True:
        number += 1
        shutil.rmtree(out, ignore_errors=True)
        killed = subprocess.run(child(out, "store", number), capture_output=True, text=True)
        if killed.returncode == 0:
            break  # fewer than `number` such calls in a whole life
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if (folders.folder_of(out, "tests.child", "smoke") / folders.MANIFEST).exists():
            load(folders.folder_of(out, "tests.child", "smoke"))  # nothing half-written is read as whole
        again = subprocess.run(child(out, "store"), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert_same(table_of(out), whole)
        folder = folders.folder_of(out, "tests.child", "smoke")
        assert not list(folder.rglob("*.tmp"))
        assert not (folder / files.SET_ASIDE).exists()
    assert number > 20


@pytest.mark.slow
def test_kills_at_random_moments_of_the_training_lose_no_chunk_and_train_none_twice(child, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(child(whole, "random"), check=True, capture_output=True)
    chooser, num_kills, rounds = random.Random(0), 0, 0
    folder = folders.folder_of(out, "tests.child", "smoke") / "main"
    while num_kills < 50:
        rounds += 1
        process = subprocess.Popen(child(out, "random"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None and not (folder.exists() and len(list(folder.glob("*.parquet")))):
            time.sleep(0.01)  # until the first compilation is over and a chunk is saved
        before = saved_ids(folder)
        time.sleep(chooser.uniform(0, 2.0))
        process.kill()
        process.communicate()
        num_kills += process.returncode == -signal.SIGKILL
        ids = saved_ids(folder)
        assert before <= ids
        assert len(trained_ids(folder)) <= len(ids)  # none twice
        if process.returncode == 0 or len(ids) >= 300:
            subprocess.run(child(out, "random"), check=True, capture_output=True)
            assert_same(table_of(out), table_of(whole))
            shutil.rmtree(out)  # finished: begin anew until 50 kills have been survived
    assert rounds < 200


def long_learner(config, num_steps):
    """Has random numbers, batch statistics and a schedule in its state: all must be kept."""
    from dlexp import learners, losses, models, optim
    from dlexp.data import bundled

    model = models.mlp(width=8, num_layers=3, num_outputs=10, normalization="batch", dropout="inverted")
    tx = optim.adam(optim.cosine(num_steps))
    return learners.supervised(model, losses.softmax_cross_entropy, tx, bundled.load(), batch_size=16)


GRID = grid(hyper={"learning_rate": (0.01, 1e30), "dropout_rate": (0.2,)}, seeds=2)
LONG = Experiment("tests.long", 1, "Long?", lambda scale: {"main": Sweep(GRID, long_learner, 24, 3)})


def test_a_chunk_goes_on_bit_for_bit_from_a_state_kept_between_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)
    whole = api.run(LONG, scale="smoke", out=tmp_path / "whole", console=Console(quiet=True))
    monkeypatch.setattr(training, "LONG_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    kept = []
    save = checkpoint.save

    def dies_after_the_13th(folder, chunk, step, arrays):
        save(folder, chunk, step, arrays)
        kept.append(step)
        if step == 13:
            raise RuntimeError("power cut")

    monkeypatch.setattr(checkpoint, "save", dies_after_the_13th)
    with pytest.raises(RuntimeError, match="power cut"):
        api.run(LONG, scale="smoke", out=tmp_path / "cut", console=Console(quiet=True))
    assert kept == list(range(1, 14))
    assert not list(tmp_path.glob("cut/**/*.parquet"))
    monkeypatch.setattr(checkpoint, "save", lambda folder, chunk, step, arrays: kept.append(step))
    resumed = api.run(LONG, scale="smoke", out=tmp_path / "cut", console=Console(quiet=True))
    assert kept[13:] == list(range(14, 25))  # from the step after the kept state
    assert_same(resumed["main"], whole["main"])
    assert not list(tmp_path.glob(f"cut/**/{checkpoint.FOLDER}"))


def keyed_learner(config, num_steps):
    """A random walk whose key is a part of its state."""

    def update(key, hyper, data, state):
        own, w = state
        own, step_key = jax.random.split(own)
        w = w + hyper["learning_rate"] * jax.random.normal(step_key)
        return (own, w), {"batch/w": w}

    from dlexp import optim

    return Learner(
        np.zeros(1, np.float32),
        {"learning_rate": optim.LEARNING_RATE},
        lambda key, hyper, data: (jax.random.split(key)[0], jnp.zeros((config["size"],) if config else ())),
        update,
        lambda key, hyper, data, state: {"test/w": state[1].sum()},
    )


def test_a_state_with_a_random_key_goes_on_bit_for_bit(devices, monkeypatch):
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)
    sweep = Sweep(grid(hyper={"learning_rate": (0.1, 0.2)}), keyed_learner, 12, 2)
    plan = planning.make(Identity("tests.keyed", 1, "main", 12), sweep, devices)
    kept = {}
    for event in engine.train(plan, devices):
        if isinstance(event, engine.Advanced) and not kept and event.run_steps == 2:
            kept[event.chunk] = event.snapshot()
    (step,) = (each.step for each in kept.values())
    whole, resumed = (
        next(event for event in engine.train(plan, devices, resume=source.get) if isinstance(event, engine.Finished))
        for source in ({}, kept)
    )
    assert step < 12
    np.testing.assert_array_equal(whole.metrics["test/w"][:, -1], resumed.metrics["test/w"][:, -1])


def test_a_state_of_another_program_is_not_gone_on_from(devices):
    plans = [
        planning.make(
            Identity("tests.keyed", 1, "main", 4),
            Sweep(
                grid(hyper={"learning_rate": (0.1,)}), lambda c, n, size=size: keyed_learner({"size": size}, n), 4, 1
            ),
            devices,
        )
        for size in (2, 3)
    ]
    advanced = (event for event in engine.train(plans[0], devices) if isinstance(event, engine.Advanced))
    kept = {event.chunk: event.snapshot() for event in [next(advanced)]}
    again = list(engine.train(plans[1], devices, resume=kept.get))
    assert kept
    assert sum(event.run_steps for event in again if isinstance(event, engine.Advanced)) == 4
    assert [event.status for event in again if isinstance(event, engine.Finished)] == [("ok",)]


def test_a_state_with_arrays_of_size_0_is_kept_and_gone_on_from(tmp_path, devices, monkeypatch):
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)

    def make_learner(config, num_steps):
        def update(key, hyper, data, state):
            return {**state, "w": state["w"] * hyper["rate"]}, {"batch/loss": state["w"]}

        return Learner(
            data={"unused": np.ones(1)},
            hyper={"rate": Range(0.0, default=0.5)},
            init=lambda key, hyper, data: {"w": jnp.float32(1), "a": jnp.zeros((64, 0)), "b": jnp.zeros((0, 3), int)},
            update=update,
            evaluate=lambda key, hyper, data, state: {"test/loss": state["w"]},
        )

    sweep = Sweep(grid(hyper={"rate": (0.5,)}), make_learner, num_steps=4, num_evals=4)
    plan = planning.make(Identity("tests.any", 1, "main", 4), sweep, devices)
    first = next(event for event in engine.train(plan, devices) if isinstance(event, engine.Advanced))
    snapshot = first.snapshot()
    checkpoint.save(tmp_path, first.chunk, snapshot.step, training._to_arrays(snapshot))
    step, read = checkpoint.restore(tmp_path, first.chunk)
    kept = training._to_snapshot(step, read)
    assert [leaf.dtype for leaf in kept.carry] == [leaf.dtype for leaf in snapshot.carry]
    place = next(index for index, leaf in enumerate(kept.carry) if leaf.dtype == np.float32 and leaf.ndim == 1)
    kept.carry[place] = np.full_like(kept.carry[place], 8.0)  # shows in the end, if it goes on from here
    again = engine.train(plan, devices, resume={first.chunk: kept}.get)
    last = next(event for event in again if isinstance(event, engine.Finished))
    assert last.metrics["test/loss"][0, -1] == 8.0 * 0.5 ** (4 - step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool"])
def test_an_empty_array_keeps_its_type_in_a_state(tmp_path, dtype):
    checkpoint.save(tmp_path, "chunk", 1, {"carry0": np.zeros((2, 0), dtype), "carry1": np.zeros(2)})
    _, read = checkpoint.restore(tmp_path, "chunk")
    assert (read["carry0"].dtype, read["carry0"].shape) == (np.dtype(dtype), (2, 0))


def test_a_damaged_state_is_passed_over(tmp_path):
    arrays = {"carry0": np.arange(6.0).reshape(2, 3), "empty": np.zeros((2, 0))}
    checkpoint.save(tmp_path, "chunk", 5, arrays)
    step, read = checkpoint.restore(tmp_path, "chunk")
    assert step == 5
    assert read["empty"].shape == (2, 0)
    np.testing.assert_array_equal(read["carry0"], arrays["carry0"])
    for path in (tmp_path / checkpoint.FOLDER).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert checkpoint.restore(tmp_path, "chunk") is None
    checkpoint.discard(tmp_path, "chunk")
    assert not (tmp_path / checkpoint.FOLDER).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_segment_with_the_state_kept(tmp_path, monkeypatch, number):
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)
    whole = api.run(LONG, scale="smoke", out=tmp_path / "whole", console=Console(quiet=True))
    advanced, calls = training.Display.advanced, []

    def signalled(display, run_steps, num_nonfinite, num_runs, took):
        advanced(display, run_steps, num_nonfinite, num_runs, took)
        calls.append(run_steps)
        if len(calls) == 10:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training.Display, "advanced", signalled)
    status, said, _ = main(experiment=LONG, out=tmp_path / "stopped")
    assert status == cli.INTERRUPTED
    assert "stopping after this segment" in said
    assert "the same command goes on" in said
    assert len(calls) == 10
    resumed = api.run(LONG, scale="smoke", out=tmp_path / "stopped", console=Console(quiet=True))
    assert calls[10] == 10 * 4  # it went on from the 10 steps of its four runs
    assert_same(resumed["main"], whole["main"])
    assert signal.getsignal(signal.SIGINT) is not None


@pytest.mark.parametrize(
    "message", ["RESOURCE_EXHAUSTED: allocating 123 bytes.", "INTERNAL: Error dispatching: Out of memory allocating 9."]
)
def test_out_of_memory_halves_the_width_and_goes_on(devices, monkeypatch, message):
    lower = programs.lower

    class TooWide:
        def __init__(self, lowered):
            self._lowered = lowered

        def __getattr__(self, name):
            return getattr(self._lowered, name)

        def compile(self, **options):
            def fails(*args):
                raise jax.errors.JaxRuntimeError(message)

            return fails

    def lowered_too_wide(group, mesh):
        return [TooWide(each) if group.width > 2 else each for each in lower(group, mesh)]

    whole = finished(grid(hyper={"learning_rate": (0.1, 0.2)}, seeds=5), devices)
    monkeypatch.setattr(programs, "lower", lowered_too_wide)
    plan = planning.make(
        Identity("tests.any", 1, "main", 20),
        Sweep(grid(hyper={"learning_rate": (0.1, 0.2)}, seeds=5), small_learner, 20, 2),
        devices,
    )
    events = list(engine.train(plan, devices))
    assert [event.width for event in events if isinstance(event, engine.Narrowed)] == [4, 2]
    chunks = [event for event in events if isinstance(event, engine.Finished)]
    assert sum(len(chunk.runs) for chunk in chunks) == len(whole) == 10
    assert {chunk.layout.width for chunk in chunks} == {2}
    for chunk in chunks:
        for row, (_, run) in enumerate(chunk.runs):
            wide, place = whole[(*run.hyper.values(), run.seed)]
            # Another width is another order of sums: equal to float32, not bit for bit.
            np.testing.assert_allclose(chunk.metrics["test/loss"][row], wide.metrics["test/loss"][place], rtol=1e-4)


def test_a_run_that_does_not_fit_alone_is_said_with_the_bytes(tmp_path, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        yield

    monkeypatch.setattr(engine, "_train_chunk", full)
    status, said, errors = main("--sweep=main", out=tmp_path)
    assert status == 1
    assert said.count("out of memory; going on with") == 3  # 4, 2, 1
    assert re.search(r"needs about \d+ MiB a device, there are \d+ MiB", errors)


def test_other_errors_of_the_runtime_are_not_taken_for_memory(devices, monkeypatch):
    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
        yield

    monkeypatch.setattr(engine, "_train_chunk", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        finished(grid(hyper={"learning_rate": (0.1,)}), devices)


@pytest.mark.parametrize(("seconds", "saved_at_once"), [(0.0, True), (1e9, False)])
def test_a_chunk_that_took_long_is_saved_at_once_and_quick_ones_by_the_end(
    tmp_path, monkeypatch, seconds, saved_at_once
):
    monkeypatch.setattr(store, "FILE_SECONDS", seconds)
    folder, seen, finish = folders.folder_of(tmp_path, "tests.small", "smoke") / "main", [], progress.Display.finished

    def noted(display, num_runs, num_nonfinite, seconds_spent):
        seen.append(len(saved_ids(folder)))
        finish(display, num_runs, num_nonfinite, seconds_spent)

    monkeypatch.setattr(progress.Display, "finished", noted)
    assert main("--sweep=main", "--seeds=20", out=tmp_path)[0] == 0
    assert len(seen) > 1
    assert all((saved > 0) == saved_at_once for saved in seen)
    assert len(saved_ids(folder)) == 40


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_full_disk_is_said_and_what_was_saved_stays_readable(tmp_path, monkeypatch, nth):
    main(out=tmp_path)  # the manifest and two sweeps
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= nth:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    status, _, errors = main("--seeds=40", out=tmp_path)
    assert status == 1
    assert "No space left on device" in errors
    assert len(errors.strip().splitlines()) == 1
    monkeypatch.undo()
    folder = folders.folder_of(tmp_path, "tests.small", "smoke")
    assert len(load(folder)["main"]) >= 4
    assert main("--seeds=40", out=tmp_path)[0] == 0
    assert len(load(folder)["main"]) == 80


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for 200 kB, where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("this machine lets us mount no small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk_is_said_and_room_lets_it_go_on(small_disk, monkeypatch):
    monkeypatch.setattr(store, "FILE_SECONDS", 0.0)  # many small files: some of them fit
    monkeypatch.setattr(layouts, "MAX_WIDTH_OF_SMALL", 8)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 170_000)
    status, _, errors = main("--seeds=200", "--sweep=main", out=small_disk)
    assert status == 1
    assert "No space left on device" in errors
    folder = folders.folder_of(small_disk, "tests.small", "smoke")
    saved = len(load(folder)["main"])
    assert 0 < saved < 400
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert main("--seeds=200", "--sweep=main", out=small_disk)[0] == 0
    assert len(load(folder)["main"]) == 400


def test_a_state_that_finds_no_room_is_said_and_leaves_the_older_one(small_disk):
    checkpoint.save(small_disk, "chunk", 1, {"x": np.arange(10.0)})
    noise = np.random.default_rng(0).normal(size=10**6)
    with pytest.raises(OSError, match=r"cannot be kept|No space left"):
        checkpoint.save(small_disk, "chunk", 2, {"x": noise})
    step, arrays = checkpoint.restore(small_disk, "chunk")
    assert step == 1
    np.testing.assert_array_equal(arrays["x"], np.arange(10.0))


def test_a_read_only_disk_is_said(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, _, errors = main(out=small_disk)
    assert status == 1
    assert "cannot be written" in errors
    assert "choose another --out" in errors


def test_two_processes_never_share_a_folder(child, tmp_path):
    out = tmp_path / "runs"
    first = subprocess.Popen(child(out, "random"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = folders.folder_of(out, "tests.child", "smoke")
    while first.poll() is None and not (folder / folders.MANIFEST).exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # alive, and holding what it holds
    second = subprocess.run(child(out, "random"), capture_output=True, text=True)
    assert second.returncode == 1
    assert "is in use by another process" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    first.communicate()
    third = subprocess.run(child(out, "random"), capture_output=True, text=True)
    assert third.returncode == 0, third.stderr  # a dead process holds no lock
    assert len(table_of(out)) == 400


def spoiled_learner(where, step, value):
    """w counts the steps of one number; at `step` something of it is no longer finite."""

    def spoil(number, now, name):
        return jnp.where((now == step) & (name == where), value, number)

    def update(key, hyper, data, state):
        w, now = state
        bad = jnp.where(hyper["learning_rate"] > 1, 1, 0)  # only runs at rates above 1 are spoiled
        gradient = jnp.where(bad, spoil(1.0, now + 1, "gradient"), 1.0)
        loss = jnp.where(bad, spoil(w, now + 1, "loss"), w)
        w = jnp.where(bad, spoil(w + gradient, now + 1, "params"), w + gradient)
        return (w, now + 1), {"batch/loss": loss}

    from dlexp import optim

    return lambda config, num_steps: Learner(
        np.zeros(1, np.float32),
        {"learning_rate": optim.LEARNING_RATE},
        lambda key, hyper, data: (
            jnp.where((hyper["learning_rate"] > 1) & (step == 0), value, jnp.zeros(())),
            jnp.zeros((), jnp.int32),
        ),
        update,
        lambda key, hyper, data, state: {"test/w": state[0]},
    )


@pytest.mark.parametrize(
    ("where", "step", "seen"),
    # a spoiled loss is seen at once; spoiled weights by the next step's loss, or by the evaluation if that comes first
    [("loss", 3, 3), ("gradient", 3, 4), ("params", 3, 4), ("params", 12, 12), ("loss", 12, 12), ("params", 0, 0)],
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_dated_wherever_they_begin(devices, where, step, seen, value):
    made = spoiled_learner(where, step, value)
    sweep = grid(hyper={"learning_rate": (0.5, 2.0)}, seeds=2)
    rows = finished(sweep, devices, make_learner=made, num_steps=12, num_evals=3)
    healthy = finished(
        grid(hyper={"learning_rate": (0.5,)}, seeds=2), devices, make_learner=made, num_steps=12, num_evals=3
    )
    for seed in (0, 1):
        chunk, row = rows[(2.0, seed)]
        assert (chunk.status[row], chunk.nonfinite_at[row]) == ("nonfinite", seen)
        curve = chunk.metrics["test/w"][row]
        np.testing.assert_array_equal(np.isfinite(curve), np.array([0, 4, 8, 12]) < seen)
        ours, place = rows[(0.5, seed)]
        theirs, other = healthy[(0.5, seed)]
        np.testing.assert_array_equal(ours.metrics["test/w"][place], theirs.metrics["test/w"][other])
        assert ours.nonfinite_at[place] == -1
    alone = finished(grid(hyper={"learning_rate": (2.0,)}), devices, make_learner=made, num_steps=12, num_evals=3)
    assert alone[(2.0, 0)][0].nonfinite_at[0] == seen


@pytest.mark.slow
def test_loading_100_000_runs_with_curves_takes_seconds(tmp_path):
    from tests.test_results import save

    declared = grid(hyper={"learning_rate": tuple(np.linspace(0.1, 1, 100).tolist())}, seeds=1000)
    save(tmp_path, declared, chunk=1000, num_evals=20)
    store.compact(tmp_path / "main")
    began = time.perf_counter()
    main_table = load(tmp_path)["main"]
    assert main_table.curves("test/loss").shape == (100_000, 21)
    assert len(main_table.frame) == 100_000
    assert time.perf_counter() - began < 30


_MEMORY = """
import resource, sys
from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import engine, grid, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.types import Sweep

machine.enable_compile_cache()
num_runs, num_steps = int(sys.argv[1]), int(sys.argv[2])

def make_learner(config, num_steps):
    model = models.mlp(width=4, num_layers=2, num_outputs=3)
    return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), bundled.load("iris"), batch_size=8)

devices = machine.start_devices()
sweep = Sweep(grid(hyper={"learning_rate": (0.1,)}, seeds=num_runs), make_learner, num_steps, 2)
plan = planning.make(Identity("tests.memory", 1, "main", num_steps), sweep, devices)
steps, rows, peak = 0, 0, []
for event in engine.train(plan, devices):
    if isinstance(event, engine.Advanced):
        steps += event.run_steps
    if isinstance(event, engine.Finished):
        rows += len(event.runs)
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
assert (rows, steps) == (num_runs, num_runs * num_steps), (rows, steps)
print(peak[min(9, len(peak) - 1)], peak[-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_runs", "num_steps"), [(20_000, 10), (1, 200_000)])
def test_memory_stays_flat_and_progress_adds_up_in_long_and_large_sweeps(num_runs, num_steps):
    command = [sys.executable, "-c", _MEMORY, str(num_runs), str(num_steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    early, late = map(float, done.stdout.split())
    assert late < early + 100  # MiB


@pytest.mark.slow
def test_a_real_memory_limit_narrows_the_calls_until_they_fit(child, tmp_path):
    """16 runs of 73 MB each, and 800 MB more address space than the process has as the first call begins."""
    done = subprocess.run(child(tmp_path / "runs", "memory"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out of memory; going on with" in done.stdout
    assert len(table_of(tmp_path / "runs")) == 16
