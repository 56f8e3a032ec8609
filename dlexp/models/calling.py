"""How modules of other libraries are called: by the parameters that their `__call__` has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dlexp.types import Range

_NAMES = ("train", "training", "is_training", "deterministic", "inference", "hyper", "key")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments_of(
    caller: str, signature: inspect.Signature, *, has_self: bool, hyper: Mapping[str, Range] | None
) -> Callable[..., tuple[tuple, dict[str, Any]]]:
    """Returns `(inputs, hyper, key, train) -> (positional, named)`, the arguments that a signature asks for.

    Raises:
      ValueError: where it needs an argument that is not known, or swept values are declared and it takes none.
    """
    parameters = list(signature.parameters.values())[1 if has_self else 0 :]
    needed = [each for each in parameters if each.kind in _POSITIONAL and each.default is each.empty]
    if len(needed) == 4:
        return lambda inputs, values, key, train: ((inputs, values, key, train), {})
    names = [each.name for each in parameters[1:] if each.name in _NAMES]
    unknown = [each.name for each in needed[1:] if each.name not in names]
    unknown += [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    unknown = [name for name in unknown if name not in names]
    if unknown:
        raise ValueError(
            f"{caller}: __call__ needs {', '.join(unknown)}; beside the inputs a module is given any of "
            f"{', '.join(_NAMES)}, by name, or all four of (inputs, hyper, key, train)"
        )
    if hyper and "hyper" not in names:
        raise ValueError(
            f"{caller}: {', '.join(hyper)} can reach the module only if its __call__ has a parameter hyper, as in "
            "__call__(self, inputs, hyper, key, train)"
        )

    def arguments(inputs: Any, values: Any, key: Any, train: bool) -> tuple[tuple, dict[str, Any]]:
        given = dict.fromkeys(("train", "training", "is_training"), train)
        given |= {"deterministic": not train, "inference": not train, "hyper": values, "key": key}
        return (inputs,), {name: given[name] for name in names}

    return arguments
