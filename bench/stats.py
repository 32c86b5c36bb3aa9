"""What statistics cost: a turn's rows, and answers over a week of forty agents.

The rows of a week are made in bulk as the recorder leaves them; what is timed is the product's own.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import structlog

from bench.figures import Figure
from reconciler.stats.service import StatService
from reconciler.store.db import Store
from tests.support.brokers import SCOUT, World, event, events
from tests.support.figures import Figures
from tests.support.fleets import name_of

AGENTS = 40
DAYS = 7
TURNS_PER_DAY = 200
TOOLS = ("Bash", "Read", "Edit", "Write", "Grep", "mcp__hyperhive__send", "mcp__hyperhive__recv")
LEVELS_PER_DAY = 150
CALLS = 20
_DAY = 86_400 * 1_000_000
_NOW_S = 1_700_000_000


def measure(samples: int) -> list[Figure]:
    """Milliseconds, and rows and bytes of a turn."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="hive-bench-", dir="/var/tmp") as name:
        return [
            *asyncio.run(_turns(Path(name) / "turns", samples)),
            *asyncio.run(_answers(Path(name), samples)),
        ]


async def _turns(folder: Path, samples: int) -> list[Figure]:
    folder.mkdir()
    world = await World.open(folder, synchronous="NORMAL")
    try:
        await world.agent(SCOUT, allow=["*"])
        await world.hello(SCOUT)
        figures = Figures(world)
        took, rows = [], []
        for _ in range(samples):
            await world.say(SCOUT)
            turn, _ = await world.turn(SCOUT)
            calls = [
                event(n, "tool_call", id="t", name=TOOLS[n % len(TOOLS)], input={"x": "y" * 400})
                for n in range(1, CALLS)
            ]
            await world.broker.turn_events(SCOUT, turn, events(*calls))
            await world.send(SCOUT, "operator")
            world.clock.advance(5)
            await world.end(SCOUT, turn)
            await world.events.drain()
            before = await world.scalar("SELECT COUNT(*) FROM stats", events=True)
            begun = time.perf_counter()
            await figures.recorder.round()
            took.append((time.perf_counter() - begun) * 1000)
            rows.append(float(await world.scalar("SELECT COUNT(*) FROM stats", events=True) - before))
    finally:
        await world.close()
    what = f"a turn of {CALLS} tool calls"
    return [Figure(f"{what}: its figures", "ms", took), Figure(f"{what}: rows", "rows", rows)]


async def _answers(folder: Path, samples: int) -> list[Figure]:
    await (await Store.open(folder)).close()
    count = await asyncio.to_thread(_week, folder)
    store = await Store.open(folder, now=lambda: float(_NOW_S))
    clock = _Clock()
    try:
        stats = StatService(store, clock, None)
        asked: dict[str, dict[str, object]] = {
            "the hive, all keys, 500 points": {"points": 500},
            "every agent, 9 keys, one value": {
                "by": "agent", "points": 1, "keys": "exit_ok,exit_failure,turn_duration_p50,"
                "turn_duration_p95,tokens_out,usd,inbox_depth_max,rss,since_last_turn",
            },
            "one agent, all keys, 120 points": {"agent": name_of(3)},
            "one agent, one key, 120 points": {"agent": name_of(3), "keys": "usd"},
        }  # fmt: skip
        found = []
        for what, more in asked.items():
            given = {
                "agent": None,
                "since": f"{DAYS}d",
                "until": None,
                "keys": None,
                "points": 120,
                "by": "hive",
            }
            took = []
            for _ in range(samples):
                begun = time.perf_counter()
                await stats.query(**(given | more))  # type: ignore[arg-type]
                took.append((time.perf_counter() - begun) * 1000)
            found.append(Figure(f"{DAYS} days of {AGENTS} agents ({count} rows): {what}", "ms", took))
        begun = time.perf_counter()
        await stats.metrics()
        found.append(Figure("metrics of the same", "ms", [(time.perf_counter() - begun) * 1000]))
        size = (folder / "events.db").stat().st_size / count
        return [*found, Figure("a row on the disk", "B", [size])]
    finally:
        await store.close()


class _Clock:
    def now(self) -> float:
        return float(_NOW_S)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


def _week(folder: Path) -> int:
    """The rows of all agents; how many."""
    chance = random.Random(7)
    rows, turn = [], 0
    for number in range(AGENTS):
        agent, begin = name_of(number), _NOW_S * 1_000_000 - DAYS * _DAY
        for _ in range(DAYS * TURNS_PER_DAY):
            turn += 1
            ts = begin + chance.randrange(DAYS * _DAY)
            values = {
                "turn_duration": chance.expovariate(1 / 40), "exit_ok": 1, "tool_calls": 9,
                "received_peer": 1, "sent_operator": 1, "inbox_depth": chance.randrange(5),
            } | {f"tool_{tool}": 2 for tool in chance.sample(TOOLS, 3)}  # fmt: skip
            rows += [(agent, ts, key, value, turn) for key, value in values.items()]
            spent = (
                "tokens_in",
                "tokens_out",
                "tokens_cache_read",
                "tokens_cache_write",
                "usd",
                "context_used",
            )
            rows += [(agent, ts, key, chance.random() * 1000, 0) for key in spent]
        for _ in range(DAYS * LEVELS_PER_DAY):
            ts = begin + chance.randrange(DAYS * _DAY)
            rows += [
                (agent, ts, key, chance.random() * 1e6, 0) for key in ("rss", "notes_bytes", "inbox_depth")
            ]
    with sqlite3.connect(folder / "events.db") as db:
        db.executemany(
            "INSERT OR IGNORE INTO stats (agent, ts, key, value, source) VALUES (?, ?, ?, ?, ?)", sorted(rows)
        )
        db.executemany(
            "INSERT INTO stats_tools VALUES (?, ?, 0)",
            [(name_of(n), t) for n in range(AGENTS) for t in TOOLS],
        )
        count = db.execute("SELECT COUNT(*) FROM stats").fetchone()[0]
    db.close()
    with sqlite3.connect(folder / "state.db") as db:
        for n in range(AGENTS):
            db.execute(
                "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
                "VALUES (?, 'agent', ?, 'running', 's', 0)",
                (name_of(n), 1_048_576 + 65_536 * n),
            )
    db.close()
    return int(count)


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        show(figure)
