"""Figures against a second count: what happens to a broker is written down by the test as it goes over the
wire, and counted from that by other code. hived and the recorder die and come back in between."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from harness import wire
from reconciler.config import Retention as Bounds
from reconciler.model.names import AgentName
from reconciler.retention import PAUSE_S, Retention
from reconciler.stats.catalogue import KEYS
from reconciler.store import db
from tests.support.brokers import BOSS, SCOUT, SMITH, World, event, events
from tests.support.figures import Figures

EXAMPLES = max(12, settings.default.max_examples // 8) if settings.default else 12
AGENTS = (BOSS, SCOUT, SMITH)
# Compared over time below, or sampled: `tests/integration/test_stats.py` has their second count.
ELSEWHERE = {"turns_per_min", "inbox_depth", "approvals_pending", "context_used", "notes_bytes", "rss"}
OUTCOMES = ("ok", "ok", "ok", "cancelled", "crashed", "prompt_too_long")
TOOLS = ("Bash", "Read", "mcp__hyperhive__send", "calls", "calls_per_turn", "odd name!", "")
DAY_S = 86_400


@dataclass(frozen=True)
class Op:
    """One thing that happens to an agent, after some time. `pick` chooses among what can happen now."""

    pick: int
    agent: AgentName
    after_s: float
    outcome: wire.Outcome
    tool: str
    to: str


def ops() -> st.SearchStrategy[list[Op]]:
    one = st.builds(
        Op,
        pick=st.integers(0, 10_000),
        agent=st.sampled_from(AGENTS),
        after_s=st.floats(0.001, 3000, allow_nan=False).map(lambda s: round(s, 3)),
        outcome=st.sampled_from(OUTCOMES),
        tool=st.sampled_from(TOOLS),
        to=st.sampled_from(("operator", "hm1nd", "scout", "smith", "*")),
    )
    return st.lists(one, min_size=25, max_size=60)


@dataclass
class Seen:
    """A turn as it was seen on the wire; instants in seconds."""

    agent: AgentName
    begun: float
    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    outcome: str = ""
    ended: float = 0.0


class Play:
    """Runs a script and writes down what it sees."""

    def __init__(self, world: World, figures: Figures) -> None:
        self.world, self.figures = world, figures
        self.open: dict[AgentName, tuple[int, Seen]] = {}
        self.done: list[Seen] = []
        self.spent: list[tuple[float, AgentName, tuple[int, int, int, int], int]] = []
        self.most: Counter[AgentName] = Counter()

    def party(self, name: str) -> str:
        return {BOSS: "manager", "operator": "operator", "system": "system"}.get(name, "peer")

    async def run(self, script: list[Op]) -> None:
        for name in AGENTS:
            await self.world.hello(name)
        for op in script:
            self.world.clock.advance(op.after_s)
            steps = [self.say, self.send, self.spend, self.write, self.die, self.restart]
            steps += [self.tell, self.tell, self.end, self.end] if op.agent in self.open else [self.begin] * 4
            await steps[op.pick % len(steps)](op)
            await self.look()
        for name in list(self.open):
            self.world.clock.advance(1)
            await self.end(Op(0, name, 1, "ok", "", ""))
        self.world.clock.advance(61)  # until the whole ledger is looked at again
        await self.figures.write()
        self.world.clock.advance(1)

    async def look(self) -> None:
        for name in AGENTS:
            waiting = "SELECT COUNT(*) FROM messages WHERE recipient = ? AND state = 'queued'"
            self.most[name] = max(self.most[name], await self.world.scalar(waiting, name))

    async def say(self, op: Op) -> None:
        if op.pick % 2:
            await self.world.say(op.agent)
        else:
            await self.world.event(op.agent)

    async def send(self, op: Op) -> None:
        if op.to == op.agent:
            return
        others = [name for name in AGENTS if name != op.agent]
        await self.world.send(op.agent, op.to)
        if op.agent in self.open:
            to = [*others, "operator"] if op.to == "*" else [op.to]
            self.open[op.agent][1].sent.update(self.party(name) for name in to)

    async def begin(self, op: Op) -> None:
        inbox = await self.world.poll(op.agent)
        turn = await self.world.begin(op.agent, inbox.lease)
        seen = Seen(op.agent, self.world.clock.now())
        seen.received.update(self.party(message.sender) for message in inbox.messages)
        self.open[op.agent] = (turn, seen)

    async def tell(self, op: Op) -> None:
        turn, seen = self.open[op.agent]
        if op.pick % 3 == 0:
            inbox = await self.world.poll(op.agent, turn=turn, limit=2)
            seen.received.update(self.party(message.sender) for message in inbox.messages)
        else:
            seen.lines += 1
            line = event(seen.lines, "tool_call", id="t", name=op.tool, input={})
            await self.world.broker.turn_events(op.agent, turn, events(line))
            seen.calls[op.tool] += 1

    async def end(self, op: Op) -> None:
        turn, seen = self.open.pop(op.agent)
        if op.outcome == "crashed":
            await self.world.broker.harness_gone(op.agent)
            await self.world.hello(op.agent)
        else:
            await self.world.end(op.agent, turn, op.outcome)
        seen.ended, seen.outcome = self.world.clock.now(), op.outcome
        self.done.append(seen)
        await self.world.set(op.agent, parked_reason="", parked_until_at=None)

    async def spend(self, op: Op) -> None:
        tokens = (op.pick, op.pick // 3, op.pick * 2, op.pick % 7)
        day = "2023-11-14" if op.pick % 2 else "2099-01-01"
        told = self.figures.ledger.spend(op.agent, tokens, op.pick, day=day)
        if op.pick % 3:  # else hived was away when it was told
            self.figures.recorder.usage(told)
        self.spent.append((self.world.clock.now(), op.agent, tokens, op.pick))

    async def write(self, _: Op) -> None:
        await self.figures.write()

    async def die(self, op: Op) -> None:
        """The recorder is cut off after some steps of the loop, and made anew."""
        task = asyncio.ensure_future(self.figures.write())
        for _ in range(op.pick % 60):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.figures.restart()

    async def restart(self, _: Op) -> None:
        await self.world.restart()
        self.figures.restart()
        for name in AGENTS:
            await self.world.hello(name, turn=self.open[name][0] if name in self.open else None)

    # ---------------------------------------------------------------------------------- the other count
    def expected(self, agent: AgentName | None) -> dict[str, float | None]:
        turns = [seen for seen in self.done if agent in {None, seen.agent}]
        took = sorted(seen.ended - seen.begun for seen in turns)
        count = len(turns)
        calls: Counter[str] = sum((seen.calls for seen in turns), Counter())
        found: dict[str, float | None] = {
            "exit_ok": sum(seen.outcome == "ok" for seen in turns),
            "exit_cancelled": sum(seen.outcome == "cancelled" for seen in turns),
            "exit_failure": sum(seen.outcome in {"crashed", "prompt_too_long"} for seen in turns),
            "exit_compact_retry": 0,
            "restarts": 0,
            "turn_duration_p50": took[math.ceil(count / 2) - 1] if took else None,
            "turn_duration_p95": took[math.ceil(count * 0.95) - 1] if took else None,
            "since_last_turn": self.world.clock.now() - max(seen.ended for seen in turns) if turns else None,
            "tool_calls_per_turn": calls.total() / count if count else None,
            "tool_Bash": calls["Bash"],
            "tool_Read": calls["Read"],
            "tool_mcp__hyperhive__send": calls["mcp__hyperhive__send"],
            "tool_odd_name": calls["odd name!"],
            "tool_other": calls["calls"] + calls["calls_per_turn"] + calls[""],
            "inbox_depth_max": max(self.most[n] for n in AGENTS if agent in {None, n}),
        }
        for way in ("received", "sent"):
            for party in ("peer", "operator", "manager", "system"):
                number = sum(getattr(seen, way)[party] for seen in turns)
                found[f"{way}_per_turn_{party}"] = number / count if count else None
        paid = [row for row in self.spent if agent in {None, row[1]}]
        for place, name in enumerate(("in", "out", "cache_read", "cache_write")):
            found[f"tokens_{name}"] = sum(row[2][place] for row in paid)
        return found | {"usd": sum(row[3] for row in paid) / 1e6}

    async def compare(self, *, since: str = "90d", exact: bool = True) -> None:
        for agent in (None, *AGENTS):
            expected = self.expected(agent)
            assert {key.name for key in KEYS} - expected.keys() == ELSEWHERE, "every figure is counted twice"
            found = await self.figures.totals(agent=agent, since=since, keys=",".join(expected))
            for key, value in expected.items():
                slack = 1e-6 if exact or not key.startswith("turn_duration") else 0.011
                assert _close(found[key], value, slack), (agent, key, found[key], value)

    async def compare_over_time(self) -> None:
        """The same in buckets: every turn lies in the one in which it ended."""
        answer = await self.figures.query(since="4d", points=60, keys="exit_ok,turns_per_min")
        begins = [float(i) for i in _seconds(answer.times)]
        ok, rate = (one.values for one in answer.series)
        for number, begin in enumerate(begins):
            end = begins[number + 1] if number + 1 < len(begins) else _seconds([answer.until])[0]
            here = [seen for seen in self.done if begin <= seen.ended < end]
            assert ok[number] == sum(seen.outcome == "ok" for seen in here)
            assert _close(rate[number], len(here) / ((end - begin) / 60), 1e-6)
        assert math.fsum(value or 0 for value in ok) == self.expected(None)["exit_ok"]


def _close(found: float | None, value: float | None, slack: float) -> bool:
    if found is None or value is None:
        return found is value
    return math.isclose(found, value, rel_tol=slack, abs_tol=1e-6)


def _seconds(texts: Iterable[str]) -> list[float]:
    return [datetime.fromisoformat(text).timestamp() for text in texts]


async def _rolled(world: World) -> None:
    """All rows become hours."""
    await world.events.drain()
    await world.events.outbox.sweep()
    world.clock.advance(20 * DAY_S)
    bounds = Bounds(stats_raw_days=1, stats_days=400)
    job = asyncio.ensure_future(Retention(world.store, world.clock, world.events, bounds).prune())
    while not job.done():
        await asyncio.sleep(0)
        if world.clock.sleeping():
            world.clock.advance(PAUSE_S)
    job.result()
    await world.events.drain()


@settings(max_examples=EXAMPLES)
@given(ops())
def test_figures_are_what_a_second_count_finds_whatever_dies_in_between(script: list[Op]) -> None:
    async def scenario(directory: Path) -> None:
        world = await World.open(directory)
        await world.agent(BOSS, role="manager", allow=("*",))
        for name in (SCOUT, SMITH):
            await world.agent(name, allow=("*",))
        try:
            play = Play(world, Figures(world))
            await play.run(script)
            await play.compare()
            await play.compare_over_time()
            await play.figures.write()
            await play.compare()
            await _rolled(world)
            assert await world.scalar("SELECT COUNT(*) FROM stats WHERE key LIKE 'exit%'", events=True) == 0
            await play.compare(exact=False)
        finally:
            await world.close()

    async def alone() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            await scenario(Path(directory))

    with mock.patch.object(db, "READERS", 1):
        asyncio.run(alone())
