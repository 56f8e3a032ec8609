"""What people do who write their first experiment from the README alone, and what they are told."""

from __future__ import annotations

import importlib.util
import io
import json
import linecache
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dlexp import api, fingerprint, interrupt, learners, losses, models, optim, progress
from dlexp.results import ResultsError, folders
from tests.test_cli import ROOT, main
from tests.test_readme import blocks

FILE = '''
"""Does it run?"""
from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import grid
from dlexp.types import Experiment, Sweep

RATES = (0.01, 0.1)
WIDTH = 8
COLOR = "red"

def network():
    return models.mlp(width=WIDTH, num_layers=2, num_outputs=10)

def make_learner(config, num_steps):
    return learners.supervised(
        network(), losses.softmax_cross_entropy, optim.adam(), bundled.load("digits"), batch_size=16
    )

def sweeps(scale):
    return {"main": Sweep(grid(hyper={"learning_rate": RATES}, seeds=2), make_learner, 20, 2)}

def drawn(results):
    from matplotlib.figure import Figure
    return Figure(facecolor=COLOR)

EXPERIMENT = Experiment("tests.own", 1, __doc__.strip(), sweeps, (drawn,))
'''


def experiment_of(path: Path, text: str):
    """Writes a file and imports it, as a script of the user's."""
    path.write_text(text)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.EXPERIMENT


@pytest.fixture
def run(tmp_path):
    """Writes a text to a file, runs it with flags, and returns exit status, words, and words said as an error."""

    def runs(text, *flags, name="own_file.py"):
        return main(*flags, experiment=experiment_of(tmp_path / name, text), out=tmp_path / "runs")

    return runs


def changed(*pairs):
    text = FILE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def test_runs_that_other_code_trained_are_not_shown_as_those_of_this_code(run, tmp_path):
    assert run(FILE)[0] == 0
    wider = changed(("WIDTH = 8", "WIDTH = 9"))
    for flags in ((), ("--redraw",), ("--run_id=0123",)):
        status, words, said = run(wider, *flags)
        assert status == 1
        assert len(said.splitlines()) == 1
        assert "was trained by other code than own_file.py has now" in said
        assert "train it again with --fresh, raise the experiment's version (now 1)" in said
        assert words == ""
    status, words, _ = run(wider, "--accept")
    assert status == 0
    assert "all 4 runs are saved" in words
    assert run(wider)[0] == 0  # accepted once, accepted for good
    assert run(FILE)[0] == 1
    assert run(FILE, "--fresh")[0] == 0


@pytest.mark.parametrize(
    "pairs",
    [
        [("WIDTH = 8", "WIDTH  =  8  # units")],
        [("def network():\n", 'def network():\n    """The net."""\n\n\n')],
        [('"red"', '"blue"')],
        [("(0.01, 0.1)", "(0.01, 0.1, 0.2)")],
        [("seeds=2", "seeds=3")],
    ],
)
def test_comments_layout_figures_and_the_grid_are_no_other_code(tmp_path, pairs):
    before, after = (
        experiment_of(tmp_path / "own_file.py", text).sweeps("smoke")["main"].make_learner for text in (FILE, FILE)
    )
    first = fingerprint.of(before)
    after = experiment_of(tmp_path / "own_file.py", changed(*pairs)).sweeps("smoke")["main"].make_learner
    assert fingerprint.of(after) == first is not None


def test_what_a_helper_file_a_closure_or_a_partial_holds_is_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def prints(text, helper="UNITS = 4\n"):
        sys.modules.pop("own_helper", None)
        (tmp_path / "own_helper.py").write_text(helper)
        importlib.invalidate_caches()
        return fingerprint.of(experiment_of(tmp_path / "own_file.py", text).sweeps("smoke")["main"].make_learner)

    imported = changed(("RATES =", "from own_helper import UNITS\nRATES ="), ("width=WIDTH", "width=UNITS"))
    assert prints(imported) == prints(imported, "# units\nUNITS = 4\nOTHER = 3\n") != prints(imported, "UNITS = 44\n")
    inner = "make = lambda config, num_steps: (make_learner(config, num_steps), many)[0]\n    return"
    closures = [
        changed(("    return {", f"    many = {many}\n    {inner} {{"), (", make_learner, 20", ", make, 20"))
        for many in (3, 4)
    ]
    assert prints(closures[0]) == prints(closures[0]) != prints(closures[1])
    partials = [
        changed(
            ("(config, num_steps)", "(config, num_steps, many=1)"),
            (", make_learner, 20", f", functools.partial(make_learner, many={many}), 20"),
            ("RATES =", "import functools\nRATES ="),
        )
        for many in (3, 4)
    ]
    assert prints(partials[0]) == prints(partials[0]) != prints(partials[1])


def test_a_second_file_with_the_same_experiments_name_is_said(run, tmp_path):
    run(FILE)
    status, _, said = run(changed(("WIDTH = 8", "WIDTH = 9")), name="second_file.py")
    assert status == 1
    assert "was trained by another file, own_file.py, than second_file.py; give this experiment another name" in said
    status, _, said = run(changed(('"main"', '"other"')), name="second_file.py")
    assert status == 1
    assert "holds sweep main of own_file.py, another experiment of the name tests.own" in said


def test_the_manifest_says_which_code_and_which_dlexp_trained_a_sweep(run, tmp_path):
    run(FILE)
    text = (folders.folder_of(tmp_path / "runs", "tests.own", "smoke") / "manifest.json").read_text()
    code = json.loads(text)["sweeps"]["main"]["code"]
    assert code["file"] == "own_file.py"
    assert re.fullmatch("[0-9a-f]{20}", code["fingerprint"])
    assert code["dlexp"]


MINE = """
    def init(key, hyper, data):
        return {"w": jnp.zeros(3)}
    def update(key, hyper, data, state):
        return {"w": state["w"] - hyper["rate"] * data["x"].mean(0)}, {"batch/loss": state["w"].sum()}
    def evaluate(key, hyper, data, state):
        return {"test/loss": state["w"].sum()}
    return Learner({"x": np.ones((5, 3), np.float32)}, {"rate": Range(0.0, 1.0)}, init, update, evaluate)
"""
OWN_LEARNER = changed(
    ("def make_learner(config, num_steps):", "def supervised():"),
    ("def sweeps", f"def make_learner(config, num_steps):{MINE}\ndef sweeps"),
    ('{"learning_rate": RATES}', '{"rate": RATES}'),
    ("RATES = ", "import jax.numpy as jnp, numpy as np, optax, flax.linen as nn\nRATES = "),
    ("Experiment, Sweep\n", "Experiment, Learner, Range, Sweep\n"),
)


def supervised(model="network()", optimizer="optim.adam()", data="bundled.load()"):
    parts = f"{model}, losses.softmax_cross_entropy, {optimizer}, {data}, batch_size=4"
    return f"return learners.supervised({parts})\n    Learner("


CARELESS = [
    ("Learner({", "None and Learner({", "make_learner must return a Learner (or a Measurement), got None; end it"),
    ('{"test/loss": state["w"].sum()}', "None", "evaluate must return a dictionary of metrics, got None"),
    ('{"test/loss": state["w"].sum()}', 'state["w"].sum()', "evaluate must return a dictionary of metrics, got an arr"),
    (', {"batch/loss": state["w"].sum()}', "", "update must return (state, metrics), got a dict; return the state and"),
    ('state["w"] - hyper["rate"]', 'state["w"][:2].sum() - hyper["rate"] * state["w"][:2, None]', "before a step and"),
    ('hyper["rate"] *', 'hyper["rat"] *', "update reads hyper['rat'] (own_file.py, line"),
    ('"test/loss": state', '"test/loss": float(hyper["rate"]) * state', "evaluate is traced by JAX, so that a value"),
    ("    def init", '    config["widht"]\n    def init', "make_learner reads config['widht'] (own_file.py, line"),
    ("hyper={", 'config={"widht": (4, 8)}, hyper={', "no group reads the config axis 'widht', so its values would"),
    ("return Learner(", supervised(optimizer="optax.adam"), "must be a dlexp.optim.Optimizer, got the function optax."),
    ("return Learner(", supervised(data="(np.ones(9), np.ones(9))"), "must be a dlexp.data.Dataset, got a tuple; writ"),
    ("return Learner(", supervised(model="nn.Dense(3)"), "must be a dlexp.types.Model, got a Dense; wrap it with mo"),
    ("    def init", "    models.from_linen(nn.Dense)\n    def init", "got the class Dense; write Dense(...) (own_f"),
    ("seeds=2", "seeds=1.5", "seeds must be a count (an integer) or a list of integers, got 1.5 (own_file.py, line"),
    ('return {"main": Sweep', 'return Sweep(grid(), None, 1) or {"main": Sweep', "got a Sweep; write {'main': Sweep("),
    ('{"rate": RATES}', '{"rate": RATES, "rete": RATES}', "sweeps rate, not 'rete'; if it is a static choice"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), CARELESS)
def test_a_careless_mistake_is_said_in_one_sentence_and_writes_nothing(run, tmp_path, old, new, sentence):
    assert old in OWN_LEARNER
    status, words, said = run(OWN_LEARNER.replace(old, new, 1))
    assert sentence in said
    assert (status, words, len(said.splitlines())) == (2, "", 1)
    assert not (tmp_path / "runs").exists()


def test_a_key_that_is_missing_in_the_users_own_tables_stays_their_error_with_its_line(run):
    with pytest.raises(KeyError, match="colum") as error:
        run(OWN_LEARNER.replace("    def init", '    {"column": 1}["colum"]\n    def init', 1))
    assert error.traceback[-1].path.name == "own_file.py"


@pytest.mark.parametrize("seeds", [1.5, True, 0])
def test_a_number_of_seeds_that_is_none_is_refused_in_scripts_too(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds must be an integer of at least 1"):
        api.plan(experiment_of(tmp_path / "own_file.py", FILE), scale="smoke", seeds=seeds)


@pytest.mark.parametrize("reading", ["config | {}", "{**config}", "dict(config)", "config.copy()", "config.items()"])
def test_however_a_config_is_read_its_axes_count_as_read(run, reading):
    text = OWN_LEARNER.replace("hyper={", 'config={"kind": (4, 8)}, hyper={')
    assert run(text.replace("    def init", f"    {reading}\n    def init", 1), "--plan")[0] == 0


WITH_LABELS = OWN_LEARNER.replace('Learner({"x"', 'Learner({"labels": np.arange(5), "x"')


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("np.ones((5, 3), np.float32)", "np.ones((5, 3), np.float32) * np.nan", "data['x'] has 15 of 15 numbers"),
        ("np.arange(5)", "np.arange(5) - 1", "data['labels'] has 1 of 5 numbers that is negative (first: row 0)"),
    ],
)  # fmt: skip
def test_where_all_runs_are_lost_at_once_data_at_fault_are_named(run, tmp_path, old, new, sentence):
    lost = WITH_LABELS.replace(
        '{"test/loss": ', '{"test/loss": jnp.where(data["labels"][0] < 0, jnp.nan, 0) + 0 / 1 * '
    )
    lost = lost.replace('"w": jnp.zeros(3)', '"w": 0 * data["x"][0]')
    status, _, said = run(lost.replace(old, new, 1))
    assert status == 1
    assert "sweep main, all runs: all runs are lost at step 0, and " + sentence in said
    assert not list((tmp_path / "runs").rglob("*.parquet"))


def test_where_all_runs_are_lost_at_once_and_the_data_are_sound_training_goes_on(run, tmp_path):
    status, words, _ = run(WITH_LABELS.replace("jnp.zeros(3)", "jnp.full(3, jnp.inf)", 1))
    assert status == 0
    assert "all runs: all 4 runs are lost at step 0, though the data are finite; going on" in words
    assert list((tmp_path / "runs").rglob("*.parquet"))


@pytest.fixture
def shown(monkeypatch):
    """A display whose clock is set by hand, and its plain lines."""
    clock, console = [0.0], Console(record=True, file=io.StringIO(), width=200)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def lines(num_runs, num_steps, seconds, *advances):
        with progress.Display(console, "main", num_runs, 0, num_steps) as display:
            for run_steps, num_under_way in advances:
                clock[0] += seconds
                display.advanced(run_steps, 0, num_under_way, seconds)
        return console.export_text().splitlines()

    return lines


def test_few_long_runs_say_steps_a_second_and_how_far_those_under_way_are(shown):
    first, second, _ = shown(12, 10_000, 10.0, (8_000, 8), (8_000, 8))
    assert first.startswith("main: 0 of 12 runs (8 under way, 10%), 8,000 steps, 800 steps/s, 0 non-finite")
    assert second.startswith("main: 0 of 12 runs (8 under way, 20%), 16,000 steps, 800 steps/s, 0 non-finite")


def test_many_short_runs_say_runs_a_second(shown):
    assert ", 2,000 steps, 2.0 runs/s, 0 non-finite" in shown(40, 100, 10.0, (2000, 20))[0]
    assert ", 25 s a run, 0 non-finite" in shown(4, 0, 25.0, (1, 1))[0]  # a measurement has no steps


def test_a_notebook_without_widgets_is_told_in_plain_lines(monkeypatch):
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    console = Console(record=True, file=io.StringIO(), width=200)
    console.is_jupyter = True
    monkeypatch.setattr("rich.jupyter.display", lambda *args: None)
    with progress.Display(console, "main", 4, 0, 10) as display:
        display.finished(4, 0, 1.0)
    assert "main: 4 of 4 runs" in console.export_text()


def test_a_script_prints_the_best_points_and_shows_its_figures_inline(tmp_path):
    console = Console(record=True, file=io.StringIO(), width=200)
    own = experiment_of(tmp_path / "own_file.py", FILE)
    results = api.run(own, scale="smoke", out=tmp_path / "runs", console=console)
    assert "main: best point by validation, test/accuracy there" in console.export_text()
    drawn = api.figures(results)
    assert list(drawn) == ["drawn"]
    assert drawn["drawn"].read_text().startswith("<?xml")
    assert drawn._repr_html_().startswith('<img alt="drawn" src="data:image/svg+xml;base64,')
    shutil.rmtree(results.folder / "figures")
    with pytest.raises(ResultsError, match=r"api.publish\(EXPERIMENT, results\) draws them"):
        api.figures(results)


def test_without_a_validation_metric_the_summary_says_what_was_measured(run):
    status, words, _ = run(OWN_LEARNER)
    assert status == 0
    assert "main: 4 runs, 0 non-finite; no validation metric chooses a best point" in words
    assert re.search(r"test/loss +-6 +-3.3 +-0.6", words)


def command(code, *signals):
    """Exit status, output and seconds of a process of its own, to which a line that it says brings signals."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    said = process.stdout.readline()
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    rest = process.communicate(timeout=60)[0]
    return process.returncode, said + rest, time.monotonic() - began


WATCHED = """
import hashlib, threading, time
from dlexp import interrupt
class Swallows:
    def __del__(self):
        print("ready"); time.sleep(5)  # what is raised in here is ignored by Python
with interrupt.watched(print):
    {body}
"""


def test_a_signal_that_something_swallows_is_sent_again():
    status, said, seconds = command(WATCHED.format(body="Swallows()\n    time.sleep(20)"), signal.SIGINT)
    assert "KeyboardInterrupt" in said
    assert status == -signal.SIGINT  # Python's own for what is raised in the end
    assert seconds < 5


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_within_a_second_whatever_is_computed(second):
    # As XLA, it lets no handler of Python run.
    long = "threading.Timer(0.3, print, ['ready']).start(); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**8)"
    status, said, seconds = command(WATCHED.format(body=long), signal.SIGINT, second)
    assert status == interrupt.INTERRUPTED
    assert said.endswith(
        "stopped at once; what was saved until then is whole, and the same command goes on from there\n"
    )
    assert seconds < 2


def test_ctrl_c_while_a_script_is_importing_leaves_no_traceback():
    code = "from dlexp import cli\nimport time\nprint('ready')\ntime.sleep(30)"
    status, said, seconds = command(code, signal.SIGINT)
    assert said == "ready\nstopped\n"
    assert status == -signal.SIGINT
    assert seconds < 5


def test_the_readmes_own_data_are_splits_scaled_by_the_training_split(tmp_path, monkeypatch):
    code = next(block for block in blocks("python") if "read_csv" in block)
    rows = np.random.default_rng(0).normal(3.0, 2.0, (50, 3))
    pd.DataFrame(rows, columns=["acid", "sugar", "quality"]).to_csv(tmp_path / "wine.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    data = names["load"]()
    assert [split.inputs.shape for split in data] == [(30, 2), (10, 2), (10, 2)]
    assert [split.labels.shape for split in data] == [(30, 1), (10, 1), (10, 1)]
    np.testing.assert_allclose(data.train.inputs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose([data.train.labels.mean(), data.train.labels.std()], [0, 1], atol=1e-5)
    assert names["load"]() is data
    made = learners.supervised(
        models.mlp(width=4, num_layers=2, num_outputs=1), losses.squared_error, optim.adam(), data, batch_size=8
    )
    assert made.hyper["learning_rate"].low == 0


def test_a_plan_says_what_is_saved_and_an_axis_which_grids_of_a_union_it_changes(run):
    union = changed(("grid(hyper={", 'grid(config={"depth": (1, 2)}, hyper={"learning_rate": RATES}) | grid(hyper={'))
    union = union.replace("    return learner", "    config.get('depth')\n    return learner")
    status, words, _ = run(union, "--plan", "--axis=depth=1,2,3")
    assert status == 0
    assert "--axis=depth changes 1 of the 2 grids of sweep main: depth=1,2\n" in words
    assert "main: 0 of 10 runs are saved in " in words
    run(FILE)
    assert "main: 4 of 6 runs are saved in " in run(FILE, "--plan", "--seeds=3")[1]
