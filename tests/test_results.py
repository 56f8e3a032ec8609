"""What is saved is what is read: the store and the tables, on results made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlexp import report
from dlexp.results import ResultsError, files, folders, load, store, table
from dlexp.results.columns import NONE, of_grid
from dlexp.sweep import grid
from dlexp.sweep.grids import Identity, run_id

PROVENANCE = {"jax": "0", "width": 8}
METRICS = ("test/loss", "batch/loss", "test/norms")


def write(folder, columns, about, shared=NONE):
    """Writes one chunk; returns the file that was not there before."""
    before = set(folder.glob("*.parquet"))
    with store.Writer(folder, shared) as writer:
        writer.add(columns, about)
    return next(iter(set(folder.glob("*.parquet")) - before), None)


def save(
    folder, declared, *, value=lambda run: float(run.seed), num_evals=2, chunk=3, keep=lambda run: True, metrics=METRICS
):
    """Writes a sweep as the engine's caller does; `value` makes the last test loss of a run."""
    identity = Identity("tests.made", 1, "main", 10)
    manifest = {
        "experiment": "tests.made",
        "version": 1,
        "scale": "smoke",
        "sweeps": {
            "main": {
                "num_steps": 10,
                "num_evals": num_evals,
                "num_runs": sum(map(declared.num_runs, declared.families())),
                "blocks": table.describe(declared),
            }
        },
    }
    folders.write_manifest(folder, manifest)
    shared = store.conform(folder / "main", of_grid(declared))
    for family in declared.families():
        runs = [run for run in declared.runs(family) if keep(run)]
        for start in range(0, len(runs), chunk):
            part = runs[start : start + chunk]
            curves = np.array([np.linspace(0, value(run), num_evals + 1) for run in part], np.float32)
            measured = {"test/loss": curves, "batch/loss": curves[:, 1:], "test/norms": np.stack([curves] * 4, axis=2)}
            columns = {
                "run_id": [run_id(identity, run) for run in part],
                **{name: [run.config[name] for run in part] for name in family.config},
                **{name: np.array([run.hyper[name] for run in part], float) for name in family.hyper_names},
                "seed": np.array([run.seed for run in part]),
                "status": ["ok" if np.isfinite(value(run)) else "nonfinite" for run in part],
                "nonfinite_at": np.full(len(part), -1, np.int32),
                **{name: measured[name] for name in metrics},
            }
            about = {
                "identity": identity._asdict(),
                "num_evals": num_evals,
                "config": dict(family.config),
                "metrics": list(metrics),
                "provenance": PROVENANCE,
            }
            write(folder / "main", columns, about, shared)
    return folder


DECLARED = grid(config={"width": (8, 16)}, hyper={"learning_rate": (0.1, 0.01)}, seeds=4)


def test_a_saved_sweep_reads_back_equal(tmp_path):
    results = load(save(tmp_path, DECLARED))
    main = results["main"]
    assert len(main) == 16
    assert main.frame["width"].tolist() == [8] * 8 + [16] * 8  # the grid's order, not the files'
    assert main.frame["learning_rate"].tolist()[:8] == [0.1] * 4 + [0.01] * 4
    assert main.frame["test/loss"].tolist() == [0.0, 1.0, 2.0, 3.0] * 4
    assert main.curves("test/loss").shape == (16, 3)
    assert main.curves("test/norms").shape == (16, 3, 4)
    assert main.steps("test/loss").tolist() == [0, 5, 10]
    assert main.steps("batch/loss").tolist() == [5, 10]


def test_compacting_keeps_every_row_and_is_idempotent(tmp_path):
    save(tmp_path, DECLARED)
    before = load(tmp_path)["main"]
    store.compact(tmp_path / "main")
    files = sorted(path.name for path in (tmp_path / "main").iterdir())
    after = load(tmp_path)["main"]
    assert len(files) == 2  # one a group
    assert before.frame.equals(after.frame)
    np.testing.assert_array_equal(before.curves("test/norms"), after.curves("test/norms"))
    store.compact(tmp_path / "main")
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == files


def test_a_sweep_is_compared_with_the_runs_that_the_reference_has_too(tmp_path):
    def sentences(one, other):
        return list(report.agreement(load(one), load(other)))

    own = save(tmp_path / "own", DECLARED)
    other = save(tmp_path / "other", DECLARED, value=lambda run: run.seed + 0.5, keep=lambda run: run.seed != 1)
    assert sentences(own, other) == [
        "main: 12 of 16 runs are in the reference too, test/loss differs by 0.5 in the median and 0.5 at most, "
        "12 have the same status"
    ]
    arrays = save(tmp_path / "arrays", DECLARED, metrics=("test/norms",))
    assert sentences(arrays, own) == ["main: 16 of 16 runs are in the reference too, 16 have the same status"]
    strangers = save(tmp_path / "strangers", grid(config={"width": (99,)}, hyper={"learning_rate": (0.1,)}))
    assert sentences(own, strangers) == ["main: shares no run with the reference"]


def test_large_files_are_left_alone_and_no_row_is_lost(tmp_path, monkeypatch):
    save(tmp_path, DECLARED)
    before = load(tmp_path)["main"]
    num_chunks = len(list((tmp_path / "main").iterdir()))
    monkeypatch.setattr(store, "_ROWS_ENOUGH", 5)
    for _ in range(2):
        store.compact(tmp_path / "main")
        assert 2 < len(list((tmp_path / "main").iterdir())) < num_chunks
        assert load(tmp_path)["main"].frame.equals(before.frame)


def test_arrays_are_labelled_by_the_axes(tmp_path):
    array = load(save(tmp_path, DECLARED))["main"].labelled("test/loss")
    assert array.dims == ("width", "learning_rate", "seed", "step")
    assert array.sel(width=16, learning_rate=0.01, seed=3, step=10).item() == 3.0


def test_ragged_unions_are_labelled_too(tmp_path):
    ragged = grid(config={"width": (8,)}, hyper={"learning_rate": (0.1,)}, seeds=2) | grid(
        config={"width": (8,)}, hyper={"learning_rate": (0.1,), "momentum": (0.5, 0.9)}, seeds=1
    )
    main = load(save(tmp_path, ragged))["main"]
    array = main.labelled("test/loss")
    assert array.sizes["momentum"] == 3
    assert int(array.notnull().isel(step=0).sum()) == len(main) == 4
    assert main.select(momentum=None, seed=1).frame["test/loss"].tolist() == [1.0]


def test_selecting_takes_values_lists_and_rounded_numbers(tmp_path):
    main = load(save(tmp_path, DECLARED))["main"]
    assert len(main.select(width=8, learning_rate=0.1)) == 4
    assert len(main.select(seed=[0, 1], learning_rate=0.1 + 1e-12)) == 4
    with pytest.raises(ValueError, match="no axis 'depth'"):
        main.select(depth=1)
    with pytest.raises(ValueError, match="no run"):
        main.select(width=9)


def test_the_frame_exports_as_csv(tmp_path):
    main = load(save(tmp_path / "r", DECLARED))["main"]
    main.to_csv(tmp_path / "runs.csv")
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(lines) == 17
    assert lines[0].startswith("run_id,width,learning_rate,seed,status,nonfinite_at")


def test_runs_outside_the_current_grid_stay_in_the_folder_and_out_of_the_table(tmp_path):
    save(tmp_path, DECLARED)
    smaller = grid(config={"width": (8,)}, hyper={"learning_rate": (0.1,)}, seeds=4)
    save(tmp_path, smaller, keep=lambda run: False)
    assert len(load(tmp_path)["main"]) == 4
    assert len(store.finished(tmp_path / "main", "tests.made", 1, "main")[0]) == 16


def test_one_run_with_two_values_is_an_error(tmp_path):
    save(tmp_path, DECLARED)
    save(tmp_path, DECLARED, value=lambda run: 7.0)
    with pytest.raises(ResultsError, match="twice with different values"):
        load(tmp_path)
    store.compact(tmp_path / "main")
    with pytest.raises(ResultsError, match="twice with different values"):
        load(tmp_path)


def test_equal_rows_that_a_kill_left_twice_are_one(tmp_path):
    save(tmp_path, DECLARED)
    before = load(tmp_path)["main"].frame
    save(tmp_path, DECLARED, chunk=4)  # other files, the same rows
    assert load(tmp_path)["main"].frame.equals(before)
    store.compact(tmp_path / "main")
    assert load(tmp_path)["main"].frame.equals(before)
    assert sum(len(table) for _, table, _ in store.chunks(tmp_path / "main")) == 16


def test_trainings_of_two_lengths_are_never_merged(tmp_path):
    save(tmp_path, DECLARED)
    for path, rows, about in list(store.chunks(tmp_path / "main")):
        ids = [f"longer {name}" for name in rows["run_id"].to_pylist()]
        columns = {name: store.to_numpy(rows[name]) for name in rows.column_names if name != "run_id"}
        other = {**about, "identity": {**about["identity"], "num_steps": 20}}
        write(path.parent, {"run_id": ids, **columns}, other)
    store.compact(tmp_path / "main")
    lengths = [about["identity"]["num_steps"] for _, _, about in store.chunks(tmp_path / "main")]
    assert sorted(lengths) == [10, 10, 20, 20]


def test_runs_evaluated_another_number_of_times_are_refused(tmp_path):
    save(tmp_path, DECLARED)
    with pytest.raises(ResultsError, match="2 evaluations, now 5 are asked for"):
        store.finished(tmp_path / "main", "tests.made", 1, "main", {10: 5})
    assert len(store.finished(tmp_path / "main", "tests.made", 1, "main", {10: 2, 20: 5})[0]) == 16


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: content[:-7],
        lambda content: b"",
        lambda content: content + b"x",
    ],
    ids=["flipped", "truncated", "emptied", "extended"],
)
def test_a_damaged_file_is_named_and_moved_aside_before_training(tmp_path, damage):
    save(tmp_path, DECLARED)
    victim = sorted((tmp_path / "main").iterdir())[0]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(ResultsError, match=victim.name):
        load(tmp_path)
    ids, moved = store.finished(tmp_path / "main", "tests.made", 1, "main")
    assert [path.name for path in moved] == [victim.name]
    assert 0 < len(ids) < 16
    assert len(load(tmp_path)["main"]) == len(ids)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / folders.MANIFEST).write_text(content)
    with pytest.raises(ResultsError, match=r"manifest\.json"):
        load(tmp_path)


def claim(folder, experiment="tests.made", version=1, **options):
    with folders.claimed(folder, experiment, version, **options) as manifest:
        return manifest


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").write_text("do not lose")
    with pytest.raises(ResultsError, match="files that are no results"):
        claim(tmp_path / "theirs", drop=["main"])
    other = save(tmp_path / "other", DECLARED)
    with pytest.raises(ResultsError, match=r"results of tests\.made"):
        claim(other, "tests.different", drop=["main"])
    with pytest.raises(ResultsError, match="version 1, the experiment is at 2"):
        claim(other, version=2)
    assert claim(other, version=2, drop=["main"]) == {}
    assert not (other / "main").exists()
    (tmp_path / "app").mkdir()
    for content in ('{"name": "my web app"}', "{"):
        (tmp_path / "app/manifest.json").write_text(content)
        (tmp_path / "app/thesis.tex").write_text("do not lose")
        with pytest.raises(ResultsError, match=r"no manifest of results|files that are no results"):
            claim(tmp_path / "app", drop=["main"])
        assert (tmp_path / "app/manifest.json").read_text() == content
        assert (tmp_path / "app/thesis.tex").read_text() == "do not lose"
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="is a file"):
        claim(tmp_path / "file" / "deeper")
    assert (tmp_path / "theirs/thesis.tex").read_text() == "do not lose"


def test_a_file_of_another_experiment_is_refused_and_moved_aside_before_training(tmp_path):
    save(tmp_path / "one", DECLARED)
    stranger = tmp_path / "one/main"
    about = {"identity": {"experiment": "tests.other", "version": 1, "sweep": "main", "num_steps": 10}, "metrics": []}
    path = write(stranger, {"run_id": ["x"]}, about)
    with pytest.raises(ResultsError, match=r"is of tests\.other"):
        load(tmp_path / "one")
    ids, moved = store.finished(stranger, "tests.made", 1, "main")
    assert [each.name for each in moved] == [path.name]
    assert len(ids) == 16
    assert len(load(tmp_path / "one")["main"]) == 16


def test_a_damaged_manifest_is_moved_aside_before_training(tmp_path):
    folder = save(tmp_path / "runs", DECLARED)
    (folder / folders.MANIFEST).write_text("{")
    assert claim(folder) == {}
    assert (folder / files.SET_ASIDE / folders.MANIFEST).read_text() == "{"
    assert claim(folder) == {}  # and once more, were the process killed before it wrote the new one
    assert len(store.finished(folder / "main", "tests.made", 1, "main")[0]) == 16


def test_a_second_process_is_refused_while_the_first_one_lives(tmp_path):
    with folders.claimed(tmp_path / "runs", "tests.made", 1), pytest.raises(ResultsError, match="in use by another"):
        claim(tmp_path / "runs")
    assert claim(tmp_path / "runs") == {}


def test_what_a_killed_process_left_is_removed(tmp_path):
    folder = save(tmp_path / "runs", DECLARED)
    half = folder / "main" / ".abc.parquet.123.tmp"
    half.write_bytes(b"half a file")
    dropped = tmp_path / "runs" / ".main.dropped-123"
    dropped.mkdir()
    claim(folder)
    assert not half.exists()
    assert not dropped.exists()


def test_writing_leaves_the_old_file_where_the_new_one_cannot_be_finished(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    files.write_text(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


def test_rows_of_like_chunks_that_end_one_soon_after_another_make_one_file(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])

    def add(writer, name, config=1):
        writer.add({"run_id": [name], "x/y": np.array([[1.0, 2.0]], np.float32)}, {"config": {"width": config}})

    def rows():
        return sorted(table["run_id"].to_pylist() for _, table, _ in store.chunks(tmp_path))

    with store.Writer(tmp_path) as writer:
        add(writer, "a")
        now[0] += 0.2
        add(writer, "b")
        add(writer, "c", config=2)  # says something else of itself
        writer.flush(after=0.25)
        assert rows() == []
        now[0] += 0.1
        writer.flush(after=0.25)
        assert rows() == [["a", "b"], ["c"]]
        add(writer, "d")
        writer.flush(after=0.25)
        assert rows() == [["a", "b"], ["c"]]
    assert rows() == [["a", "b"], ["c"], ["d"]]


def test_rows_that_could_not_be_written_wait_for_the_next_time(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    with store.Writer(tmp_path) as writer:
        writer.add({"run_id": ["a"]}, {})
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_bytes", full)
            with pytest.raises(OSError, match="No space"):
                writer.flush()
    assert [table["run_id"].to_pylist() for _, table, _ in store.chunks(tmp_path)] == [["a"]]


def test_rows_that_wait_are_written_however_the_training_ends(tmp_path):
    def interrupted():
        with store.Writer(tmp_path) as writer:
            writer.add({"run_id": ["a"]}, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [table["run_id"].to_pylist() for _, table, _ in store.chunks(tmp_path)] == [["a"]]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=12),
    shape=st.sampled_from([(), (1,), (3,), (2, 3)]),
    texts=st.text(max_size=8),
)
def test_columns_of_any_shape_round_trip(tmp_path_factory, values, shape, texts):
    folder = tmp_path_factory.mktemp("chunk")
    array = np.array([np.full(shape, value, np.float32) for value in values])
    columns = {"run_id": [f"{texts}{row}" for row in range(len(values))], "x/y": array}
    path = write(folder, columns, {"metrics": ["x/y"], "note": texts})
    read, about = store.read_chunk(path)
    np.testing.assert_array_equal(store.to_numpy(read["x/y"]), array)
    assert read["run_id"].to_pylist() == columns["run_id"]
    assert about == json.loads(json.dumps({"metrics": ["x/y"], "note": texts}))
