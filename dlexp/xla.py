"""What XLA is told.

On a CPU, one loop may make several arrays (multi-output fusion) where programs are compiled so. Adam's two moments and
the weights are then made in one pass over memory instead of three, if the program is written for it
(`dlexp.optim.take_step`): perceptrons train 0.99 to 1.2 times as fast. But then XLA computes nothing twice to save a
pass, which slows convolutions. So it is a choice, made program by program.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from dlexp import choices
from dlexp.types import PyTree

ONE_PASS, PASSES = "one_pass", "passes"  # options of the choice "optimizer"
FIRST = "first"  # name of the module that is a network's first layer
VECTOR = 16  # float32 numbers in the longest of a CPU's vectors
_FUSION = "xla_cpu_use_multi_output_fusion"
_EXTRA = "xla_backend_extra_options"


def allow_one_pass() -> None:
    """Lets programs be compiled so; of use before JAX has started its CPU devices, and no harm on others.

    It is no option of one compilation, only one of the process, which a compilation may clear.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA not in flags:  # else the user's stand
        os.environ["XLA_FLAGS"] = f"{flags} --{_EXTRA}={_FUSION}".strip()


def ways_to_update() -> tuple[str, ...]:
    """Returns the options of the choice "optimizer", the usual one first."""
    is_allowed = jax.default_backend() == "cpu" and _FUSION in os.environ.get("XLA_FLAGS", "")
    return (ONE_PASS, PASSES) if is_allowed else (PASSES,)


def compiler_options(platform: str, way_to_update: str = PASSES) -> dict[str, Any]:
    """Returns the options of a compilation.

    On a CPU, to use vectors of 512 bits where there are such, XLA's own choice is 256; and multi-output fusion for a
    program that updates in one pass, alone.
    """
    if platform != "cpu":
        return {}
    options: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
    return options if way_to_update == ONE_PASS or ways_to_update() == (PASSES,) else {**options, _EXTRA: ""}


def laid(step: Callable[[jax.Array, PyTree], PyTree]) -> Callable[[jax.Array, PyTree], PyTree]:
    """Returns the body of a loop that makes steps `(index, carry) -> carry`, its carry laid out as it is multiplied.

    First matrices are `exchanged`, before the loop and after it by whoever makes it; narrow ones lie in memory with the
    two axes exchanged: loops over ten outputs fill no vector; turned, Adam's over the last layer takes a seventh of its
    time.
    """
    return lambda index, carry: exchanged(_with_narrow_turned(step(index, exchanged(carry))))


def exchanged(tree: PyTree) -> PyTree:
    """Returns the tree with the matrices of the layer named `FIRST` transposed; twice, it is the tree again.

    On a CPU where runs share a seed, elsewhere the tree as it is: with the batch last, the first layers of all runs
    are one product of these transposes with the batch. XLA takes two transposes out, so whoever exchanges before and
    after what it does number by number (`dlexp.optim`) does it to the numbers as they lie, without a copy; told of
    their layout alone, XLA copies them once a step. Measured: large perceptrons train 1.09 times as fast.
    """
    if not is_batch_shared():
        return tree
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.T if _is_first(path, leaf) else leaf, tree)


def _with_narrow_turned(tree: PyTree) -> PyTree:
    def turned(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_exchanged = is_batch_shared() and _is_first(path, leaf)
        return _turned(leaf) if is_narrow(leaf) and not is_exchanged else leaf

    return jax.tree_util.tree_map_with_path(turned, tree)


def is_batch_shared() -> bool:
    """Whether runs share a seed, and so their batches, on a CPU: there it pays to multiply with the batch last."""
    return jax.default_backend() == "cpu" and choices.is_seed_shared()


def is_narrow(leaf: jax.Array) -> bool:
    """Whether it is made of matrices whose rows fill no vector of a CPU, and whose columns do; on a CPU only."""
    if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) or jax.default_backend() != "cpu":
        return False
    num_rows, num_columns = leaf.shape[-2:]
    return num_columns < VECTOR and num_rows % VECTOR == 0


def _is_first(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether it is a matrix of the first layer, or the optimizer's for it."""
    is_matrix = leaf.ndim == 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
    return is_matrix and any(getattr(entry, "key", None) == FIRST for entry in path)


def _turned(leaf: jax.Array) -> jax.Array:
    *others, rows, columns = range(leaf.ndim)
    return with_layout_constraint(leaf, Layout((*others, columns, rows)))
