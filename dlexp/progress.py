"""What a sweep shows while it runs: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_PLAIN_SECONDS = 5.0  # between two plain lines


def say(console: Console, text: str) -> None:
    """Prints a sentence as it is: no wrapping, no markup, no pictures made of its colons."""
    console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)


class Display:
    """A context in which a sweep reports what happens.

    Args:
      console: where to write.
      sweep: name of the sweep.
      num_runs: of the whole grid.
      num_done: saved before.
      num_steps: of each run.
    """

    def __init__(self, console: Console, sweep: str, num_runs: int, num_done: int, num_steps: int) -> None:
        """Shows nothing until it is entered."""
        self._console, self._sweep = console, sweep
        self._num_runs, self._done, self._before = num_runs, num_done, num_done
        self._unit = max(num_steps, 1)
        self._advanced, self._diverged, self._diverged_here = 0.0, 0, 0
        self._earlier, self._earlier_here = 0.0, 0.0  # of what advanced: made by an earlier process; in this chunk
        self._began: float | None = None  # when the first steps began, known once they are made
        self._spoken = time.monotonic()
        self._under_way = 0
        has_widgets = importlib.util.find_spec("ipywidgets") is not None  # without them a notebook shows no bar at all
        self._live = has_widgets if console.is_jupyter else console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not self._live,
        )
        self._task: TaskID = self._bar.add_task(sweep, total=float(num_runs), completed=num_done, text="compiling")

    def __enter__(self) -> Display:
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        """Leaves a last line that says how far it came."""
        self._bar.stop()
        if not self._live:
            self._say()

    def compiling(self, config: str) -> None:
        """A group waits for its programs."""
        self._bar.update(self._task, text=f"compiling {config}")
        if not self._live:
            say(self._console, f"{self._sweep}: compiling {config}")

    def advanced(self, run_steps: int, num_nonfinite: int, num_runs: int, took: float | None) -> None:
        """So many runs that are under way made some steps, all together, in so many seconds.

        An earlier process made the steps where the seconds are None.
        """
        self._advanced += run_steps / self._unit
        self._under_way = num_runs
        self._diverged_here = num_nonfinite
        if took is None:
            self._earlier_here += run_steps / self._unit
        else:
            self._note_seconds(took)
        self._bar.update(self._task, completed=self._before + self._advanced, text=self._text())
        if not self._live and time.monotonic() - self._spoken > _PLAIN_SECONDS:
            self._say()

    def started_over(self) -> None:
        """The chunk under way begins anew: its steps so far do not count."""
        self._advanced, self._earlier_here = float(self._done - self._before), 0.0
        self._diverged_here = self._under_way = 0

    def finished(self, num_runs: int, num_nonfinite: int, seconds: float) -> None:
        """A chunk of runs is trained; what was done to it here took so many seconds."""
        self._note_seconds(seconds)
        self._earlier, self._earlier_here = self._earlier + self._earlier_here, 0.0
        self._done += num_runs
        self._diverged, self._diverged_here, self._under_way = self._diverged + num_nonfinite, 0, 0
        self._advanced = float(self._done - self._before)
        self._bar.update(self._task, completed=float(self._done), text=self._text())

    def _text(self) -> str:
        diverged = self._diverged + self._diverged_here
        steps = int((self._before + self._advanced) * self._unit)
        counts = f"{self._done} of {self._num_runs} runs{self._way()}, {steps:,} steps"
        return f"{counts}, {self._pace()}, {diverged} non-finite{self._wait()}"

    def _way(self) -> str:
        """How far the runs under way are, where there are any."""
        if not self._under_way:
            return ""
        made = self._advanced - (self._done - self._before)
        return f" ({self._under_way} under way, {made / self._under_way:.0%})"

    def _pace(self) -> str:
        """Runs a second; steps a second where a run takes longer than one."""
        rate = self._rate()
        if rate >= 1 or self._unit == 1:
            return f"{rate:.1f} runs/s" if rate >= 0.1 or not rate else f"{1 / rate:.0f} s a run"
        return f"{rate * self._unit:,.0f} steps/s"

    def _note_seconds(self, seconds: float) -> None:
        """Neither starting up nor the first compilation counts as training."""
        if self._began is None:
            self._began = time.monotonic() - seconds

    def _rate(self) -> float:
        """Runs a second that this process trains."""
        spent = 0.0 if self._began is None else time.monotonic() - self._began
        return (self._advanced - self._earlier - self._earlier_here) / max(spent, 1e-9)

    def _wait(self) -> str:
        left, rate = self._num_runs - self._before - self._advanced, self._rate()
        if left < 0.5 or rate <= 0:
            return ""
        seconds = round(left / rate)
        return f", {seconds} s left" if seconds < 600 else f", {seconds / 60:.0f} min left"

    def _say(self) -> None:
        self._spoken = time.monotonic()
        say(self._console, f"{self._sweep}: {self._text()}")
