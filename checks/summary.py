"""The end of `make test`: what ran, what was left out by name, how long it took and what took longest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from checks.lanes import Run, Test

_SLOWEST = 10
_BAD = frozenset({"failed", "error"})
_LEFT_OUT = frozenset({"skipped", "deselected"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a whole run. `linters`: outcome by name; `cpu_s`: of everything that ran, linters included."""

    linters: dict[str, str]
    runs: Sequence[Run]
    wall_s: float
    cpu_s: float
    tests: dict[str, list[Test]] = field(default_factory=dict)  # by the slug of their run


def lines(outcome: Outcome) -> Iterator[str]:
    """The summary but for its last line."""
    tests = {run.slug: outcome.tests.get(run.slug, []) for run in outcome.runs}
    everything = [test for run in outcome.runs for test in tests[run.slug]]
    yield from ("", "linters", *(f"  {name:<28} {became}" for name, became in outcome.linters.items()))
    yield from ("", f"{'what ran':<30} {'passed':>6} {'failed':>6} {'left out':>8} {'wall':>6} {'CPU':>7}")
    for run in outcome.runs:
        yield _row(f"  {run.title}", tests[run.slug], run.wall_s, f"{run.cpu_s:.0f} s")
    yield _row("  together", everything, outcome.wall_s, f"{outcome.cpu_s:.0f} s")
    cores = os.cpu_count() or 1
    share = outcome.cpu_s / max(outcome.wall_s, 0.001) / cores
    kinds = Counter(test.kind for test in everything if test.outcome not in _LEFT_OUT)
    yield "  " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    yield f"  {share:.0%} of the time of {cores} cores"
    yield from _section(
        "figures", (f"{t.id.split('::')[0]}: {said}" for t in everything for said in t.figures)
    )
    left_out = (test for test in everything if test.outcome in _LEFT_OUT)
    yield from _section("left out", (f"{test.id}: {test.reason}" for test in left_out))
    slowest = sorted(everything, key=lambda test: -test.seconds)[:_SLOWEST]
    yield from _section("slowest", (f"{test.seconds:6.1f} s  {test.id}" for test in slowest))
    again = [name for run in outcome.runs if run.is_well for name in run.again]
    yield from _section("passed only when run again", iter(again))
    failed = (test.id for test in everything if test.outcome in _BAD and test.id not in again)
    yield from _section("failed", failed)


def _row(title: str, tests: Sequence[Test], wall_s: float, cpu: str) -> str:
    passed = sum(test.outcome == "passed" for test in tests)
    bad = sum(test.outcome in _BAD for test in tests)
    left_out = sum(test.outcome in _LEFT_OUT for test in tests)
    return f"{title:<30} {passed:>6} {bad:>6} {left_out:>8} {clock(wall_s):>6} {cpu:>7}"


def _section(title: str, rows: Iterator[str]) -> Iterator[str]:
    found = [f"  {row}" for row in rows]
    if found:
        yield from ("", title, *found)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"
