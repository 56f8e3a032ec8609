"""What is said in the terminal: the plan before, the best points and verdicts after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table as Grid
from rich.text import Text

from dlexp.results.table import Results, Table
from dlexp.study import statistics
from dlexp.study.claims import Claim

if TYPE_CHECKING:
    from dlexp.sweep.plan import Plan

_VERDICT_STYLES = {"supported": "green", "refuted": "red", "mixed": "yellow", "undecided": "dim"}
_METRICS_SHOWN = 8
_UNITS = {"flops": ("FLOP", 1000.0), "bytes": ("B", 1024.0)}


def plan_tables(plans: Mapping[str, Plan]) -> Iterable[Grid | str]:
    """Yields, for each sweep, its groups with what they cost, then the totals."""
    for name, plan in plans.items():
        rows = _new(f"{name}: {plan.sweep.num_steps} steps, {plan.sweep.num_evals} evaluations")
        rows.add_column("group", overflow="fold")
        for heading in ("runs", "at\nonce", "chunks", "params", "state", "FLOPs", "seconds"):
            rows.add_column(heading, justify="right", no_wrap=True)
        for group in plan.groups:
            flops = _amount(group.flops * group.num_runs, "flops")
            cells = (
                group.num_runs,
                group.width * plan.num_devices,
                plan.num_chunks(group),
                f"{group.num_params:,}",
            )
            seconds = plan.seconds(group)
            expected = "?" if seconds is None else f"{seconds:.1f}"
            rows.add_row(str(group.family), *map(str, cells), _amount(group.state_bytes, "bytes"), flops, expected)
        yield rows
        for group in plan.groups:
            if group.measured and group.measured.is_chosen:
                yield f"{group.family}: {group.layout}; the fastest of {len(group.measured.rates)} layouts timed here"
    yield _totals(list(plans.values()))


def _totals(plans: Sequence[Plan]) -> str:
    groups = [(plan, group) for plan in plans for group in plan.groups]
    programs = sum(3 if group.layout.stepwise else 2 for _, group in groups)
    chunks = sum(plan.num_chunks(group) for plan, group in groups)
    flops = _amount(sum(group.flops * group.num_runs for _, group in groups), "flops")
    largest = max((g.state_bytes * g.width * p.num_devices for p, g in groups), default=0)
    return (
        f"in all: {len(groups)} groups, at most {programs} programs to compile, {sum(p.num_runs for p in plans)} runs "
        f"in {chunks} chunks on {plans[0].num_devices} devices, {flops}, {_amount(largest, 'bytes')} of state at once"
        f"{_expected_seconds(plans)}"
    )


def _expected_seconds(plans: Sequence[Plan]) -> str:
    """By the pace at which the groups were trained or timed here before."""
    known = [plan.seconds(group) for plan in plans for group in plan.groups]
    timed = [seconds for seconds in known if seconds is not None]
    if not timed:
        return ""
    partly = (
        f" ({len(known) - len(timed)} of {len(known)} groups were not timed yet)" if len(timed) < len(known) else ""
    )
    return f"; about {sum(timed):.0f} s of training if none is saved, compilation not counted{partly}"


def best_points(results: Results) -> Iterable[Grid]:
    """Yields, for each sweep, the best swept values of every config; without a validation metric, what was measured."""
    for name, table in results.items():
        over = [axis for axis in table.axes if axis in table.frame and _is_swept(results, name, axis)]
        choose_by = statistics.choosing_metric(table)
        if over and choose_by:
            yield _best_table(name, table, over, statistics.reported_metric(table, choose_by))
        elif scalars := [metric for metric in table.metrics if metric in table.frame]:
            yield _spread_table(name, table, scalars, choose_by)


def claim_table(claims: Sequence[Claim]) -> Grid:
    """Returns the verdicts, one a row."""
    rows = _new("claims")
    for heading in ("verdict", "claim", "effect", "95% interval", "seeds"):
        rows.add_column(heading, overflow="fold")
    for claim in claims:
        numbers = ("", claim.condition if claim.interval is None else _counted(claim))
        if claim.verdict != "mixed" and claim.interval is not None:
            numbers = (f"{claim.effect:.3g}", "{:.3g} to {:.3g}".format(*claim.interval))
        rows.add_row(
            Text(claim.verdict, style=_VERDICT_STYLES[claim.verdict]),
            claim.claim,
            *numbers,
            str(claim.num_seeds),
        )
    return rows


def _counted(claim: Claim) -> str:
    counts = {name: claim.condition.count(f": {name} (") for name in _VERDICT_STYLES}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def agreement(own: Results, reference: Results) -> Iterable[str]:
    """Yields a sentence for each sweep on how far its runs agree with the same runs of the reference."""
    for name, table in own.items():
        if name not in reference:
            continue
        there = reference[name].frame
        shared = table.frame.merge(there, on="run_id", suffixes=("", " (reference)"))
        metrics = ("test/accuracy", "test/loss", *table.metrics)
        metric = next((m for m in metrics if m in table.frame and m in there), None)
        if not len(shared):
            yield f"{name}: shares no run with the reference"
            continue
        said = [f"{name}: {len(shared)} of {len(table)} runs are in the reference too"]
        if metric is not None:
            differs = (shared[metric] - shared[f"{metric} (reference)"]).abs()
            said.append(f"{metric} differs by {differs.median():.2g} in the median and {differs.max():.2g} at most")
        same = (shared["status"] == shared["status (reference)"]).sum()
        yield ", ".join([*said, f"{same} have the same status"])


def _best_table(name: str, table: Table, over: Sequence[str], metric: str) -> Grid:
    best = statistics.best(table, over, report=metric)
    rows = _new(f"{name}: best point by validation, {metric} there")
    shown = [column for column in best if column not in ("low", "high", "num_failed", "mean", "num_seeds")]
    any_failed = best["num_failed"].any()
    for heading in shown:
        rows.add_column(str(heading).replace("_", "_\n"), overflow="fold")
    for heading in ("mean", "95% interval", "seeds", *(["failed"] if any_failed else [])):
        rows.add_column(heading, justify="right", no_wrap=heading != "95% interval")
    for point in best.to_dict("records"):
        cells = [_cell(point[column]) for column in shown]
        interval = f"{point['low']:.4f} to {point['high']:.4f}" if point["num_seeds"] > 1 else "one seed"
        if not np.isfinite(point["mean"]):
            interval = "not every run has a finite value"
        failed = [str(point["num_failed"])] if any_failed else []
        rows.add_row(*cells, _cell(point["mean"]), interval, str(point["num_seeds"]), *failed)
    return rows


def _spread_table(name: str, table: Table, metrics: Sequence[str], choose_by: str | None) -> Grid:
    """The last values of metrics over all runs, the first few of them."""
    frame = table.frame
    why = "nothing is swept" if choose_by else "no validation metric chooses a best point"
    lost = int((frame["status"] == "nonfinite").sum())
    rows = _new(f"{name}: {len(table)} runs, {lost} non-finite; {why}")
    for heading in ("last value of", "least", "median", "most"):
        rows.add_column(heading, justify="left" if heading == "last value of" else "right")
    for metric in metrics[:_METRICS_SHOWN]:
        values = frame[metric].to_numpy(float)
        finite = values[np.isfinite(values)]
        cells = [_cell(float(of(finite))) for of in (np.min, np.median, np.max)] if finite.size else ["-"] * 3
        rows.add_row(metric, *cells)
    if len(metrics) > _METRICS_SHOWN:
        rows.add_row(f"and {len(metrics) - _METRICS_SHOWN} more, in the results' frame")
    return rows


def _is_swept(results: Results, sweep: str, axis: str) -> bool:
    return any(axis in block["hyper"] for block in results.manifest["sweeps"][sweep]["blocks"])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _new(title: str) -> Grid:
    whole = Text(title, no_wrap=True, overflow="ignore")  # else it would be wrapped at the table's width
    return Grid(title=whole, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)


def _amount(number: float, kind: str) -> str:
    unit, base = _UNITS[kind]
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < base or prefix == "P":
            return f"{number:.3g} {prefix}{unit}"
        number /= base
    raise AssertionError
