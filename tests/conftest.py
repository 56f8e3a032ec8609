"""What the tests share: devices, double precision, a small learner, a count of compilations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import matplotlib
import pooch
import pytest

from dlexp import learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import engine, machine
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Grid, Identity
from dlexp.types import Config, Learner, Sweep

matplotlib.use("agg")
# The compile cache is the user's; what was measured of programs is not, or tests would depend on the past.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pooch.os_cache("dlexp") / "xla"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
os.environ["DLEXP_CACHE_DIR"] = tempfile.mkdtemp(prefix="dlexp-tests-")
_compiled: list[str] = []
jax.monitoring.register_event_listener(
    lambda name, **_: _compiled.append(name) if name.endswith("/cache_misses") else None
)


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
) -> dict[tuple, tuple[engine.Finished, int]]:
    """Trains a grid; (config values, hyper values, seed) -> the chunk it came in and its row there."""
    plan = planning.make(
        Identity("tests.any", 1, "main", num_steps), Sweep(grid, make_learner, num_steps, num_evals), devices
    )
    rows = {}
    for event in engine.train(plan, devices, plan.missing(done)):
        if isinstance(event, engine.Finished):
            for row, (_, run) in enumerate(event.runs):
                rows[(*run.config.values(), *run.hyper.values(), run.seed)] = (event, row)
    return rows


def metric(rows: dict, key: tuple, name: str) -> Any:
    chunk, row = rows[key]
    return chunk.metrics[name][row]
