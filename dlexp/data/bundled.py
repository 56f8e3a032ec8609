"""The data sets that scikit-learn ships with: nothing is downloaded."""

from __future__ import annotations

from functools import cache

import numpy as np

from dlexp.data.splits import Dataset, Split, frozen, standardise

CLASSIFICATION = ("digits", "iris", "wine", "breast_cancer")
REGRESSION = ("diabetes",)


@cache
def load(name: str = "digits", *, split_seed: int = 0) -> Dataset:
    """Returns 60% train, 20% validation and 20% test of a bundled set, features standardised on train.

    Inputs are float32 `[example, num_features]`; labels int32, stratified over the splits, or for `diabetes`
    float32 targets standardised on train; all are read-only.

    Args:
      name: digits (1797 x 64, 10 classes), iris, wine, breast_cancer or diabetes.
      split_seed: which random split.

    Raises:
      ValueError: on another name.
    """
    if name not in CLASSIFICATION + REGRESSION:
        known = ", ".join(CLASSIFICATION + REGRESSION)
        raise ValueError(f"load: no bundled data set named {name!r}; there are {known}")
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    classes = name in CLASSIFICATION

    def halves(part: Split, share: float) -> tuple[Split, Split]:
        stratify = part.labels if classes else None
        first, second, *rest = train_test_split(*part, train_size=share, random_state=split_seed, stratify=stratify)
        return Split(first, rest[0]), Split(second, rest[1])

    train, held_out = halves(Split(inputs, labels), 0.6)
    validation, test = halves(held_out, 0.5)
    mean, std = (0, 1) if classes else (train.labels.mean(), train.labels.std())
    dtype = np.int32 if classes else np.float32
    splits = (Split(s.inputs, ((s.labels - mean) / std).astype(dtype)) for s in (train, validation, test))
    return frozen(standardise(Dataset(*splits)))
