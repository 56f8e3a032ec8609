"""What a chunk has measured so far, on the host, and which of its runs left the finite numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

OK, NONFINITE, STOPPED = "ok", "nonfinite", "stopped"


class Recorder:
    """Collects the evaluations of one chunk.

    Args:
      num_runs: rows that count; what is measured of padding is cut.
      num_steps: of the whole training.
      num_evals: evaluations after step 0.
    """

    def __init__(self, num_runs: int, num_steps: int, num_evals: int) -> None:
        """Begins with nothing measured."""
        self.interval = max(num_steps // num_evals, 1)
        self.nonfinite_at = np.full(num_runs, -1, np.int32)
        self.rows: dict[str, np.ndarray] = {}  # name -> [evaluation, run, ...], NaN where not measured yet
        self._steps = self.interval * np.arange(num_evals + 1 if num_steps else 1)
        self._num_runs = num_runs

    @property
    def any_alive(self) -> bool:
        """Whether any run's metrics are all finite so far."""
        return bool((self.nonfinite_at < 0).any())

    def calls(self, start: int, stop: int, num_kept: int) -> Iterator[tuple[int, int]]:
        """Yields the steps from start to stop in parts with so many evaluations at most: `(first, end)`."""
        while start < stop:
            end = min(stop, start - start % self.interval + num_kept * self.interval)
            yield start, end
            start = end

    def evaluated(self, first: int, end: int) -> range:
        """Returns the steps after first, up to end, that are evaluated."""
        return range(first - first % self.interval + self.interval, end + 1, self.interval)

    def note_nonfinite(self, nonfinite_at: Any) -> None:
        """Takes over what the compiled steps saw, `[row]`, first step with a non-finite metric or -1."""
        seen = np.asarray(nonfinite_at)[: self._num_runs]
        self.nonfinite_at = np.where(self.nonfinite_at < 0, seen, self.nonfinite_at)

    def add(self, step: int, metrics: Mapping[str, Any], means: Mapping[str, Any]) -> None:
        """Records an evaluation and the means of the update's metrics over the steps since the last one."""
        finite = np.ones(self._num_runs, bool)
        for name, values in {**metrics, **means}.items():
            values = np.asarray(values)[: self._num_runs]
            if name not in self.rows:
                dtype = np.result_type(values.dtype, np.float32)
                self.rows[name] = np.full((len(self._steps), *values.shape), np.nan, dtype)
            self.rows[name][step // self.interval] = values
            finite &= np.isfinite(values.reshape(self._num_runs, -1)).all(axis=1)
        self.nonfinite_at = np.where((self.nonfinite_at < 0) & ~finite, step, self.nonfinite_at).astype(np.int32)

    def status(self) -> tuple[str, ...]:
        """Returns ok or nonfinite for every run."""
        return tuple(OK if at < 0 else NONFINITE for at in self.nonfinite_at)

    def curves(self, means: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns each metric `[run, evaluation, ...]`, NaN from a run's first non-finite step on.

        Means over steps begin with the first evaluation after step 0.
        """
        lost = (self.nonfinite_at[:, None] >= 0) & (self._steps >= self.nonfinite_at[:, None])
        curves = {}
        for name in sorted({**self.rows, **means}):
            curve = self.rows[name] if name in self.rows else self._never_measured(means[name])
            curve = np.moveaxis(curve, 0, 1).copy()
            curve[lost] = np.nan
            curves[name] = curve[:, 1:] if name in means else curve
        return curves

    def _never_measured(self, mean: Any) -> np.ndarray:
        """A chunk that was lost before its first evaluation still has the columns of the others."""
        return np.full((len(self._steps), self._num_runs, *mean.shape[1:]), np.nan, np.float32)
