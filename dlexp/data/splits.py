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


def standardise(dataset: Dataset) -> Dataset:
    """Returns the data set with each feature at mean 0 and variance 1 on the training split.

    A feature that is constant on the training split is only centred. All splits become float32.
    """
    inputs = np.asarray(dataset.train.inputs, np.float64)
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    std[std == 0.0] = 1.0

    def apply(split: Any) -> Any:
        if split is None:
            return None
        return Split(np.asarray((split.inputs - mean) / std, np.float32), split.labels)

    return Dataset(*(apply(split) for split in dataset))


def with_first(dataset: Dataset, num_train: int) -> Dataset:
    """Returns the data set with its first `num_train` training examples alone."""
    return dataset._replace(train=Split(*(array[:num_train] for array in dataset.train)))


def with_label_noise(dataset: Dataset, share: float, *, num_classes: int, seed: int = 0) -> Dataset:
    """Returns the data set with a random share of the training labels drawn anew, the right one among them."""
    rng = np.random.default_rng(seed)
    labels = np.array(dataset.train.labels)
    redrawn = rng.random(len(labels)) < share
    labels[redrawn] = rng.integers(0, num_classes, redrawn.sum())
    return dataset._replace(train=Split(dataset.train.inputs, labels))
