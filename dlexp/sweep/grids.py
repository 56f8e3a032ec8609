"""Grids: named axes of values, their products and unions, and the identity of a run.

A grid keeps its axes, never its points: points are made one at a time, so a grid of a million runs costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import Any, NamedTuple

import numpy as np

from dlexp.sweep import axes
from dlexp.sweep.axes import number_text, typed_text

_ID_BYTES = 10
_AT_ONCE = 4096  # runs that are numbered, and named, together


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


class GroupKey(NamedTuple):
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
        known: dict[str, dict[Any, None]] = {}
        for block in self.blocks:
            for name, values in (*block.config.items(), *block.hyper.items()):
                known.setdefault(name, {}).update(dict.fromkeys(values))
        found = {name: list(values) for name, values in known.items()}
        return {**found, "seed": sorted({seed for block in self.blocks for seed in block.seeds})}

    @property
    def hyper_names(self) -> list[str]:
        """The swept names, in order of first appearance."""
        return list(dict.fromkeys(name for block in self.blocks for name in block.hyper))

    @property
    def names(self) -> list[str]:
        """Every axis, in order of first appearance, `seed` last; no value is looked at."""
        found = dict.fromkeys(name for block in self.blocks for name in (*block.config, *block.hyper))
        return [*found, "seed"]

    def families(self) -> Iterator[GroupKey]:
        """Yields each pair of a config and a set of hyper names once."""
        seen = set()
        for block in self.blocks:
            names = tuple(sorted(block.hyper))
            for values in product(*block.config.values()):
                config = dict(zip(block.config, values, strict=True))
                key = (names, _config_key(config))
                if key not in seen:
                    seen.add(key)
                    yield GroupKey(config, names)

    def numbered(self, family: GroupKey) -> Runs:
        """Returns the runs of one family by number; no value of an axis is looked at yet."""
        return Runs(family.config, tuple(block for block in self.blocks if _has_group(block, family)))

    def runs(self, family: GroupKey, *, by_seed: bool = False) -> Iterator[Run]:
        """Yields the runs of one family, seeds fastest (slowest if by seed); one in several blocks once."""
        runs = self.numbered(family)
        for numbers in runs.numbers(by_seed=by_seed):
            yield from runs.at(numbers)

    def run_ids(self, identity: Identity, family: GroupKey) -> Iterator[str]:
        """Yields the `run_id` of each run of one family, in the order of `runs`; a million take about a second."""
        runs = self.numbered(family)
        for numbers in runs.numbers():
            yield from runs.ids(identity, numbers)

    def num_runs(self, family: GroupKey) -> int:
        """Returns how many runs a family has."""
        return len(self.numbered(family))


class Runs:
    """The runs of one family by number: each is made when it is asked for, whatever stands before it.

    Numbers count the points and seeds of every block that has the family, seeds fastest. A run that stands in
    several blocks has several numbers; the first is the run's, the others are skipped.

    Args:
      config: the family's.
      blocks: that have it.
    """

    def __init__(self, config: Mapping[str, Any], blocks: tuple[Block, ...]) -> None:
        """Looks at no value."""
        self._config, self._blocks = config, blocks
        self._shapes = [(*map(len, block.hyper.values()), len(block.seeds)) for block in blocks]
        self._starts = [0, *accumulate(map(math.prod, self._shapes))]
        self._known_earlier: dict[tuple[int, int], list[np.ndarray]] = {}

    @property
    def num_numbers(self) -> int:
        """How many numbers there are, those that are skipped counted."""
        return self._starts[-1]

    def __len__(self) -> int:
        return sum(runs * seeds for runs, seeds in self.seeds_with_num_runs.items())

    @cached_property
    def seeds_with_num_runs(self) -> dict[int, int]:
        """How many seeds have how many runs: `{number of runs: number of seeds that have that many}`.

        Nothing is walked where one block alone has the family.
        """
        if len(self._blocks) == 1:
            *points, num_seeds = self._shapes[0]
            return {math.prod(points): num_seeds}
        num_runs = Counter[int]()
        for numbers in self.numbers():
            index = self._block_of(numbers)
            places = self._places(index, numbers)[-1]
            counts = np.bincount(places)
            used = np.flatnonzero(counts)
            seeds = self._blocks[index].seeds
            num_runs.update(
                {seeds[place]: count for place, count in zip(used.tolist(), counts[used].tolist(), strict=True)}
            )
        return dict(Counter(num_runs.values()))

    def numbers(self, *, by_seed: bool = False) -> Iterator[np.ndarray]:
        """Yields the numbers of all runs, each once, some thousands at a time and of one block.

        Args:
          by_seed: all runs of a seed before those of the next; else in order.
        """
        for index, numbers in self._all_numbers_by_seed() if by_seed else self._all_numbers():
            if len(first := numbers[self._is_first(index, numbers)]):
                yield first

    def at(self, numbers: np.ndarray) -> Iterator[Run]:
        """Yields the runs of these numbers, all of one block."""
        block = self._blocks[index := self._block_of(numbers)]
        *points, seeds = self._places(index, numbers)
        columns = [
            map(axis.__getitem__, places.tolist()) for axis, places in zip(block.hyper.values(), points, strict=True)
        ]
        for *values, seed in zip(*columns, map(block.seeds.__getitem__, seeds.tolist()), strict=True):
            yield Run(self._config, dict(zip(block.hyper, values, strict=True)), seed)

    def ids(self, identity: Identity, numbers: np.ndarray) -> list[str]:
        """Returns the `run_id` of each of these numbers, all of one block."""
        block = self._blocks[index := self._block_of(numbers)]
        *points, seeds = self._places(index, numbers)
        places = dict(zip(block.hyper, points, strict=True))
        names = sorted(block.hyper)
        texts = [_hyper_texts(name, block.hyper[name], places[name], b", " * (name != names[0])) for name in names]
        ends = _by_place(seeds, lambda place: b"], %d]" % block.seeds[place])
        begun = hashlib.blake2b(_id_head(identity, self._config) + b", [", digest_size=_ID_BYTES)
        return _hex_digests(begun, map(b"".join, zip(*texts, ends, strict=True)))

    def _block_of(self, numbers: np.ndarray) -> int:
        return bisect_right(self._starts, int(numbers[0])) - 1

    def _places(self, index: int, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        """On each axis of a block, seeds last."""
        return np.unravel_index(numbers - self._starts[index], self._shapes[index])

    def _all_numbers(self) -> Iterator[tuple[int, np.ndarray]]:
        for index, (start, stop) in enumerate(pairwise(self._starts)):
            for begin in range(start, stop, _AT_ONCE):
                yield index, np.arange(begin, min(begin + _AT_ONCE, stop))

    def _all_numbers_by_seed(self) -> Iterator[tuple[int, np.ndarray]]:
        """Seeds in order of first appearance."""
        places = [{seed: place for place, seed in enumerate(block.seeds)} for block in self._blocks]
        for seed in dict.fromkeys(seed for block in self._blocks for seed in block.seeds):
            for index, (start, stop) in enumerate(pairwise(self._starts)):
                if seed in places[index]:
                    first, step = start + places[index][seed], len(places[index])
                    for begin in range(first, stop, step * _AT_ONCE):
                        yield index, np.arange(begin, min(begin + step * _AT_ONCE, stop), step)

    def _is_first(self, index: int, numbers: np.ndarray) -> np.ndarray:
        """Whether no earlier block has the run."""
        is_first = np.ones(len(numbers), bool)
        places = self._places(index, numbers) if index else ()
        for earlier in range(index):
            pairs = zip(self._also_in(earlier, index), places, strict=True)
            is_first &= ~np.logical_and.reduce([has[place] for has, place in pairs])
        return is_first

    def _also_in(self, earlier: int, index: int) -> list[np.ndarray]:
        """Which values of a block's axes an earlier block has too, `[value]` each, seeds last; looked at once."""
        if (earlier, index) not in self._known_earlier:
            one, other = self._blocks[earlier], self._blocks[index]
            axes = [
                _among(map(number_text, values), map(number_text, one.hyper[name]))
                for name, values in other.hyper.items()
            ]
            self._known_earlier[earlier, index] = [*axes, _among(other.seeds, one.seeds)]
        return self._known_earlier[earlier, index]


def _among(values: Iterable[Any], known: Iterable[Any]) -> np.ndarray:
    known = frozenset(known)
    return np.array([value in known for value in values], bool)


def _hyper_texts(name: str, values: Sequence[float], places: np.ndarray, before: bytes) -> Iterator[bytes]:
    """What ids say of the swept value at each place: a pair of JSON, of the name and the number as a text."""
    head = before + b"[" + json.dumps(name).encode() + b', "'
    return _by_place(places, lambda place: head + number_text(values[place]).encode() + b'"]')


def _by_place(places: np.ndarray, text: Callable[[int], bytes]) -> Iterator[bytes]:
    """The text of each place; of equal places it is made once."""
    used, which = np.unique(places, return_inverse=True)
    return map(list(map(text, used.tolist())).__getitem__, which.tolist())


def _hex_digests(begun: Any, texts: Iterable[bytes]) -> list[str]:
    """Of hashes that all begin alike."""
    digests = []
    for text in texts:
        each = begun.copy()
        each.update(text)
        digests.append(each.hexdigest())
    return digests


def _has_group(block: Block, family: GroupKey) -> bool:
    return (
        tuple(sorted(block.hyper)) == family.hyper_names
        and block.config.keys() == family.config.keys()
        and all(typed_text(value) in map(typed_text, block.config[name]) for name, value in family.config.items())
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
    config_axes = {name: axes.values_of(name, values) for name, values in (config or {}).items()}
    hyper_axes = {name: axes.values_of(name, values) for name, values in (hyper or {}).items()}
    both = config_axes.keys() & hyper_axes.keys()
    if both:
        raise ValueError(f"grid: {sorted(both)} stand in config and in hyper; an axis is static or swept, not both")
    for name, values in (*config_axes.items(), *hyper_axes.items()):
        axes.check(name, values, swept=name in hyper_axes)
    return Grid((Block(config_axes, hyper_axes, axes.seeds_of(seeds)),))


def override(declared: Grid, name: str, values: Any) -> Grid:
    """Returns the grid with other values on one axis, in every block that has it.

    `seed` takes a count too: as many from the block's first seed on.

    Raises:
      ValueError, TypeError: as `grid` does.
    """

    def changed(block: Block) -> Block:
        config, hyper = dict(block.config), dict(block.hyper)
        for static_or_swept in (config, hyper):
            if name in static_or_swept:
                static_or_swept[name] = values
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


class Identity(NamedTuple):
    """What a run's id says besides its point and its seed."""

    experiment: str
    version: int
    sweep: str
    num_steps: int


def run_id(identity: Identity, run: Run) -> str:
    """Returns 20 hexadecimal digits that tell a run from every other; `Grid.run_ids` makes those of many.

    They depend on what the run is, never on where it stands in a list: on the experiment, its version, the sweep,
    the training length, the config values with their types, the swept values to 9 significant digits, the seed.
    """
    hyper = json.dumps([(name, number_text(run.hyper[name])) for name in sorted(run.hyper)]).encode()
    text = _id_head(identity, run.config) + b", " + hyper + b", %d]" % run.seed
    return hashlib.blake2b(text, digest_size=_ID_BYTES).hexdigest()


def _id_head(identity: Identity, config: Mapping[str, Any]) -> bytes:
    """The text of an id without its end: a JSON list, the swept values and the seed of which are still to come."""
    return json.dumps([*identity, _config_key(config)])[:-1].encode()


def _config_key(config: Mapping[str, Any]) -> tuple:
    return tuple(sorted((name, *typed_text(value)) for name, value in config.items()))
