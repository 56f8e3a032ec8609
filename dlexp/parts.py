"""What is often handed over in the place of a Model, an Optimizer or a Dataset, and what to write instead."""

from __future__ import annotations

from typing import Any

from dlexp.types import Model


def check(caller: str, *, model: Any, optimizer: Any, data: Any) -> None:
    """Refuses parts of a learner that are something else.

    Raises:
      TypeError: with the part's name, what came, and what to write.
    """
    if not isinstance(model, Model):
        remedy = _MODEL_REMEDIES.get(_library(model), "make one with dlexp.models, such as models.mlp(...)")
        raise TypeError(f"{caller}: model must be a dlexp.types.Model, got {_named(model)}; {remedy}")
    if not hasattr(optimizer, "make_tx") or not hasattr(optimizer, "hyper"):
        remedy = "take one of dlexp.optim, such as optim.adam(), whose learning rate the grid gives"
        raise TypeError(f"{caller}: optimizer must be a dlexp.optim.Optimizer, got {_named(optimizer)}; {remedy}")
    if not hasattr(data, "train") or not hasattr(data, "_asdict"):
        remedy = "write Dataset(train=Split(inputs, labels), validation=Split(...), test=Split(...)), of dlexp.data"
        raise TypeError(f"{caller}: data must be a dlexp.data.Dataset, got {_named(data)}; {remedy}")


_MODEL_REMEDIES = {
    "flax": "wrap it with models.from_linen(module) or models.from_nnx(...)",
    "equinox": "wrap it with models.from_equinox(make_module)",
}


def _library(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    names = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return next((name for name in names if name in _MODEL_REMEDIES), "")


def _named(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__qualname__"):
        module = value.__module__.lstrip("_").partition(".")[0]
        return f"the function {module}.{value.__name__}"
    return f"a {type(value).__name__}"
