"""Losses and accuracy of a batch, one value per example: the caller takes the mean."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dlexp import ops

MANY_CLASSES = 100  # from here on a comparison with the label's logit is faster than argmax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns `-log softmax(logits)[label]` in nats, `[batch, ...]`, from integer labels `[batch, ...]`.

    `logits` are `[batch, ..., num_classes]`: one vector a label, for instance at each place of a sequence. At equal
    logits the loss is `log(num_classes)`.
    """
    chex.assert_rank(logits, labels.ndim + 1)
    return ops.softmax_cross_entropy(logits, labels)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the squared error averaged over the outputs, `[batch]`.

    Classes (`are_classes`) are compared as one-hot vectors, so a classifier can be trained on it; other targets, whole
    numbers too, are `[batch]` or `[batch, num_outputs]`.
    """
    if are_classes(predictions, targets):
        targets = jax.nn.one_hot(targets, predictions.shape[-1], dtype=predictions.dtype)
    return jnp.square(predictions - targets.reshape(predictions.shape)).mean(axis=-1)


def are_classes(outputs: jax.Array, labels: jax.Array) -> bool:
    """Whether labels `[batch, ...]` are numbers of classes, given outputs `[batch, ..., num_outputs]`.

    That is, whether they are integers, one for each vector of at least two outputs. Whole numbers beside one output
    are targets of a regression.
    """
    if not all(isinstance(each, (np.ndarray, jax.Array, jax.ShapeDtypeStruct)) for each in (outputs, labels)):
        return False
    is_whole = jnp.issubdtype(labels.dtype, jnp.integer)
    return bool(is_whole and outputs.shape[:-1] == labels.shape and outputs.ndim > 1 and outputs.shape[-1] > 1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest logit is the label's, else 0, `[batch, ...]`; ties go to the lower class.

    `logits` are `[batch, ..., num_classes]`, `labels` integers `[batch, ...]`.
    """
    chex.assert_rank(logits, labels.ndim + 1)
    if logits.shape[-1] < MANY_CLASSES:
        return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
    return _is_first_maximum(logits, labels).astype(logits.dtype)


def _is_first_maximum(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether no other class has a larger logit than the label's, and no class before it an equal one.

    Equal to a comparison with `argmax`, which a CPU computes class by class; false where a logit is NaN.
    """
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    classes, label = jnp.arange(logits.shape[-1]), labels[..., None]
    is_below = jnp.where(classes < label, logits < own, logits <= own)
    return jnp.all(is_below, axis=-1)
