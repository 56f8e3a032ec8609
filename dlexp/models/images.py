"""What stands before a network of images: bytes to standardised numbers, and random shifts in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dlexp.types import Hyper, Key, Model, PyTree, Range


def standardised(model: Model, *, mean: float, std: float) -> Model:
    """Returns the model on `(inputs - mean) / std`: bytes stay bytes on the device until a batch is drawn.

    Raises:
      ValueError: where std is not positive.
    """
    if not std > 0:
        raise ValueError(f"standardised: std must be positive, got {std}")

    def numbers(inputs: jax.Array) -> jax.Array:
        return (inputs.astype(float) - mean) / std

    def init(key: Key, hyper: Hyper, inputs: jax.Array) -> PyTree:
        return model.init(key, hyper, numbers(inputs))

    def apply(variables: PyTree, hyper: Hyper, inputs: jax.Array, *, key: Key, train: bool) -> tuple[jax.Array, PyTree]:
        return model.apply(variables, hyper, numbers(inputs), key=key, train=train)

    return model._replace(init=init, apply=apply)


def shifted(model: Model) -> Model:
    """Returns the model trained on images `[batch, row, column]` that are shifted at random, zeros moving in.

    Each image is moved by up to the swept `max_shift` pixels along both axes, evenly; at inference it stays.
    """

    def apply(variables: PyTree, hyper: Hyper, inputs: jax.Array, *, key: Key, train: bool) -> tuple[jax.Array, PyTree]:
        if inputs.ndim < 3:
            raise ValueError(f"shifted: inputs must be images [batch, row, column, ...], got shape {inputs.shape}")
        if train:
            shift_key, key = jax.random.split(key)
            limit = hyper["max_shift"]
            moves = jax.random.randint(shift_key, (len(inputs), 2), -limit, limit + 1)
            inputs = jax.vmap(_moved)(inputs, moves)
        return model.apply(variables, hyper, inputs, key=key, train=train)

    return Model(model.init, apply, {**model.hyper, "max_shift": Range(0, 1000, integer=True)})


def _moved(image: jax.Array, move: jax.Array) -> jax.Array:
    for axis in range(2):
        places = jnp.arange(image.shape[axis]) - move[axis]
        inside = (places >= 0) & (places < image.shape[axis])
        rows = jnp.take(image, jnp.clip(places, 0, image.shape[axis] - 1), axis=axis)
        image = jnp.where(jnp.expand_dims(inside, 1 - axis), rows, jnp.zeros((), image.dtype))
    return image
