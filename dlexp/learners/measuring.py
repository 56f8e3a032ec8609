"""Learners that measure more, and learners that only measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlexp.learners import checks
from dlexp.types import Hyper, Key, Learner, Metrics, PyTree, Range


def measuring(learner: Learner, extra: Callable[[Key, Hyper, PyTree, PyTree], Metrics]) -> Learner:
    """Returns the learner that also measures `extra(key, hyper, data, state)` at each evaluation.

    Raises:
      ValueError: when it is traced, where both measure a metric of the same name.
    """

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> Metrics:
        own, more = learner.evaluate(key, hyper, data, state), extra(key, hyper, data, state)
        if twice := sorted(own.keys() & more.keys()):
            raise ValueError(
                f"measuring: the learner already measures {', '.join(twice)}; give the new one another name"
            )
        return {**own, **more}

    return learner._replace(evaluate=evaluate)


def computed(
    function: Callable[[Key, Hyper, PyTree], Metrics],
    *,
    data: PyTree = (),
    hyper: Mapping[str, Range] | None = None,
) -> Learner:
    """Returns the learner that trains nothing and measures `function(key, hyper, data)` once a run; num_steps is 0.

    Args:
      function: `(key, hyper, data) -> metrics`; the key is the seed's.
      data: pytree of arrays, the same for all runs; () where there are none.
      hyper: what may be swept.

    Raises:
      ValueError: where data are not finite.
      TypeError: where they are no arrays.
    """
    checks.check_numbers("computed", {"data": data})

    def init(key: Key, hyper: Hyper, data: PyTree) -> Metrics:
        return dict(function(key, hyper, data))

    return Learner(data, hyper or {}, init, None, lambda key, hyper, data, metrics: metrics)
