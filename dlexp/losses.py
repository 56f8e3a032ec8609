"""Losses and accuracy of a batch, one value per example: the caller takes the mean."""

import chex
import jax
import jax.numpy as jnp

from dlexp import ops


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns `-log softmax(logits)[label]` in nats, `[batch]`, from integer labels `[batch]`.

    At equal logits it is `log(num_classes)`.
    """
    chex.assert_rank([logits, labels], [2, 1])
    return ops.softmax_cross_entropy(logits, labels)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the squared error averaged over the outputs, `[batch]`.

    Integer labels `[batch]` are compared as one-hot vectors, so a classifier can be trained on it; real targets
    are `[batch]` or `[batch, num_outputs]`.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, predictions.shape[-1], dtype=predictions.dtype)
    return jnp.square(predictions - targets.reshape(predictions.shape)).mean(axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest logit is the label's, else 0, `[batch]`; ties go to the lower class."""
    chex.assert_rank([logits, labels], [2, 1])
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
