"""What the tests share: devices, double precision, a small learner, a count of compilations, turns of workers."""

from __future__ import annotations

import fcntl
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import matplotlib
import pooch
import pytest
from hypothesis import HealthCheck, settings
from packaging.requirements import Requirement

from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import engine, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Grid, Identity
from dlexp.sweep.pace import Layout
from dlexp.types import Config, Learner, Sweep

matplotlib.use("agg")
# The compile cache is the user's; what was measured of programs is not, or tests would depend on the past. Each worker
# of pytest-xdist has a cache of its own: JAX writes an entry in pieces, and warns where another process reads a half.
_cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or pooch.os_cache("dlexp") / "xla")
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
# This module is imported twice: by pytest, and by tests that import from it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache if _cache.name == _worker else _cache / _worker)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
os.environ["DLEXP_CACHE_DIR"] = tempfile.mkdtemp(prefix="dlexp-tests-")
_compiled: list[str] = []
jax.monitoring.register_event_listener(
    lambda name, **_: _compiled.append(name) if name.endswith("/cache_misses") else None
)


NEEDS_NO_TEST = {"test", "cuda", "tpu"}  # extras that bring no code of their own to be tested
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = {name: each for name, each in PROJECT["optional-dependencies"].items() if name not in NEEDS_NO_TEST}

# How long an example takes says nothing where two workers share the cores of a busy machine.
settings.register_profile("dlexp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dlexp")


def pytest_configure(config: pytest.Config) -> None:
    """Each extra has a marker of its name, for the tests that need it."""
    for extra in EXTRAS:
        config.addinivalue_line("markers", f"{extra}: needs the extra {extra}")


@cache
def missing_package(extra: str) -> str | None:
    """The first package of an extra that is not installed."""
    for each in map(Requirement, EXTRAS[extra]):
        try:
            if each.marker is None or each.marker.evaluate():
                metadata.version(each.name)
        except metadata.PackageNotFoundError:
            return each.name
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers():
        if mark.name in EXTRAS and (package := missing_package(mark.name)):
            pytest.skip(f"{package} is not installed, a part of the extra {mark.name}")


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where several workers test at once, a test marked `alone` has the machine to itself, as far as tests go."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent  # of all workers
    with ExitStack() as opened:
        gate, room = (opened.enter_context((folder / name).open("w")) for name in ("gate", "room"))
        # Whoever wants to be alone closes the gate first, so that no other test begins while it waits for the room.
        is_alone = request.node.get_closest_marker("alone") is not None
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


_devices = machine.start_devices()  # before any test module touches the backend
machine.enable_compile_cache()


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    return _devices


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def cold_cache(tmp_path: Path) -> Iterator[None]:
    """An empty compile cache, so that every new program counts."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


@contextmanager
def counted_compiles() -> Iterator[list[str]]:
    start, new = len(_compiled), list[str]()
    yield new
    new.extend(_compiled[start:])


def data_dir() -> Path:
    """The folder of real data files, or a skip that says what is missing."""
    folder = os.environ.get("DLEXP_DATA_DIR")
    if not folder:
        pytest.skip("DLEXP_DATA_DIR names no folder of real data files")
    return Path(folder)


def small_learner(config: Config, num_steps: int) -> Learner:
    """8 hidden units on digits."""
    model = models.mlp(width=8, num_layers=2, num_outputs=10)
    tx = optim.from_name(config.get("optimizer", "adam"))
    data = bundled.load("digits")
    return learners.supervised(model, losses.softmax_cross_entropy, tx, data, batch_size=16)


def finished(
    grid: Grid,
    devices: list[jax.Device],
    *,
    make_learner: Callable[[Config, int], Learner] = small_learner,
    num_steps: int = 20,
    num_evals: int = 2,
    done: Any = (),
    layout: Layout | None = None,
) -> dict[tuple, tuple[engine.Finished, int]]:
    """Trains a grid; (config values, hyper values, seed) -> the chunk it came in and its row there."""
    plan = planning.make(
        Identity("tests.any", 1, "main", num_steps), Sweep(grid, make_learner, num_steps, num_evals), devices
    )
    if layout:
        plan = plan._replace(groups=tuple(group.with_layout(layout) for group in plan.groups))
    rows = {}
    for event in engine.train(plan, devices, plan.missing(done)):
        if isinstance(event, engine.Finished):
            for row, (_, run) in enumerate(event.runs):
                rows[(*run.config.values(), *run.hyper.values(), run.seed)] = (event, row)
    return rows


def metric(rows: dict, key: tuple, name: str) -> Any:
    chunk, row = rows[key]
    return chunk.metrics[name][row]
