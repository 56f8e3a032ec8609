"""The platform for which programs are traced, and the options with which XLA compiles them.

On a CPU, XLA can write several arrays in one loop (multi-output fusion). Adam's two moments and the weights are then
updated in one pass over memory instead of three, if the program is written for it (`dlexp.ops.updates`): perceptrons
train 0.99 to 1.2 times as fast. But XLA then computes nothing twice to save a pass, which slows convolutions. So it is
a choice, made for each program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

ONE_PASS, PASSES = "one_pass", "passes"  # options of the choice "optimizer"
_FUSION = "xla_cpu_use_multi_output_fusion"
_EXTRA = "xla_backend_extra_options"

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Returns for which platform a function is traced (cpu, gpu or tpu): that of the mesh, else JAX's default."""
    return _platform.get() or jax.default_backend()


@contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """A context in which functions are traced for this platform."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def allow_one_pass() -> None:
    """Lets programs use multi-output fusion on a CPU. It must be called before JAX starts its CPU devices.

    The flag is one of the process, not of a compilation, but each compilation may clear it. On other platforms it does
    nothing. Where the user has set this flag of XLA already, it is left as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_EXTRA}={_FUSION}".strip()


def ways_to_update() -> tuple[str, ...]:
    """Returns the options of the choice "optimizer", the usual one first."""
    is_allowed = platform() == "cpu" and _FUSION in os.environ.get("XLA_FLAGS", "")
    return (ONE_PASS, PASSES) if is_allowed else (PASSES,)


def compiler_options(way_to_update: str = PASSES) -> dict[str, Any]:
    """Returns the options of a compilation.

    On a CPU: vectors of 512 bits where the processor has them (XLA would take 256), and multi-output fusion for those
    programs alone that update in one pass.
    """
    if platform() != "cpu":
        return {}
    options: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
    return options if way_to_update == ONE_PASS or ways_to_update() == (PASSES,) else {**options, _EXTRA: ""}
