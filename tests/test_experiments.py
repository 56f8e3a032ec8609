"""Every experiment, found by listing the folder: its form, a smoke run, and what its committed results say."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dlexp import api, training
from dlexp.results import folders, load
from dlexp.study import claims, style
from dlexp.sweep import scales
from dlexp.sweep.plan import Plan
from dlexp.types import Experiment
from experiments.__main__ import experiment_of, main, markdown_table, module_names
from tests.conftest import counted_compiles

EXPERIMENTS = list(map(experiment_of, module_names()))
by_name = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
# Half a minute and more each, nearly all of it compilation: planned by default, trained by slow tests.
LONG_TO_COMPILE = {"architectures.cnn_images", "engine.growth", "gradients.clipping"}
# One of each kind of program; all others are trained once here, and twice by a slow test.
TRAINED_TWICE = {"optimization.optimizers", "gradients.batch_norm", "optimization.losses", "engine.trainability_map"}


def reference(experiment: Experiment):
    return load(folders.folder_of(api.REFERENCE, experiment.name, "cpu"))


def trained_plans(experiment: Experiment) -> dict[str, Plan]:
    """Planned anew; without the sweeps that measure instead of training."""
    plans = api.plan(experiment, scale="smoke")
    return {name: plan for name, plan in plans.items() if any(group.measure is None for group in plan.groups)}


def assert_nothing_is_compiled_again(experiment, folder):
    """Trains all of it, from the cache on disk."""
    with counted_compiles() as again:
        plans = trained_plans(experiment)
        training.train(experiment, plans, scale="smoke", folder=folder, fresh=False, console=Console(quiet=True))
    assert again == []
    assert {name: len(table) for name, table in load(folder).items()} == {
        name: plan.num_runs for name, plan in plans.items()
    }


@by_name
def test_the_docstring_opens_with_the_question_and_ends_with_the_command(experiment):
    module = sys.modules[f"experiments.{experiment.name}"]
    lines = module.__doc__.strip().splitlines()
    assert lines[0] == experiment.question
    assert experiment.question.endswith("?")
    assert lines[-1].strip() == f"python -m experiments.{experiment.name}"
    assert "text 00" in module.__doc__  # the lesson's statement
    assert "http" in module.__doc__  # a number's source


@pytest.mark.parametrize("name", sorted(LONG_TO_COMPILE))
def test_the_smoke_scale_of_experiments_that_take_long_to_compile_can_be_planned(name):
    (experiment,) = (each for each in EXPERIMENTS if each.name == name)
    plans = api.plan(experiment, scale="smoke")
    assert set(plans) == set(scales.sweeps(experiment, "smoke"))
    for plan in plans.values():
        assert all(group.num_runs and (group.flops > 0 or group.measure) for group in plan.groups)


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(each, id=each.name, marks=pytest.mark.slow if each.name in LONG_TO_COMPILE else ())
        for each in EXPERIMENTS
    ],
)
def test_the_smoke_scale_trains_draws_and_judges(experiment, tmp_path):
    results = api.run(experiment, scale="smoke", out=tmp_path)
    sweeps = scales.sweeps(experiment, "smoke")
    assert set(results) == set(sweeps)
    assert sum(len(list(sweep.grid.families())) for sweep in sweeps.values()) <= 3
    judged = claims.from_json((results.folder / "claims.json").read_text())
    assert 2 <= len(judged) <= 6
    drawn = {path.name for path in (results.folder / "figures").iterdir()}
    assert drawn
    assert {name.removesuffix(".svg") for name in drawn if name.endswith(".svg")} == {
        name.removesuffix(".png") for name in drawn if name.endswith(".png")
    }
    if experiment.name in TRAINED_TWICE:
        assert_nothing_is_compiled_again(experiment, tmp_path / "again")


@pytest.mark.slow
@by_name
def test_a_second_smoke_run_compiles_nothing(experiment, tmp_path):
    plans, quiet = trained_plans(experiment), Console(quiet=True)
    if not plans:
        pytest.skip("it measures and trains nothing")
    training.train(experiment, plans, scale="smoke", folder=tmp_path / "first", fresh=False, console=quiet)
    assert_nothing_is_compiled_again(experiment, tmp_path / "again")


@by_name
def test_every_scale_declares_sweeps_and_the_largest_grid_is_for_accelerators(experiment):
    sizes = {}
    for scale in ("smoke", "cpu", "gpu"):
        sweeps = scales.sweeps(experiment, scale).values()
        sizes[scale] = sum(sweep.grid.num_runs(family) for sweep in sweeps for family in sweep.grid.families())
    assert 0 < sizes["smoke"] < sizes["cpu"] < sizes["gpu"]


@by_name
def test_the_reference_results_hold_the_declared_grid(experiment):
    results = reference(experiment)
    sweeps = scales.sweeps(experiment, "cpu")
    assert results.manifest["version"] == experiment.version
    assert results.manifest["question"] == experiment.question
    for name, sweep in sweeps.items():
        assert len(results[name]) == sum(map(sweep.grid.num_runs, sweep.grid.families()))
        assert results[name].num_steps == sweep.num_steps
    seeds = [results[name].frame["seed"].nunique() for name in sweeps]
    assert max(seeds) >= 8
    assert all(num >= 8 or num == 1 for num in seeds)  # one seed draws a map; no claim rests on it (below)


@by_name
def test_the_committed_claims_follow_from_the_committed_results(experiment):
    results = reference(experiment)
    committed = claims.from_json((results.folder / "claims.json").read_text())
    computed = experiment.claims(results)
    assert [claim.claim for claim in committed] == [claim.claim for claim in computed]
    for ours, theirs in zip(computed, committed, strict=True):
        assert ours.verdict == theirs.verdict
        assert ours.num_seeds == theirs.num_seeds >= 8
        np.testing.assert_allclose([ours.effect, *ours.interval], [theirs.effect, *theirs.interval], rtol=1e-5)
        assert ours.rule
        assert "text 00" in ours.source or "http" in ours.source


@by_name
def test_every_committed_figure_is_drawn_again_from_the_committed_results(experiment):
    results = reference(experiment)
    with style.style():
        figures = {figure.__name__: figure(results) for figure in experiment.figures}
    committed = {path.stem for path in (results.folder / "figures").glob("*.svg")}
    assert set(figures) == committed == {path.stem for path in (results.folder / "figures").glob("*.png")}
    for figure in figures.values():
        assert figure.axes
        for axes in figure.axes:
            assert axes.lines or axes.collections or axes.patches or axes.images
            named = axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left")
            assert named or not (len(axes.get_xticks()) or len(axes.get_yticks()))  # a number needs a name


def test_the_reference_results_are_small_and_name_no_place():
    files = [path for path in api.REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    for experiment in EXPERIMENTS:
        own = folders.folder_of(api.REFERENCE, experiment.name, "cpu").rglob("*.*")
        assert sum(path.stat().st_size for path in own) < 3e6
    for path in files:
        if path.suffix in (".json", ".svg"):
            text = path.read_text()
            for place in (Path.home(), Path(tempfile.gettempdir()), api.REFERENCE.parents[1]):
                assert f"{place}/" not in text


def test_the_readme_shows_the_generated_table():
    readme = (api.REFERENCE.parent / "README.md").read_text()
    assert markdown_table() in readme


def test_the_listing_names_every_experiment(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["experiments"]) == 0
    said = capsys.readouterr().out.replace("\n", "").replace(" ", "")
    assert all(experiment.question.replace(" ", "") in said for experiment in EXPERIMENTS)
    assert main(["experiments", "--no_such_flag"]) == 2


def test_running_all_goes_on_after_a_failure(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")

    def sweeps(scale):
        if scale == "smoke":
            raise RuntimeError("broken on purpose")

    def chosen(name):
        from tests.test_cli import small_sweeps

        if name == "no_import":
            raise ImportError("no such module")
        return {
            "broken": Experiment("tests.broken", 1, "Broken?", sweeps),
            "whole": Experiment("tests.whole", 1, "Whole?", small_sweeps),
        }[name]

    monkeypatch.setattr("experiments.__main__.module_names", lambda: ["broken", "no_import", "whole"])
    monkeypatch.setattr("experiments.__main__.experiment_of", chosen)
    assert main(["experiments", "--all", "--scale=smoke", f"--out={tmp_path}"]) == 1
    said = capsys.readouterr()
    assert "broken on purpose" in said.err
    assert "no such module" in said.err
    assert [
        line.split()[1]
        for line in said.out.splitlines()
        if line.strip().startswith(("broken ", "no_import ", "whole "))
    ] == ["failed", "failed", "done"]
    assert json.loads((tmp_path / "tests/whole/smoke/manifest.json").read_text())["experiment"] == "tests.whole"
    assert main(["experiments"]) == 0
    assert "cannot be imported: ImportError" in capsys.readouterr().out


def test_the_list_of_experiments_has_help(capsys):
    assert main(["experiments", "--help"]) == 0
    assert "--all" in capsys.readouterr().out.replace("[no]", "")
