"""Random keys of a run: made from its seed and the purpose alone, whatever JAX was told of random numbers."""

from __future__ import annotations

import jax

from dlexp.types import Key

RANDOM_NUMBERS = "threefry2x32"  # with other implementations a run's numbers depend on the runs beside it
INIT, UPDATE, EVALUATE = range(3)  # purposes


def of_seed(seed: jax.Array | int) -> Key:
    """Returns the key of a seed."""
    return jax.random.key(seed, impl=RANDOM_NUMBERS)


def of_run(seed: jax.Array | int, purpose: int) -> Key:
    """Returns the key of a run for one purpose; that of a step is `fold_in(of_run(seed, UPDATE), step)`."""
    return jax.random.fold_in(of_seed(seed), purpose)
