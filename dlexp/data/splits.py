"""The three splits of a data set."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Split(NamedTuple):
    """Examples in a fixed order: `inputs` `[example, ...]`, `labels` `[example]` (int32) or real targets."""

    inputs: Any
    labels: Any


class Dataset(NamedTuple):
    """Train to learn, validation to choose, test to look at once."""

    train: Split
    validation: Split | None = None
    test: Split | None = None


def frozen(dataset: Dataset) -> Dataset:
    """Returns the data set with arrays that cannot be written to, so that a cached one stays as it was loaded."""
    frozen_splits = {name: split and Split(*map(_frozen, split)) for name, split in dataset._asdict().items()}
    return Dataset(**frozen_splits)


def standardise(dataset: Dataset) -> Dataset:
    """Returns the data set with each feature at mean 0 and variance 1 on the training split.

    A feature that is constant on the training split, up to the rounding of its numbers, is only centred. Means are
    taken in float64; all splits become float32.

    Raises:
      ValueError: where the training split is empty, or a mean or variance is not finite.
    """
    given = np.asarray(dataset.train.inputs)
    if not len(given):
        raise ValueError("standardise: the training split is empty, so its features have no mean")
    inputs = given.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    is_finite = np.isfinite(mean) & np.isfinite(std)
    if not is_finite.all():
        feature = [int(index) for index in np.argwhere(~is_finite)[0]]
        raise ValueError(
            f"standardise: feature {feature} of the training split has mean {mean[~is_finite][0]} and deviation "
            f"{std[~is_finite][0]}; remove examples that are not finite, and scale features beyond 1e150"
        )
    rounding = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    # From the first row, not from the mean: a sum of equal numbers is rounded, and so is a deviation from its mean.
    is_constant = (inputs - inputs[0]).std(axis=0) <= rounding * np.abs(inputs).max(axis=0)
    std = np.where(is_constant, 1.0, std)

    def apply(split: Any) -> Any:
        if split is None:
            return None
        return Split(np.asarray((np.asarray(split.inputs, np.float64) - mean) / std, np.float32), split.labels)

    return Dataset(*(apply(split) for split in dataset))


def with_first(dataset: Dataset, num_train: int) -> Dataset:
    """Returns the data set with its first `num_train` training examples alone.

    Raises:
      ValueError: where there are not so many, or `num_train` is not positive.
    """
    there = len(dataset.train.inputs)
    if not 1 <= num_train <= there:
        raise ValueError(f"with_first: num_train must be in [1, {there}] (the training set), got {num_train}")
    return dataset._replace(train=Split(*(array[:num_train] for array in dataset.train)))


def with_label_noise(dataset: Dataset, share: float, *, num_classes: int, seed: int = 0) -> Dataset:
    """Returns the data set with a random share of the training labels drawn anew, the right one among them.

    Raises:
      ValueError: where the share is not in [0, 1], or a training label is none of the classes.
    """
    labels = np.array(dataset.train.labels)
    if not 0 <= share <= 1:
        raise ValueError(f"with_label_noise: share must be in [0, 1], got {share}")
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        raise ValueError(
            f"with_label_noise: training labels must be integers from 0 to {num_classes - 1} (num_classes), got "
            f"{labels.dtype} from {labels.min(initial=0)} to {labels.max(initial=0)}"
        )
    rng = np.random.default_rng(seed)
    redrawn = rng.random(len(labels)) < share
    labels[redrawn] = rng.integers(0, num_classes, redrawn.sum())
    return dataset._replace(train=Split(dataset.train.inputs, _frozen(labels)))


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.flags.writeable = False
    return array
