"""Lines of turns as containers tell them: cleaned, bounded, stored once, announced; and read again."""

from __future__ import annotations

from harness import wire
from reconciler.broker import claims, views
from reconciler.broker.core import Core
from reconciler.control import models as api
from reconciler.errors import AgentError
from reconciler.model.instants import micros
from reconciler.model.names import AgentName
from reconciler.store import agents, fleet, turns
from reconciler.store import events as history
from reconciler.store.events import Line

PAGE_MAX = 1000
# Kinds that only a session that exists can cause.
_OF_SESSION = frozenset({"text", "thinking", "tool_call", "tool_result"})


class Transcripts:
    """Takes turn events, answers with transcripts."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._allowance = claims.Allowance()
        self._kept: dict[str, tuple[int, int]] = {}
        self._used: dict[str, str] = {}

    async def take(self, agent: AgentName, turn: int, request: wire.TurnEvents) -> wire.EventsTaken:
        """Store the lines of an open turn that are new. What goes over the bounds is left out with a note."""
        row = await turns.get(self._core.store.state, turn)
        if row is None or row["agent"] != agent:
            raise AgentError(f"you have no turn {turn}", code="not-found")
        last = max(event.seq for event in request.events)
        if row["state"] != "open":
            stored = await history.last_seq(self._core.store.events, turn)
            if stored >= last:
                return wire.EventsTaken(seq=stored)
            raise AgentError(f"turn {turn} has ended: {row['outcome']}", code="conflict")
        now = micros(self._core.clock.now())
        lines = self._bounded(agent, turn, [claims.clean(event, now=now) for event in request.events])
        async with self._core.store.events.transaction() as tx:
            known = await history.last_seq(tx, turn)
            added = await history.add_lines(tx, agent, turn, lines)
            line = await history.last_line(tx, agent)
            stored = await history.last_seq(tx, turn)
        self._kept[agent] = (turn, self._count(agent, turn) + added)
        if added:
            self._core.events.announce("turn.event", agent, agent, turn=turn, line=line)
        await self._learn(agent, row["session_id"], [one for one in lines if one.seq > known])
        return wire.EventsTaken(seq=max(last, stored))

    def _bounded(self, agent: AgentName, turn: int, lines: list[Line]) -> list[Line]:
        size = sum(len(history.dumps(line.data)) for line in lines)
        room = claims.LINES_PER_TURN - self._count(agent, turn)
        if len(lines) <= room and self._allowance.take(agent, size, self._core.clock.monotonic()):
            return lines
        if room < 0:
            return []
        note = {"text": f"[{len(lines)} lines, {size} bytes left out: the turn tells too much]"}
        return [Line(lines[0].seq, lines[0].at, "note", note)]

    async def _learn(self, agent: AgentName, session: str, lines: list[Line]) -> None:
        """What the lines say of the agent itself."""
        presence = self._core.presence
        for line in lines:
            match line.kind:
                case "context":
                    now = await agents.get(self._core.store.state, agent)
                    if now is not None and now["session_id"] == session:  # not of a conversation left behind
                        presence.context(agent, line.data["used_tokens"], line.data["window_tokens"])
                case "mcp":
                    if presence.servers(agent, line.data["servers"]):
                        self._core.events.announce("agent.mcp", agent, str(line.seq), **line.data)
                case "compaction":
                    over = not {"after_tokens", "error"}.isdisjoint(line.data)
                    presence.compacting(agent, on=not over)
                    if over:
                        self._core.events.announce("agent.compacted", agent, str(line.seq), **line.data)
                case "notes":
                    self._core.events.announce("agent.notes", agent, str(line.seq), **line.data)
        if self._used.get(agent) != session and any(line.kind in _OF_SESSION for line in lines):
            async with self._core.store.state.transaction() as tx:
                await agents.use_session(tx, agent, session)
            self._used[agent] = session

    def _count(self, agent: str, turn: int) -> int:
        """Lines of that turn that this process has stored."""
        counted, count = self._kept.get(agent, (turn, 0))
        return count if counted == turn else 0

    async def read(self, agent: str, *, before: int | None, after: int | None, limit: int) -> api.Transcript:
        """Lines in order: those that follow `after`, else the last ones before `before` (None: the end).
        `not-found` if there is neither a line nor such an agent."""
        limit = max(1, min(limit, PAGE_MAX))
        events = self._core.store.events
        rows = await history.lines(events, agent, before=before, cursor=after, limit=limit)
        if not rows:
            await fleet.agent(self._core.store.state, agent)
        older = None
        if rows and await history.has_lines_before(events, agent, rows[0]["id"]):
            older = int(rows[0]["id"])
        return api.Transcript(items=[views.line(row) for row in rows], before=older)
