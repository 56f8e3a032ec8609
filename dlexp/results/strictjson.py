"""JSON that every reader accepts. JSON has no infinity and no NaN; they are written `{"$float": "inf"}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_KEY = "$float"
_NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def dumps(value: Any, **options: Any) -> str:
    """Returns a value as strict JSON.

    >>> dumps([1.5, float("-inf")])
    '[1.5, {"$float": "-inf"}]'

    Args:
      value: what `json.dumps` takes; numbers that are not finite, too.
      options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_encoded(value), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """Returns what `dumps` was given; reads the words Infinity and NaN, which Python's own `json` writes, too.

    >>> loads('[1.5, {"$float": "-inf"}]'), loads("[Infinity]")
    ([1.5, -inf], [inf])

    Raises:
      ValueError: where the text is no JSON.
    """
    return json.loads(text, object_hook=_decoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_KEY: str(float(value))}
    if isinstance(value, Mapping):
        return {name: _encoded(entry) for name, entry in value.items()}
    return [_encoded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _decoded(entries: dict[str, Any]) -> Any:
    number = entries.get(_KEY)
    return _NUMBERS[number] if len(entries) == 1 and number in _NUMBERS else entries
