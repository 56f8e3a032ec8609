"""The update of elementwise optimizers in one pass over memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dlexp.ops import choices, compiler
from dlexp.ops.storage import VECTOR, first_kernels_transposed, has_few_columns
from dlexp.types import PyTree


def one_pass(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an elementwise transformation that gives the same updates, written so that a CPU makes them in one pass.

    Two things change. It works on the kernels of first layers as they are stored (`dlexp.ops.storage`). And where
    the choice `optimizer` is `one_pass`, the updates are computed a second time, from values that XLA cannot recognise
    as equal: no loop then waits for the array of another, and one loop writes moments and weights together.

    Args:
      tx: treats each number by itself, as sgd and Adam do. An update that knows rows and columns, or norms of whole
        arrays, must not be wrapped: it would see some matrices transposed.
    """

    def update(
        grads: optax.Updates, opt_state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, next_state = as_stored(grads, opt_state, params)
        if choices.choose("optimizer", compiler.ways_to_update()) == compiler.ONE_PASS:
            updates, _ = as_stored(_unrecognised(grads), _unrecognised(opt_state), params)
        return updates, next_state

    def as_stored(*args: PyTree) -> PyTree:
        return first_kernels_transposed(tx.update(*first_kernels_transposed(args)))

    return optax.GradientTransformation(tx.init, update)


def _unrecognised(tree: PyTree) -> PyTree:
    """Returns equal values that XLA cannot recognise as equal, so that it recomputes them instead of waiting for them.

    Only of arrays that fill whole vectors: the others are cheap.
    """
    one = jax.lax.optimization_barrier(jnp.ones(()))

    def times_one(leaf: jax.Array) -> jax.Array:
        is_wide = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim and leaf.shape[-1] % VECTOR == 0
        return leaf * one.astype(leaf.dtype) if is_wide or has_few_columns(leaf) else leaf

    return jax.tree.map(times_one, tree)
