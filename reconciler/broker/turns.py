"""Turns of harnesses, from hello to the end: what a turn holds comes back unless it ends well.

Everything of one agent that must exclude another (hello, begin, end, the container's end) goes through the
write lock of state.db; memory is changed by the commit itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from harness import wire
from reconciler.broker.core import Core, roster
from reconciler.broker.settling import ERROR_MAX, Ended, Settling
from reconciler.errors import AgentError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.states import Role
from reconciler.stats.counting import by_party
from reconciler.store import agents, leases, messages, turns
from reconciler.store import events as history
from reconciler.store.db import Row, Tx

log = structlog.get_logger("broker")

ON_HELLO_S = 10.0
ON_TURN_S = 2.0

OnHello = Callable[[AgentName], Awaitable[None]]
OnTurn = Callable[[AgentName], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a turn: its instant (microseconds) and its data."""

    at: int
    data: Mapping[str, Any]


class Turns:
    """Hello, begin and end of turns, and what follows when a harness vanishes."""

    def __init__(
        self, core: Core, settling: Settling, on_hello: OnHello, on_turn: OnTurn | None = None
    ) -> None:
        self._core = core
        self._settling = settling
        self._on_hello = on_hello
        self._on_turn = on_turn

    # ------------------------------------------------------------------------------------------------- hello
    async def hello(self, agent: AgentName, request: wire.Hello) -> wire.Welcome:
        """A harness greets, and is told what is approved. What older processes of it held comes back.

        Before anything is answered the container is closed (`on_hello`); if that fails, so does hello.
        """
        if request.wire != wire.WIRE_VERSION:
            raise AgentError(
                f"your harness speaks version {request.wire} of the wire, this host {wire.WIRE_VERSION}",
                code="wire-version",
            )
        try:
            async with asyncio.timeout(ON_HELLO_S):
                await self._on_hello(agent)
        except TimeoutError as error:
            raise TemporaryError("the container could not be closed in time") from error
        serving = await self._core.serving(agent)
        async with self._core.store.state.transaction() as tx:
            row = await agents.get(tx, agent)
            if row is None or row["desired"] == "destroyed":
                raise AgentError(f"there is no agent {agent}", code="forbidden")
            ended = [
                await self._close(tx, turn, _crashed("its harness started anew"))
                for turn in await turns.open_of(tx, agent)
                if turn["boot"] != request.boot or turn["id"] != request.turn
            ]
            for lease in await leases.orphans(tx, agent, request.boot):
                await leases.give_back(tx, lease)
            if request.turn is None:
                await turns.forget_orders(tx, agent, "cancel", "park")
            after = await turns.directives_done(tx, agent)
            policy, everybody = await self._core.policy(tx, agent), await roster(tx)
            drafts = await agents.draft_names(tx) if row["role"] == Role.MANAGER else []
            await tx.emit("agent.hello", agent, generation=serving.number)
            going_on = request.turn in {turn["id"] for turn in await turns.open_of(tx, agent)}
            if row["compact_wanted"] and request.turn is None and not await turns.orders_wait(tx, agent):
                await turns.direct(tx, agent, "compact", {})  # it got lost with the process that had it
            last = await turns.last(tx, agent)
            tx.after_commit(lambda: self._greeted(agent, request, serving.number, going_on, last))
        await self._record(agent, history.record_turn_ended, *ended)
        return wire.Welcome(
            wire=wire.WIRE_VERSION,
            agent=agent,
            role="manager" if row["role"] == Role.MANAGER else "agent",
            spec=serving.spec_json,
            prompt=serving.prompt,
            model=serving.model(row["model_override"]),
            session_id=row["session_id"],
            resume=bool(row["session_used"]),
            generation=serving.number,
            peers=policy.peers(everybody),
            directives_after=after,
            hive_drafts=drafts,
        )

    def _greeted(
        self, agent: AgentName, hello: wire.Hello, generation: int, going_on: bool, last_turn: int
    ) -> None:
        if self._core.presence.boot_of(agent) != hello.boot:
            self._core.draining.discard(agent)  # whatever it was stopped for, it is a new process
        if self._core.presence.generation_of(agent) != generation:
            self._core.wake(agent)  # a deployment may wait for it
        self._core.presence.hello(agent, hello.boot, generation)
        self._core.residency.greeted(agent, hello.resident, busy=going_on, last_turn=last_turn)
        if hello.turn is not None:
            self._core.presence.ready(agent)
        self._core.ring(agent)
        self._core.orders[agent].notify()
        self._core.wake(agent)

    async def harness_gone(self, agent: AgentName) -> None:
        """The container ended. Safe to repeat."""
        async with self._core.store.state.transaction() as tx:
            ended = [
                await self._close(tx, turn, _crashed("its container ended"))
                for turn in await turns.open_of(tx, agent)
            ]
            for lease in await leases.orphans(tx, agent, None):
                await leases.give_back(tx, lease)
            await turns.forget_orders(tx, agent, "cancel", "park")
            tx.after_commit(lambda: self._core.presence.gone(agent))
            tx.after_commit(lambda: self._core.residency.gone(agent))
            tx.after_commit(lambda: self._core.ring(agent))
        await self._record(agent, history.record_turn_ended, *ended)

    # ------------------------------------------------------------------------------------------------- begin
    async def begin(self, agent: AgentName, boot: str, request: wire.BeginTurn) -> wire.TurnBegun:
        """Open a turn over a lease, or over none. A repeat with the same key answers with the same turn."""
        serving = await self._core.serving(agent)
        async with self._core.store.state.transaction() as tx:
            self._core.check_boot(agent, boot)
            known = await turns.with_key(tx, agent, request.key)
            if known is None:
                known, told = await self._open(tx, agent, boot, request, serving.number, serving.model)
            elif known["state"] == "open" and known["boot"] == boot:
                told = await self._begun(tx, known)
            else:
                raise AgentError(f"turn {known['id']} of that key has ended", code="conflict")
        await self._record(agent, history.record_turn_begun, told)
        if self._on_turn is not None:
            try:
                async with asyncio.timeout(ON_TURN_S):
                    await self._on_turn(agent)
            except TimeoutError:  # it learns of the turn when it comes back; until then it serves nobody
                log.warning("turn.not_announced", agent=agent, turn=known["id"])
        return wire.TurnBegun(turn=known["id"], model=known["model"])

    async def _open(
        self,
        tx: Tx,
        agent: AgentName,
        boot: str,
        request: wire.BeginTurn,
        generation: int,
        model_for: Callable[[str | None], str],
    ) -> tuple[Row, Told]:
        if agent in self._core.draining:
            raise TemporaryError("the container is about to be restarted", after_s=1.0, code="draining")
        if running := await turns.open_of(tx, agent):
            raise AgentError(f"turn {running[0]['id']} is still open: end it first", code="conflict")
        if request.lease is not None:
            lease = await leases.get(tx, agent, request.lease)
            if lease is None:
                raise AgentError(f"you have no lease {request.lease}", code="not-found")
            if lease["state"] != "open" or lease["boot"] != boot or lease["turn_id"] is not None:
                raise AgentError(f"lease {request.lease} is over: ask for the inbox again", code="conflict")
        elif not self._core.residency.ask_for_turn(agent):
            raise TemporaryError("no seat is free for a command line", after_s=1.0, code="no-seat")
        row = await agents.get(tx, agent)
        assert row is not None, "it has said hello"
        turn = await turns.begin(
            tx,
            agent,
            boot=boot,
            key=request.key,
            lease=request.lease,
            model=model_for(row["model_override"]),
            session=row["session_id"],
            generation=generation,
            purpose=request.purpose,
        )
        if request.lease is not None:
            await leases.bind(tx, request.lease, turn)
        opened = await turns.get(tx, turn)
        assert opened is not None, "it was written in this transaction"
        told = await self._begun(tx, opened)
        await tx.emit("turn.begun", agent, **told.data)
        tx.after_commit(lambda: self._core.presence.turn_begun(agent, turn, opened["model"], request.purpose))
        tx.after_commit(lambda: self._core.residency.busy(agent, turn))
        return opened, told

    async def _begun(self, tx: Tx, row: Row) -> Told:
        found = [] if row["lease_id"] is None else await leases.messages(tx, row["lease_id"])
        ids = [message["id"] for message in found]
        data = {
            "turn": row["id"],
            "model": row["model"],
            "messages": ids,
            "purpose": row["purpose"],
            "inbox_depth": await messages.depth(tx, row["agent"]),
        }
        return Told(row["begun_at"], data)

    # --------------------------------------------------------------------------------------------------- end
    async def end(self, agent: AgentName, turn: int, request: wire.EndTurn) -> None:
        """Ack or return what the turn held, in one commit. A repeat changes nothing."""
        ended = Ended(
            request.outcome,
            request.error,
            request.retry_after_s,
            None if request.leases is None else frozenset(request.leases),
        )
        async with self._core.store.state.transaction() as tx:
            row = await turns.get(tx, turn)
            if row is None or row["agent"] != agent:
                raise AgentError(f"you have no turn {turn}", code="not-found")
            if row["state"] == "ended":
                if row["outcome"] == request.outcome:
                    return
                raise AgentError(f"turn {turn} has ended already: {row['outcome']}", code="conflict")
            told = await self._close(tx, row, ended)
            if request.outcome == "ok":
                await agents.use_session(tx, agent, row["session_id"])
            tx.after_commit(lambda: self._core.wake(agent))
        await self._record(agent, history.record_turn_ended, told)

    async def _close(self, tx: Tx, row: Row, ended: Ended) -> Told:
        """End the open turn `row`."""
        agent, turn = AgentName(row["agent"]), int(row["id"])
        manager = await agents.manager(tx)
        received = by_party(await messages.by_sender(tx, turn), manager)  # before some of them go back
        sent = by_party(await messages.by_recipient(tx, turn), manager)
        settled = await self._settling.settle(tx, row, ended)
        depth = await messages.depth(tx, agent)
        figures = {"received": received, "sent": sent, "inbox_depth": depth}
        await turns.end(tx, turn, ended.outcome, ended.error[:ERROR_MAX], figures)
        if row["purpose"] == "compaction":
            await agents.want_compaction(tx, agent, wanted=False)  # one that failed is not tried for ever
        data = {
            "turn": turn,
            "purpose": row["purpose"],
            "outcome": ended.outcome,
            "error": ended.error[:ERROR_MAX],
            "duration_ms": max(0, tx.now - row["begun_at"]) // 1000,
            "inbox_depth": depth,
            **settled.shown(),
        }
        await tx.emit("turn.ended", agent, **data)
        tx.after_commit(lambda: self._core.presence.turn_ended(agent, turn))
        tx.after_commit(lambda: self._core.rest(agent))
        tx.after_commit(lambda: self._core.ring(agent))
        return Told(tx.now, data)

    async def _record(
        self,
        agent: AgentName,
        record: Callable[[Tx, str, int, Mapping[str, Any]], Awaitable[None]],
        *told: Told,
    ) -> None:
        """Write a turn's first or last line at once, so that lines stand in order; should this process die
        before, the outbox does it."""
        if not told:
            return
        async with self._core.store.events.transaction() as tx:
            for one in told:
                await record(tx, agent, one.at, one.data)
            last = await history.last_line(tx, agent)
        self._core.events.announce("turn.event", agent, agent, turn=told[-1].data["turn"], line=last)


def _crashed(error: str) -> Ended:
    return Ended("crashed", error, by_host=True)
