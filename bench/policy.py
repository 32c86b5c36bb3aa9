"""Decisions of the Bash policy: how many a second, and how long the slowest take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench.figures import Figure
from harness.policy.engine import Policy, Rules
from tests.support.policycases import MAIN, MAIN_DENY, cases

_LARGEST = "for f in a b c d; do\n" + 'git add "$f" && cat src/*.py | sort -o out.txt\n' * 60 + "done"
_QUOTED = "git commit -m '" + "many words " * 1300 + "'"


def measure(samples: int) -> list[Figure]:
    """Microseconds of one decision; the look-up of links, which is a program of its own, is left out."""
    return asyncio.run(_measure(samples))


async def _measure(samples: int) -> list[Figure]:
    policy = Policy(Rules(MAIN, MAIN_DENY, roots=("/state", "/config")), _as_it_is)
    table = [case.command for case in cases() if case.allow == MAIN]
    each = [await _timed(policy, command) for _ in range(samples) for command in table]
    rates = []
    for _ in range(samples):
        started = time.perf_counter()
        for command in table:
            await policy.decide_command(command)
        rates.append(len(table) / (time.perf_counter() - started))
    large = [await _timed(policy, _LARGEST) for _ in range(samples)]
    quoted = [await _timed(policy, _QUOTED) for _ in range(samples)]
    return [
        Figure("policy: decisions a second, table of cases", "/s", rates),
        Figure("policy: one decision, table of cases", "µs", each),
        Figure("policy: 480 commands in one text", "µs", large),
        Figure("policy: one command of 14 kB", "µs", quoted),
    ]


async def _timed(policy: Policy, command: str) -> float:
    started = time.perf_counter()
    await policy.decide_command(command)
    return (time.perf_counter() - started) * 1e6


async def _as_it_is(paths: Sequence[str]) -> Sequence[str]:
    return paths
