"""Grids: named axes of values, their products and unions, and the identity of a run.

A grid keeps its axes, never its points: points are made one at a time, so a grid of a million runs costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

RESERVED = frozenset(["run_id", "seed", "status", "nonfinite_at", "num_steps", "sweep"])
RESERVED |= frozenset(["place", "step", "mean", "low", "high", "num_seeds", "num_failed"])

_MOST_VALUES, _MOST_SEEDS = 10**6, 10**7  # of one axis, whose values are held in memory


class Block(NamedTuple):
    """The product of some axes: every point of `config` x `hyper`, once a seed."""

    config: Mapping[str, tuple[Any, ...]]
    hyper: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]


class Run(NamedTuple):
    """One point with one seed."""

    config: Mapping[str, Any]
    hyper: Mapping[str, float]
    seed: int


class Family(NamedTuple):
    """The runs of a grid that one set of compiled programs can train: a config and a set of hyper names."""

    config: Mapping[str, Any]
    hyper_names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.items()) or "all runs"


class Grid(NamedTuple):
    """A union of blocks; a run that stands in several counts once."""

    blocks: tuple[Block, ...]

    def __or__(self, other: Grid) -> Grid:
        """Returns the union."""
        return Grid(self.blocks + other.blocks)

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Every axis with its values, in order of first appearance, `seed` last."""
        axes: dict[str, list[Any]] = {}
        for block in self.blocks:
            for name, values in (*block.config.items(), *block.hyper.items()):
                known = axes.setdefault(name, [])
                known.extend(value for value in values if value not in known)
        axes["seed"] = sorted({seed for block in self.blocks for seed in block.seeds})
        return axes

    @property
    def hyper_names(self) -> list[str]:
        """The swept names, in order of first appearance."""
        return list(dict.fromkeys(name for block in self.blocks for name in block.hyper))

    def families(self) -> Iterator[Family]:
        """Yields each pair of a config and a set of hyper names once."""
        seen = set()
        for block in self.blocks:
            names = tuple(sorted(block.hyper))
            for values in product(*block.config.values()):
                config = dict(zip(block.config, values, strict=True))
                key = (names, _config_key(config))
                if key not in seen:
                    seen.add(key)
                    yield Family(config, names)

    def runs(self, family: Family, *, by_seed: bool = False) -> Iterator[Run]:
        """Yields the runs of one family, seeds fastest (slowest if by seed); one in several blocks once."""
        having = [(block, _members(block)) for block in self._having(family)]
        earlier = [[members for _, members in having[:place]] for place in range(len(having))]
        if not by_seed:
            for (block, _), before in zip(having, earlier, strict=True):
                yield from _block_runs(family, block, before, block.seeds)
            return
        for seed in self._seeds(family):
            for (block, members), before in zip(having, earlier, strict=True):
                if seed in members.seeds:
                    yield from _block_runs(family, block, before, (seed,))

    def seeds_by_runs(self, family: Family) -> dict[int, int]:
        """Returns how many seeds have how many runs of a family: `{runs of one seed: such seeds}`.

        Nothing is expanded where the family stands in one block alone.
        """
        having = self._having(family)
        if len(having) == 1:
            return {math.prod(map(len, having[0].hyper.values())): len(having[0].seeds)}
        return dict(Counter(Counter(run.seed for run in self.runs(family)).values()))

    def num_runs(self, family: Family) -> int:
        """Returns how many runs a family has."""
        return count_runs(self.seeds_by_runs(family))

    def _having(self, family: Family) -> list[Block]:
        return [block for block in self.blocks if _has_family(_members(block), family)]

    def _seeds(self, family: Family) -> Iterable[int]:
        """In order of first appearance."""
        return dict.fromkeys(seed for block in self._having(family) for seed in block.seeds)


def count_runs(seeds_by_runs: Mapping[int, int]) -> int:
    """Returns how many runs `Grid.seeds_by_runs` tells of."""
    return sum(runs * seeds for runs, seeds in seeds_by_runs.items())


class _Members(NamedTuple):
    config: Mapping[str, frozenset]
    hyper: Mapping[str, frozenset]
    seeds: frozenset


def _members(block: Block) -> _Members:
    return _Members(
        {name: frozenset(map(_typed, values)) for name, values in block.config.items()},
        {name: frozenset(map(_number, values)) for name, values in block.hyper.items()},
        frozenset(block.seeds),
    )


def _block_runs(family: Family, block: Block, earlier: Sequence[_Members], seeds: Sequence[int]) -> Iterator[Run]:
    """The runs of some of a block's seeds that stand in no earlier block."""
    for values in product(*block.hyper.values()):
        hyper = dict(zip(block.hyper, values, strict=True))
        point = {name: _number(value) for name, value in hyper.items()} if earlier else {}
        holders = [each for each in earlier if all(point[name] in each.hyper[name] for name in point)]
        for seed in seeds:
            if not any(seed in each.seeds for each in holders):
                yield Run(family.config, hyper, seed)


def _has_family(members: _Members, family: Family) -> bool:
    return (
        tuple(sorted(members.hyper)) == family.hyper_names
        and members.config.keys() == family.config.keys()
        and all(_typed(value) in members.config[name] for name, value in family.config.items())
    )


def grid(
    *,
    config: Mapping[str, Iterable[Any]] | None = None,
    hyper: Mapping[str, Iterable[float]] | None = None,
    seeds: int | Sequence[int] = 1,
) -> Grid:
    """Returns the product of the axes: static choices in `config`, swept numbers in `hyper`, seeds.

    Every config is compiled once; swept values and seeds are arguments of the compiled programs. Unions are
    written `grid(...) | grid(...)`.

    >>> len(list(grid(config=dict(width=(8, 16)), hyper=dict(learning_rate=(0.1, 0.2)), seeds=3).families()))
    2

    Args:
      config: axes of strings, integers, floats or booleans.
      hyper: axes of finite numbers.
      seeds: how many (0, 1, ...), or which.

    Raises:
      ValueError: on an axis that is empty, repeats a value or has a reserved name, or a name on both sides.
      TypeError: on a value of another type.
    """
    config_axes = {name: _axis_values(name, values) for name, values in (config or {}).items()}
    hyper_axes = {name: _axis_values(name, values) for name, values in (hyper or {}).items()}
    both = config_axes.keys() & hyper_axes.keys()
    if both:
        raise ValueError(f"grid: {sorted(both)} stand in config and in hyper; an axis is static or swept, not both")
    for name, values in (*config_axes.items(), *hyper_axes.items()):
        _check_axis(name, values, swept=name in hyper_axes)
    return Grid((Block(config_axes, hyper_axes, _seeds(seeds)),))


def override(declared: Grid, name: str, values: Any) -> Grid:
    """Returns the grid with other values on one axis, in every block that has it.

    `seed` takes a count too: as many from the block's first seed on.

    Raises:
      ValueError, TypeError: as `grid` does.
    """

    def changed(block: Block) -> Block:
        config, hyper = dict(block.config), dict(block.hyper)
        for axes in (config, hyper):
            if name in axes:
                axes[name] = values
        return grid(
            config=config, hyper=hyper, seeds=_other_seeds(block, values) if name == "seed" else block.seeds
        ).blocks[0]

    blocks: list[Block] = []
    for block in map(changed, declared.blocks):
        if block not in blocks:
            blocks.append(block)
    return Grid(tuple(blocks))


def _other_seeds(block: Block, values: Any) -> Any:
    """As many seeds from the first declared one on: an experiment may have used up those before it."""
    return range(min(block.seeds), min(block.seeds) + values) if isinstance(values, int) else values


def parse_axis(text: str) -> tuple[str, str]:
    """Returns name and values of `NAME=VALUES`.

    Raises:
      ValueError: on anything else.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ValueError(f"{text!r} is no axis; write NAME=VALUE,VALUE,... or NAME=geom:LOW:HIGH:COUNT")
    return name.strip(), values.strip()


def parse_values(text: str, like: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the values that a text names, of the type of those in `like`.

    >>> parse_values("32,64", like=(16,)), parse_values("geom:0.01:1:3", like=(0.5,))
    ((32, 64), (0.01, 0.1, 1.0))

    Raises:
      ValueError: where the text is not of the form or the type.
    """
    kinds = {type(value) for value in like}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else str
    if text.startswith("geom:"):
        try:
            low, high, num = text.removeprefix("geom:").split(":")
            values = geomspace(float(low), float(high), int(num))
        except ValueError as error:
            raise ValueError(
                f"{text!r} is no geom:LOW:HIGH:COUNT with 0 < LOW, 0 < HIGH, COUNT from 1 to {_MOST_VALUES:,}"
            ) from error
        return tuple(map(round, values)) if kind is int else values
    convert: Callable[[str], Any] = _parse_bool if kind is bool else kind
    try:
        return tuple(convert(entry.strip()) for entry in text.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r} must be values of type {kind.__name__}, separated by commas") from error


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def geomspace(low: float, high: float, num: int) -> tuple[float, ...]:
    """Returns `num` numbers from low to high, each the same multiple of the last, to 9 significant digits.

    >>> geomspace(0.001, 1.0, 4)
    (0.001, 0.01, 0.1, 1.0)

    Raises:
      ValueError: unless 0 < low, 0 < high and num is at least 1 (and at most a million).
    """
    if not (0 < low < math.inf and 0 < high < math.inf and 1 <= num <= _MOST_VALUES):
        raise ValueError(
            f"geomspace: needs low > 0, high > 0 and num from 1 to {_MOST_VALUES:,}, got {low:g}, {high:g}, {num}"
        )
    ratio = math.log(high / low) / max(num - 1, 1)
    return tuple(float(_number(low * math.exp(ratio * index))) for index in range(num))


class Identity(NamedTuple):
    """What a run's id says besides its point and its seed."""

    experiment: str
    version: int
    sweep: str
    num_steps: int


def run_id(identity: Identity, run: Run) -> str:
    """Returns 20 hexadecimal digits that tell a run from every other.

    They depend on what the run is, never on where it stands in a list: on the experiment, its version, the sweep,
    the training length, the config values with their types, the swept values to 9 significant digits, the seed.
    """
    hyper = sorted((name, _number(value)) for name, value in run.hyper.items())
    text = json.dumps([*identity, _config_key(run.config), hyper, int(run.seed)])
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _axis_values(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"grid: axis {name} takes a list of values, got {values!r}; write ({values!r},) for one")
    return tuple(map(_plain, values))


def _plain(value: Any) -> Any:
    """Python's own number or string for one of NumPy's: ids and manifests know no others."""
    return value.item() if isinstance(value, np.generic) else value


def _number(value: float) -> str:
    return format(float(value) + 0.0, ".9g")  # + 0.0: minus zero is zero


def _typed(value: Any) -> tuple[str, str]:
    return type(value).__name__, _number(value) if isinstance(value, float) else str(value)


def _config_key(config: Mapping[str, Any]) -> tuple:
    return tuple(sorted((name, *_typed(value)) for name, value in config.items()))


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    seeds = _plain(seeds)
    if not isinstance(seeds, (int, Iterable)) or isinstance(seeds, (bool, str)):
        raise TypeError(f"grid: seeds must be a count (an integer) or a list of integers, got {seeds!r}")
    if isinstance(seeds, int) and seeds > _MOST_SEEDS:
        raise ValueError(f"grid: seeds must be at most {_MOST_SEEDS:,}, got {seeds:,}")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(map(_plain, seeds))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"grid: seeds must be a count of at least 1 or different integers, got {seeds}")
    if not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in chosen):
        raise ValueError(f"grid: seeds must be integers from 0 to 2^32 - 1, got {seeds}")
    return chosen


def _check_axis(name: str, values: tuple[Any, ...], *, swept: bool) -> None:
    if name in RESERVED or "/" in name:
        raise ValueError(f"grid: an axis cannot be named {name!r}; the name is taken for results")
    if not values:
        raise ValueError(f"grid: axis {name} is empty; give it at least one value")
    for value in values:
        if swept and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise TypeError(f"grid: swept axis {name} takes numbers, got {value!r}; put it in config if it is a choice")
        if swept and not math.isfinite(value):
            raise ValueError(f"grid: axis {name} takes finite numbers, got {value!r}")
        if not swept and not isinstance(value, (str, int, float, bool)):
            raise TypeError(f"grid: axis {name} takes strings, numbers or booleans, got {value!r}")
    keys = [_number(value) if swept else _typed(value) for value in values]
    if len(set(keys)) < len(keys):
        raise ValueError(f"grid: axis {name} repeats a value: {', '.join(map(str, values))}")
