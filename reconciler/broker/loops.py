"""The loop guard: agents that only feed each other are slowed, then held until the operator decides.

Every message has `hops`: how many agents have passed something on since somebody spoke who is no agent. What
the operator says has 0; what an agent sends has one more than what it last took up. That counts circles of
any length, not only pairs, and a word of the operator to any of them begins anew. The host counts; what an
agent says of itself plays no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.broker.core import Core, must_be_operator
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.instants import MICRO, micros, stamp, stamp_or_none
from reconciler.model.names import OPERATOR, SYSTEM, AgentName
from reconciler.services import Actor
from reconciler.store import loops, messages
from reconciler.store.db import Reader, Row, Tx

DELAY_MAX_S = 300
HELD_MAX = 50  # of a pair, in one direction: what is held must not fill the inbox against others
EXCERPT_MAX = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """Up to `slow_after` hops messages go at once, up to `hold_after` ever later, beyond that not at all."""

    slow_after: int = 24
    hold_after: int = 48

    def due_at(self, hops: int, now: int) -> int | None:
        """From when on a message may be delivered (microseconds): 0 at once, None when it is held."""
        if hops <= self.slow_after:
            return 0
        if hops > self.hold_after:
            return None
        doubled: int = 2 ** (hops - self.slow_after - 1)
        return now + min(doubled, DELAY_MAX_S) * MICRO


def origin(rows: Iterable[Row]) -> int | None:
    """The hops of what these messages together give to do: of the freshest. None if they say nothing about
    it: most events of the hive, which agents can cause themselves, and what was delivered before, which an
    agent can give back as often as it likes."""
    found = [
        row["hops"] if row["sender"] not in {OPERATOR, SYSTEM} else 0
        for row in rows
        if not row["redelivered"] and (row["sender"] != SYSTEM or row["urgent"])
    ]
    return min(found, default=None)


async def take_up(tx: Tx, agent: str, rows: Sequence[Row], *, more: bool) -> None:
    """The agent gets these; `more`: within a turn. That goes on as fresh as it began, or fresher, but for one
    hop with each reading: a turn without end would be a circle that never grows old."""
    hops = origin(rows)
    if hops is not None:
        most = await loops.hops_of(tx, agent) + 1 if more else hops
        await loops.set_hops(tx, agent, min(hops, most))


@dataclass(frozen=True, slots=True)
class Passage:
    """Whether a message goes on: its hops, and from when on (0 at once, None held)."""

    hops: int
    due_at: int | None

    def note(self, now: int) -> str:
        """What its sender should know; empty if nothing."""
        if self.due_at == 0:
            return ""
        since = f"{self.hops} messages have gone from agent to agent since the operator last spoke"
        if self.due_at is None:
            return (
                f"held: {since}; the operator decides whether it is delivered. Do not send more of the kind."
            )
        seconds = max(1, (self.due_at - now) // MICRO)
        return f"slowed: {since}; it is delivered in {seconds} s. End what needs no answer without one."


async def passage(tx: Tx, sender: AgentName, recipient: str, limits: Limits) -> Passage:
    """How a message of an agent to another one may go. The order between two is kept, but for what is held:
    a fresh message passes it, or an agent that is drawn into somebody's circle once could tell nobody any
    more. `AgentError` code `queue-full` when so much is held that nobody will read it."""
    hops = await loops.hops_of(tx, sender) + 1
    due_at = limits.due_at(hops, tx.now)
    ahead = await loops.latest(tx, sender, recipient)
    if ahead is not None and due_at != 0 and ahead["held"]:
        due_at = None
    elif ahead is not None and due_at is not None and ahead["due_at"] is not None:
        due_at = max(due_at, ahead["due_at"])
    if due_at is None and ahead is not None and ahead["held"] >= HELD_MAX:
        raise AgentError(
            f"{HELD_MAX} of your messages to {recipient} are held already: agents only answer each other",
            code="queue-full",
            hint="stop; the operator decides what becomes of them",
        )
    if due_at is not None and due_at <= tx.now:
        due_at = 0
    if due_at is None and (ahead is None or not ahead["held"]):
        await tx.emit("loop.held", sender, peer=recipient, hops=hops)
    elif due_at and hops == limits.slow_after + 1:
        await tx.emit("loop.slowed", sender, peer=recipient, hops=hops)
    return Passage(hops, due_at)


async def _waiting(reader: Reader, now: int) -> api.LoopList:
    found = []
    for row in await loops.delayed(reader, now):
        last = await messages.get(reader, row["last"])
        found.append(
            api.Loop(
                agents=[row["a"], row["b"]],
                state="held" if row["held"] else "slowed",
                waiting=row["held"] + row["slowed"],
                hops=row["hops"],
                since=stamp(row["since"]),
                until=None if row["held"] else stamp_or_none(row["due_at"]),
                last=last["body"][:EXCERPT_MAX] if last is not None else "",
            )
        )
    return api.LoopList(items=found)


class Loops:
    """What the operator sees of the guard, and decides."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def page(self) -> api.LoopList:
        """Pairs whose messages wait."""
        return await _waiting(self._core.store.state, micros(self._core.clock.now()))

    async def decide(self, actor: Actor, pair: tuple[str, str], request: api.DecideLoop) -> api.LoopList:
        """Deliver what waits between two agents, or drop it; what waits afterwards."""
        must_be_operator(actor)
        async with self._core.store.state.transaction(dry_run=request.dry_run) as tx:
            rows = await loops.between(tx, pair, tx.now)
            if not rows:
                raise OperatorError(
                    f"nothing waits between {pair[0]} and {pair[1]}",
                    code="not-found",
                    hint="`hive loops` lists what does",
                )
            await (loops.let_go if request.deliver else loops.drop)(tx, rows)
            verb = "deliver" if request.deliver else "drop"
            numbers = [row["id"] for row in rows]
            await tx.audit(actor.name, f"loop.{verb}", " ".join(pair), messages=numbers, note=request.note)
            await tx.emit("loop.decided", rows[0]["recipient"], peer=rows[0]["sender"], act=verb)
            tx.after_commit(lambda: self._ring(rows))
            return await _waiting(tx, tx.now)

    def _ring(self, rows: Sequence[Row]) -> None:
        for name in {row["recipient"] for row in rows}:
            self._core.ring(name)
            self._core.presence.touch(name)
