"""Saved results as other programs read them, and results of the first format."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dlexp import api
from dlexp.results import ResultsError, convert, files, folders, load, netcdf, places, store, strictjson, table
from dlexp.results.table import Part, Table
from dlexp.study import claims, statistics
from dlexp.sweep import grid
from dlexp.types import Experiment, Learner, Range, Sweep
from tests.test_readme import blocks
from tests.test_results import PROVENANCE, save

ROOT = Path(__file__).parents[1]
OLD = Path(__file__).parent / "format_1"
FIXED = ["seed", "status", "nonfinite_at", "num_steps", "eval_steps"]
RAGGED = (
    grid(config={"dropout": (0, 0.5)}, hyper={"learning_rate": (0.1,)}, seeds=2)
    | grid(config={"width": (8,), "act": ("relu",)}, hyper={"learning_rate": (0.1,), "momentum": (0.5, 0.9)}, seeds=2)
    | grid(hyper={"learning_rate": (0.1,), "num_train": (5, 10)}, seeds=2)
)
RAGGED_AXES = ["dropout", "learning_rate", "width", "act", "momentum", "num_train"]


def readers():
    """Name -> a function of paths that returns a pandas frame; those that are installed."""
    found = {"pandas": lambda paths: pd.read_parquet(paths)}
    try:
        import duckdb

        found["duckdb"] = lambda paths: duckdb.sql(f"select * from read_parquet({list(map(str, paths))})").df()
    except ImportError:
        pass
    try:
        import polars

        found["polars"] = lambda paths: pd.DataFrame(polars.read_parquet(paths).to_dicts())
    except ImportError:
        pass
    return found


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def metadata(path):
    return pq.read_schema(path).metadata[b"dlexp"]


def half(config, num_steps):
    """A learner whose number halves; what it measures has another name or shape in each config."""
    import jax.numpy as jnp

    config.get("clip")  # an axis that no group reads would be refused

    def evaluate(key, hyper, data, number):
        other = {
            "scalar": {"test/other": number},
            "vector": {"test/array": jnp.ones(2) * number},
            "matrix": {"test/array": jnp.ones((2, 3)) * number},
        }
        return {"test/loss": number, **other[config.get("measures", "scalar")]}

    return Learner(
        data={"unused": np.ones(1)},
        hyper={name: Range(0.0, default=0.5) for name in ("rate", "learning_rate", "num_train", "momentum")},
        init=lambda key, hyper, data: jnp.float32(1),
        update=lambda key, hyper, data, number: (number * hyper["rate"], {"batch/loss": number}),
        evaluate=evaluate,
    )


def trained(folder, declared, make_learner, *, num_steps=2, num_evals=1):
    def sweeps(scale):
        return {"main": Sweep(declared, make_learner, num_steps, num_evals)}

    experiment = Experiment("tests.made", 1, "?", sweeps)
    return api.run(experiment, scale="smoke", out=folder, console=Console(file=io.StringIO()))


@pytest.mark.parametrize("reader", readers())
def test_a_folder_reads_whole_in_any_order_of_its_files(tmp_path, reader):
    save(tmp_path, RAGGED, metrics=("test/loss", "batch/loss", "test/norms"))
    store.compact(tmp_path / "main")
    paths = sorted((tmp_path / "main").glob("*.parquet"))
    assert len(paths) == 4
    for order in permutations(paths):
        frame = readers()[reader](list(order))
        assert list(frame) == ["run_id", *RAGGED_AXES, *FIXED, "batch/loss", "test/loss", "test/norms"]
        assert len(frame) == 12
        assert sorted(frame["dropout"].dropna()) == [0.0, 0.0, 0.5, 0.5]
        assert sorted(frame["num_train"].dropna()) == [5, 5, 10, 10]
        assert [np.stack(norms).shape for norms in frame["test/norms"]] == [(3, 4)] * 12
        assert set(frame["num_steps"]) == {10}
        assert {tuple(steps) for steps in frame["eval_steps"]} == {(0, 5, 10)}


def test_every_axis_has_one_type_in_all_files(tmp_path):
    save(tmp_path, RAGGED)
    schemas = [pq.read_schema(path).remove_metadata() for path in (tmp_path / "main").glob("*.parquet")]
    assert all(schema == schemas[0] for schema in schemas)
    types = {name: str(schemas[0].field(name).type) for name in RAGGED_AXES}
    assert types == {
        "dropout": "double",
        "learning_rate": "double",
        "width": "int64",
        "act": "string",
        "momentum": "double",
        "num_train": "int64",
    }


def test_integer_axes_come_back_as_integers_where_other_runs_lack_them_too(tmp_path):
    main = load(save(tmp_path, RAGGED))["main"]
    assert str(main.frame["num_train"].dtype) == str(main.frame["width"].dtype) == "Int64"
    assert main.frame["num_train"].dropna().tolist() == [5, 5, 10, 10]
    assert main.frame["dropout"].dropna().tolist() == [0.0, 0.0, 0.5, 0.5]
    assert len(main.select(num_train=10)) == len(main.select(num_train=10.0 + 1e-9)) == 2
    assert len(main.select(num_train=None)) == 8
    some = main.select(num_train=[5, 10])
    assert some.frame["num_train"].dtype == np.int64
    assert some.labelled("test/loss").indexes["num_train"].tolist() == [5, 10]
    assert some.labelled("test/loss").indexes["num_train"].dtype == np.int64
    means = statistics.points(main, "test/loss").set_index("num_train")["mean"]
    assert means[5] == means[10] == 0.5
    assert len(statistics.points(main, "test/loss")) == 6


def test_seeds_of_ten_digits_are_told_apart(tmp_path):
    seeds = (4294967290, 4294967295)
    main = load(save(tmp_path, grid(hyper={"learning_rate": (0.1,)}, seeds=seeds)))["main"]
    assert main.select(seed=seeds[1]).frame["seed"].tolist() == [seeds[1]]


def test_values_of_several_kinds_on_an_axis_are_text_in_the_file_and_themselves_in_the_frame(tmp_path):
    values = (0, 0.5, "all", True)
    results = load(save(tmp_path, grid(config={"share": values}, hyper={"learning_rate": (0.1,)})))
    assert results["main"].frame["share"].tolist() == list(values)
    assert list(map(type, results["main"].frame["share"])) == list(map(type, values))
    texts = pd.read_parquet(tmp_path / "main")["share"]
    assert sorted(texts) == sorted(["0", "0.5", "all", "true"])


@pytest.mark.parametrize("reader", readers())
def test_metrics_of_several_names_and_shapes_read_together(tmp_path, reader):
    kinds = ("scalar", "vector", "matrix")
    results = trained(tmp_path, grid(config={"measures": kinds}, hyper={"rate": (0.5,)}), half)
    frame = readers()[reader](sorted(results.folder.glob("main/*.parquet"))).set_index("measures")
    assert sorted(set(frame) - set(FIXED)) == ["batch/loss", "rate", "run_id", "test/array", "test/loss", "test/other"]
    assert np.array([np.stack(row) for row in frame["test/array"]["matrix"]]).shape == (2, 2, 3)
    assert np.array([np.stack(row) for row in frame["test/array"]["vector"]]).shape == (2, 2, 1)
    assert frame["test/array"].isna().tolist() == (frame.index == "scalar").tolist()
    assert frame["test/other"].isna().tolist() == (frame.index != "scalar").tolist()
    assert results["main"].select(measures="vector").curves("test/array").tolist() == [[[1, 1], [0.25, 0.25]]]


def test_runs_of_another_length_and_of_a_new_axis_share_the_columns_of_those_before(tmp_path):
    first = grid(config={"measures": ("scalar",)}, hyper={"rate": (0.5,)})
    trained(tmp_path, first, half)
    wider = grid(config={"measures": ("scalar",), "width": (8,)}, hyper={"rate": (0.25,)})
    results = trained(tmp_path, first | wider, half, num_steps=4)
    frame = pd.read_parquet(results.folder / "main")
    assert sorted(zip(frame["num_steps"], frame["rate"], frame["width"].fillna(0), strict=True)) == [
        (2, 0.5, 0),
        (4, 0.25, 8),
        (4, 0.5, 0),
    ]
    assert {tuple(steps) for steps in frame["eval_steps"]} == {(0, 2), (0, 4)}
    assert len(results["main"]) == 2


def test_metrics_have_no_statistics_so_that_duckdb_finds_nan(tmp_path):
    save(tmp_path, grid(hyper={"learning_rate": (0.1,)}, seeds=8), value=lambda run: math.nan if run.seed > 4 else 1.0)
    for path in (tmp_path / "main").glob("*.parquet"):
        group = pq.ParquetFile(path).metadata.row_group(0)
        has = {group.column(i).path_in_schema: group.column(i).is_stats_set for i in range(group.num_columns)}
        assert has["run_id"]
        assert has["seed"]
        assert not any(there for name, there in has.items() if "/" in name)
    duckdb = pytest.importorskip("duckdb")
    count = f"""select count(*) from '{tmp_path}/main/*.parquet' where isnan("test/loss"[-1])"""
    assert duckdb.sql(count).fetchall() == [(3,)]


@pytest.mark.parametrize(
    ("sweep", "num_columns", "num_runs"),
    [("gradients/clipping/cpu/adding", 13, 448), ("regularization/weight_decay/cpu/map", 15, 1152)],
)
@pytest.mark.parametrize("reader", readers())
def test_committed_sweeps_read_with_all_their_columns(sweep, num_columns, num_runs, reader):
    frame = readers()[reader](sorted((api.REFERENCE / sweep).glob("*.parquet")))
    assert frame.shape == (num_runs, num_columns + len(["num_steps", "eval_steps"]))


def test_all_committed_sweeps_have_one_schema_and_say_strict_json():
    for manifest in api.REFERENCE.rglob(folders.MANIFEST):
        strict(manifest.read_text())
        assert strict(manifest.read_text())["format"] == folders.FORMAT
        for name in strict(manifest.read_text())["sweeps"]:
            schemas = [pq.read_schema(path) for path in manifest.parent.joinpath(name).glob("*.parquet")]
            assert schemas
            assert all(schema.equals(schemas[0]) for schema in schemas), manifest.parent / name
            assert all(strict(schema.metadata[b"dlexp"])["format"] == store.FORMAT for schema in schemas)


def test_duckdb_finds_the_18_diverged_runs_of_the_optimizers():
    duckdb = pytest.importorskip("duckdb")
    files = api.REFERENCE / "optimization/optimizers/cpu/digits/*.parquet"
    for condition in ("""isnan("test/accuracy"[-1])""", "status = 'nonfinite'"):
        assert duckdb.sql(f"select count(*) from '{files}' where {condition}").fetchall() == [(18,)]


def digest(folder):
    """Of all that a sweep's files hold: ids, axes, numbers bit for bit, configs and provenance."""
    parts = []
    for _, rows, about in store.chunks(folder):
        said = {name: about[name] for name in ("identity", "num_evals", "config", "provenance")}
        content = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name in sorted(rows.column_names):
            values = store.to_numpy(rows[name])
            is_array = name in about["metrics"]
            content.update(f"{name} {values.dtype if is_array else ''} {values.shape}".encode())
            content.update(np.ascontiguousarray(values).tobytes() if is_array else str(values.tolist()).encode())
        parts.append(content.hexdigest())
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()[:16]


def test_the_committed_results_hold_what_they_held_in_the_first_format():
    """The digests were made from the files of format 1. Results that are trained again leave the list."""
    known = json.loads((OLD / "digests.json").read_text())
    assert {sweep: digest(api.REFERENCE / sweep) for sweep in known} == known


@pytest.fixture
def old(tmp_path):
    """Results that a dlexp of format 1 wrote: ragged, with Infinity and NaN."""
    return Path(shutil.copytree(OLD / "tests/made/smoke", tmp_path / "tests/made/smoke"))


def test_results_of_the_first_format_are_read(old):
    main = load(old)["main"]
    assert main.frame["clip"].tolist() == [1.0] * 4 + [math.inf] * 4 + [1.0] * 2
    assert main.frame["num_train"].tolist() == [5, 5, 10, 10] * 2 + [pd.NA] * 2
    assert main.frame["momentum"].dropna().tolist() == [0.5, 0.5]
    assert main.frame["status"].tolist() == ["ok", "nonfinite"] * 5
    assert main.select(seed=0).curves("test/norms").tolist() == [[[0.0] * 4, [0.75] * 4, [1.5] * 4]] * 5
    assert len(store.finished(old / "main", "tests.made", 1, "main", {10: 2})[0]) == 10


def test_training_goes_on_from_results_of_the_first_format_and_writes_them_anew(old):
    before = load(old)["main"]
    saved = table.grid_of(load(old).manifest["sweeps"]["main"]["blocks"])
    more = grid(config={"measures": ("scalar",)}, hyper={"rate": (0.25,)})
    results = trained(old.parents[2], saved | more, half, num_steps=10, num_evals=2)
    assert strict((old / folders.MANIFEST).read_text())["format"] == folders.FORMAT
    assert results["main"].frame["run_id"].tolist()[:10] == before.frame["run_id"].tolist()
    assert len(results["main"]) == 11
    np.testing.assert_array_equal(results["main"].curves("test/loss")[:10], before.curves("test/loss"))
    frame = pd.read_parquet(old / "main")
    assert len(frame) == 11
    assert list(frame)[1:7] == ["clip", "learning_rate", "num_train", "momentum", "measures", "rate"]


def test_results_of_the_first_format_are_written_anew_by_one_command(old, capsys):
    before = load(old)["main"]
    files_before, held = set(old.glob("main/*")), digest(old / "main")
    assert convert.main([str(old.parents[2])]) == 0
    assert capsys.readouterr().out == f"{old}: 3 files written anew\n"
    assert not files_before & set(old.glob("main/*"))
    assert load(old)["main"].frame.equals(before.frame)
    assert digest(old / "main") == held
    for metric in before.metrics:
        np.testing.assert_array_equal(load(old)["main"].curves(metric), before.curves(metric))
    manifest = strict((old / folders.MANIFEST).read_text())
    assert manifest["format"] == folders.FORMAT == 2
    assert manifest["sweeps"]["main"]["blocks"][0]["config"]["clip"] == [1.0, {"$float": "inf"}]
    assert pd.read_parquet(old / "main").shape == (10, 13)
    assert convert.main([str(old)]) == 0
    assert capsys.readouterr().out == f"{old}: 0 files written anew\n"


def test_the_converting_command_says_what_it_cannot_do(old, capsys, tmp_path):
    assert convert.main([]) == 2
    assert "python -m dlexp.results.convert DIR" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert.main([str(tmp_path / "empty")]) == 1
    assert "holds no results" in capsys.readouterr().err
    victim = sorted(old.glob("main/*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:-9])
    assert convert.main([str(old)]) == 1
    assert victim.name in capsys.readouterr().err


def test_a_kill_while_files_are_written_anew_loses_no_row(old, monkeypatch):
    before = load(old)["main"].frame

    def killed(path, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            store.conform(old / "main")
    assert load(old)["main"].frame.equals(before)
    store.conform(old / "main")
    store.compact(old / "main")
    assert len(list(old.glob("main/*.parquet"))) == 3
    assert load(old)["main"].frame.equals(before)


def test_results_of_a_newer_dlexp_are_refused_and_left_alone(old):
    manifest = json.loads((old / folders.MANIFEST).read_text())
    (old / folders.MANIFEST).write_text(json.dumps({**manifest, "format": folders.FORMAT + 1}))
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for use in (load, lambda folder: folders.claimed(folder, "tests.made", 1).__enter__()):
        with pytest.raises(files.NewerFormatError, match=r"manifest\.json is of format 3, which a newer dlexp wrote"):
            use(old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_a_file_of_a_newer_dlexp_is_refused_and_not_moved_aside(tmp_path, monkeypatch):
    save(tmp_path, RAGGED)
    before = sorted((tmp_path / "main").iterdir())
    monkeypatch.setattr(store, "FORMAT", store.FORMAT - 1)
    for use in (load, lambda folder: store.finished(folder / "main", "tests.made", 1, "main")):
        with pytest.raises(files.NewerFormatError, match="update dlexp"):
            use(tmp_path)
    assert sorted((tmp_path / "main").iterdir()) == before


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    folder = save(tmp_path, grid(config={"clip": (1.0, math.inf)}, hyper={"learning_rate": (0.1,)}))
    assert strict((folder / folders.MANIFEST).read_text())
    assert all(strict(metadata(path)) for path in (folder / "main").glob("*.parquet"))
    assert load(folder)["main"].frame["clip"].tolist() == [1.0, math.inf]
    assert load(folder).manifest["sweeps"]["main"]["blocks"][0]["config"]["clip"] == [1.0, math.inf]
    claim = claims.Claim("c", "s", "r", "undecided", math.inf, (-math.inf, math.inf), 8, "")
    assert strict(claims.to_json([claim]))
    assert claims.from_json(claims.to_json([claim])) == [claim]
    assert math.isnan(strictjson.loads(strictjson.dumps({"a": [np.float64("nan")]}))["a"][0])


LACKING = (
    Part(
        pd.DataFrame({"run_id": ["a"], "act": ["relu"], "width": [8], "flag": [True], "seed": [2**32 - 1]}),
        {"test/loss": np.array([[1.0, 2.0]], np.float32)},
    ),
    Part(
        pd.DataFrame({"run_id": ["b"], "width": [16], "flag": [False], "seed": [0]}),
        {"test/loss": np.array([[3.0, 4.0]], np.float32)},
    ),
)


def test_a_label_of_none_is_none_in_the_index():
    array = Table("main", LACKING, ("act", "width", "flag"), 10, 1).labelled("test/loss")
    assert array.indexes["act"].tolist() == ["relu", None]
    assert array.sel(act=None, width=16, flag=False, seed=0, step=10).item() == 4.0
    assert (array.name, array.attrs) == ("test_loss", {"metric": "test/loss"})


@pytest.mark.parametrize(("engine", "package"), [("netcdf4", "netCDF4"), ("h5netcdf", "h5py"), ("scipy", "scipy")])
def test_labelled_arrays_are_the_same_after_netcdf(tmp_path, engine, package):
    pytest.importorskip(package)
    xr = pytest.importorskip("xarray")
    array = Table("main", LACKING, ("act", "width", "flag"), 10, 1).labelled("test/loss")
    for labelled in (array, array.isel(act=1), array.isel(act=0, width=0)):
        netcdf.write(labelled, tmp_path / "a.nc", engine=engine)
        read = netcdf.read(tmp_path / "a.nc", engine=engine)
        xr.testing.assert_identical(read, labelled)
        assert [index.tolist() for index in read.indexes.values()] == [
            index.tolist() for index in labelled.indexes.values()
        ]
    plain = Table("main", LACKING[1:], ("width",), 10, 1).labelled("test/loss")
    plain.to_netcdf(tmp_path / "plain.nc", engine=engine)  # without an axis that some runs lack, xarray alone will do
    with xr.open_dataarray(tmp_path / "plain.nc", engine=engine) as read:
        assert read.equals(plain)


def test_labels_of_several_types_are_refused_by_netcdf(tmp_path):
    mixed = grid(config={"share": (1, "all")}, hyper={"learning_rate": (0.1,)})
    array = load(save(tmp_path / "runs", mixed))["main"].labelled("test/loss")
    with pytest.raises(ValueError, match="axis share has labels of several types"):
        netcdf.write(array, tmp_path / "a.nc")
    assert not (tmp_path / "a.nc").exists()


def test_loading_makes_no_run_of_the_grid(tmp_path, monkeypatch):
    """A million runs load in seconds because their places are found a column at a time."""
    save(tmp_path, RAGGED)
    expected = load(tmp_path)["main"].frame

    def never(*args, **kwargs):
        raise AssertionError("a run was made")

    monkeypatch.setattr("dlexp.sweep.grids.Grid.runs", never)
    monkeypatch.setattr("dlexp.sweep.grids.run_id", never)
    assert load(tmp_path)["main"].frame.equals(expected)


def test_places_are_those_of_the_grid_where_blocks_overlap():
    declared = (
        grid(config={"width": (8, 16)}, hyper={"learning_rate": (0.1, 0.3), "momentum": (0.5, 0.9)}, seeds=(5, 2))
        | grid(config={"width": (16, 8.0)}, hyper={"momentum": (0.9, 0.0), "learning_rate": (0.3, 1e-3)}, seeds=3)
        | grid(config={"width": (16,)}, hyper={"learning_rate": (0.1,)}, seeds=1)
    )
    of, seen = places.Places(declared), -1
    for family in declared.families():
        runs = list(declared.runs(family))
        rows = pd.DataFrame([{**run.hyper, "seed": run.seed} for run in runs])
        found = of.of(rows, family.config)
        assert np.all(np.diff([seen, *found]) > 0)
        seen = found[-1]
        assert of.of(rows.assign(seed=7), family.config).tolist() == [-1] * len(runs)
        assert of.of(rows.assign(learning_rate=0.2), family.config).tolist() == [-1] * len(runs)
        assert of.of(rows, {"width": "8"}).tolist() == [-1] * len(runs)


@pytest.mark.slow
def test_a_million_runs_load_in_under_10_seconds(tmp_path):
    rates = tuple(round(0.001 * place, 3) for place in range(1, 1001))
    declared = grid(hyper={"learning_rate": rates}, seeds=1000)
    save(tmp_path, grid(hyper={"learning_rate": (0.1,)}))
    about = load(tmp_path).manifest
    about["sweeps"]["main"] |= {"num_runs": 10**6, "blocks": table.describe(declared)}
    folders.write_manifest(tmp_path, about)
    (_, _, chunk), *_ = store.chunks(tmp_path / "main")
    shutil.rmtree(tmp_path / "main")
    with store.Writer(tmp_path / "main") as writer:
        for start in range(0, 10**6, 20_000):
            rows = np.arange(start, start + 20_000)
            columns = {
                "run_id": [f"{row:020x}" for row in rows.tolist()],
                "learning_rate": np.array(rates)[rows // 1000],
                "seed": rows % 1000,
                "status": ["ok"] * len(rows),
                "nonfinite_at": np.full(len(rows), -1, np.int32),
                "test/loss": np.stack([rows] * 3, axis=1).astype(np.float32),
            }
            writer.add(columns, {**chunk, "metrics": ["test/loss"], "provenance": PROVENANCE})
            writer.flush()
    began = time.perf_counter()
    main = load(tmp_path)["main"]
    assert time.perf_counter() - began < 10
    np.testing.assert_array_equal(main.curves("test/loss")[:, 0], np.arange(10**6))
    began = time.perf_counter()
    assert len(store.finished(tmp_path / "main", "tests.made", 1, "main", {10: 2})[0]) == 10**6
    assert time.perf_counter() - began < 3


def test_metrics_whose_memory_is_not_in_order_are_saved_as_they_are(tmp_path):
    array = np.arange(2 * 3 * 1 * 4, dtype=np.float32).reshape(4, 1, 3, 2).transpose(3, 2, 1, 0)
    with store.Writer(tmp_path) as writer:
        writer.add({"run_id": ["a", "b"], "x/y": array, "x/z": array[:, :, 0, 0]}, {})
    ((path, rows, _),) = store.chunks(tmp_path)
    np.testing.assert_array_equal(store.to_numpy(rows["x/y"]), array)
    np.testing.assert_array_equal(store.to_numpy(rows["x/z"]), array[:, :, 0, 0])
    assert pq.read_table(path)["x/y"].to_pylist() == array.tolist()


def test_the_readers_that_the_readme_shows_read(tmp_path):
    for package in ("duckdb", "polars", "netCDF4"):
        pytest.importorskip(package)
    code = next(block for block in blocks("python") if "duckdb" in block)
    shown = "import sys\nsys.path.insert(0, '.')\n" + code + "\nprint(best, last, runs.shape, array.dims)"
    shown = shown.replace('"accuracy.nc"', repr(str(tmp_path / "accuracy.nc")))
    done = subprocess.run([sys.executable, "-W", "error", "-c", shown], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "(622, 15)" in done.stdout


def test_tools_disagree_on_the_largest_of_numbers_with_nan_so_status_comes_first():
    """What the README says of them; a tool that changed its mind changes the README."""
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    frame = pd.DataFrame({"run": ["good", "lost"], "accuracy": [0.9, math.nan]})
    assert frame["accuracy"].max() == frame["accuracy"].mean() == 0.9
    accuracy = polars.Series([0.9, math.nan])
    assert accuracy.max() == 0.9
    assert math.isnan(accuracy.mean())
    rows = "(values ('good', 0.9), ('lost', 'nan'::double)) as rows(run, accuracy)"
    assert duckdb.sql(f"select arg_max(run, accuracy) from {rows}").fetchall() == [("lost",)]
    assert duckdb.sql(f"select run from {rows} order by accuracy desc limit 1").fetchall() == [("lost",)]


def test_swept_integers_beyond_64_bits_are_floats_in_the_file(tmp_path):
    declared = grid(hyper={"learning_rate": (1, 10**20)})
    save(tmp_path, declared)
    assert sorted(pd.read_parquet(tmp_path / "main")["learning_rate"]) == [1.0, 1e20]
    assert load(tmp_path)["main"].frame["learning_rate"].tolist() == [1.0, 1e20]


def test_an_axis_that_takes_the_name_of_an_added_column_is_refused():
    for name in ("num_steps", "eval_steps"):
        with pytest.raises(ValueError, match="taken for results"):
            grid(hyper={name: (1,)})


def test_a_metric_with_other_numbers_than_its_shape_says_is_damage(tmp_path):
    save(tmp_path, grid(hyper={"learning_rate": (0.1,)}))
    (path,) = (tmp_path / "main").glob("*.parquet")
    rows = pq.read_table(path)
    said = strict(metadata(path))
    said["columns"]["test/loss"]["shape"] = [7]
    sink = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({b"dlexp": json.dumps(said).encode()}), sink)
    damaged = tmp_path / f"{hashlib.sha256(sink.getvalue()).hexdigest()[:32]}.parquet"
    damaged.write_bytes(sink.getvalue())
    with pytest.raises(ResultsError, match="metric of shape"):
        store.read_chunk(damaged)
