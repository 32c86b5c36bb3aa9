"""How large the databases get: agents at work for simulated days, pruned every day by the real job.

Rows are made in bulk, of the sizes that turns have; the job and its rules are the product's. Told is the size
of each file after `DAYS` days, with everything kept for 30: a tenth of a hive of 300.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
from pathlib import Path

import structlog

from bench.figures import Figure
from reconciler.broker.events import EventLog
from reconciler.config import Retention as Bounds
from reconciler.control import models as api
from reconciler.retention import Retention
from reconciler.store.db import Store
from tests.support.fleets import name_of

AGENTS = 30
DAYS = 45
TURNS_PER_DAY = 20
LINES = ("prompt", "tool_call", "tool_result", "tool_call", "tool_result", "text", "context", "result")
LINE_BYTES = 400
KEPT = Bounds(events_days=30, transcripts_days=30, build_logs_days=30, stats_days=30, questions_days=30)
_DAY_S = 86_400
_MIB = 1024 * 1024


class Days:
    """A clock whose days pass when told; nobody waits."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


def measure(samples: int) -> list[Figure]:
    """Sizes in MiB, one sample for each of the last days; `samples` at most."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return asyncio.run(_measure(samples))


async def _measure(samples: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="hive-bench-", dir="/var/tmp") as name:
        folder, clock = Path(name), Days()
        store = await Store.open(folder, now=clock.now)
        job = Retention(store, clock, EventLog(store, clock, handlers={}, spending=_nothing), KEPT)
        sizes: dict[str, list[float]] = {"state.db": [], "events.db": []}
        turn = 0
        for day in range(DAYS):
            turn = await asyncio.to_thread(_day, folder, clock.at, turn)
            clock.at += _DAY_S
            await job.prune()
            if day >= DAYS - samples:
                for one in await job.sizes():
                    sizes[one.name].append(one.bytes / _MIB)
        await store.close()
    what = f"{AGENTS} agents, {TURNS_PER_DAY} turns a day, pruned"
    return [Figure(f"{file}: {what}", "MiB", found) for file, found in sizes.items()]


def _day(folder: Path, begun_s: float, turn: int) -> int:
    """The rows of a day, as the broker leaves them; the number of the last turn."""
    messages, leases, turns, lines, events, stats = [], [], [], [], [], []
    text = json.dumps({"text": "x" * LINE_BYTES})
    for step in range(TURNS_PER_DAY):
        at = int((begun_s + step * _DAY_S / TURNS_PER_DAY) * 1e6)
        for number in range(AGENTS):
            turn += 1
            agent, key = name_of(number), f"key-{turn:010}"
            turns.append((turn, agent, "b" * 32, key, turn, "s" * 36, "haiku", 1, at, at))
            leases.append((turn, agent, "b" * 32, turn, at, at))
            messages += [
                (name_of((number + k + 1) % AGENTS), agent, "x" * 300, f"{key}-{k}", turn, at) for k in (0, 1)
            ]
            lines += [(agent, turn, seq, at, kind, text) for seq, kind in enumerate(LINES * 2, 1)]
            kinds = ("message.sent", "message.sent", "turn.begun", "turn.ended", "agent.state", "agent.state")
            data = json.dumps(
                {"turn": turn, "state": "idle", "messages": [1, 2], "model": "haiku", "reason": ""}
            )
            events += [(at, agent, kind, data) for kind in kinds]
            stats += [(agent, at, k, 1.0) for k in ("turn_duration", "tool_calls", "inbox_depth", "exit_ok")]
    with sqlite3.connect(folder / "state.db") as state:
        state.executemany("INSERT INTO leases VALUES (?, ?, ?, ?, 'acked', ?, ?)", leases)
        state.executemany(
            "INSERT INTO turns (id, agent, boot, start_key, lease_id, session_id, model, generation, "
            "state, outcome, begun_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'ended', 'ok', ?, ?)",
            turns,
        )
        state.executemany(
            "INSERT INTO messages (sender, recipient, body, dedupe_key, lease_id, state, sent_at) "
            "VALUES (?, ?, ?, ?, ?, 'acked', ?)",
            messages,
        )
    state.close()
    with sqlite3.connect(folder / "events.db") as history:
        history.executemany(
            "INSERT INTO transcript (agent, turn_id, seq, at, kind, data) VALUES (?, ?, ?, ?, ?, ?)", lines
        )
        history.executemany("INSERT INTO events (ts, agent, kind, data) VALUES (?, ?, ?, ?)", events)
        history.executemany("INSERT INTO stats (agent, ts, key, value) VALUES (?, ?, ?, ?)", stats)
    history.close()
    return turn


async def _nothing() -> list[api.Spending]:
    return []


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        show(figure)
