"""Messages on their way in: from agents (by their `send.allow`), from the operator, from the hive itself."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from harness import wire
from reconciler.broker import views
from reconciler.broker.core import BODY_MAX_BYTES, Core, checked_body, must_be_operator, roster
from reconciler.broker.loops import Limits, Passage, passage
from reconciler.broker.policy import resolve_for_operator
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.names import MANAGER, OPERATOR, SYSTEM, AgentName
from reconciler.services import Actor
from reconciler.store import agents, messages
from reconciler.store.db import Row, Tx
from reconciler.store.messages import NewMessage

log = structlog.get_logger("broker")

QUEUE_MAX = 10_000
PAIR_MAX = 1_000
_AT_ONCE = Passage(0, 0)


async def tell(
    tx: Tx, to: str, body: str, *, key: str, kind: str = "event", urgent: bool = False
) -> int | None:
    """A message from `system` within the caller's transaction; its id, None if nobody is there to get it.

    `to`: an agent, `operator`, or `manager` (the operator, if there is none). The same `key` is told once to
    each. Too long a text is cut.
    """
    name: str | None = to
    if to == MANAGER:
        name = await agents.manager(tx) or OPERATOR
    elif to != OPERATOR:
        row = await agents.get(tx, to)
        name = None if row is None or row["desired"] == "destroyed" else to
    if name is None or await messages.pair_depth(tx, SYSTEM, name) >= QUEUE_MAX:
        log.warning("message.dropped", to=to, key=key, why="nobody there" if name is None else "queue full")
        return None
    new = NewMessage(SYSTEM, name, _fitting(body), kind=kind, urgent=urgent, key=key)
    return await messages.add(tx, new)


def _fitting(body: str) -> str:
    raw = body.encode("utf-8", "replace").replace(b"\x00", "\N{SYMBOL FOR NULL}".encode())
    if len(raw) > BODY_MAX_BYTES:
        raw = raw[: BODY_MAX_BYTES - 16].decode("utf-8", "ignore").encode() + " … [cut]".encode()
    return raw.decode() or "(nothing)"


class Sending:
    """Queues messages; whoever waits for them is woken by the commit."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core = core
        self._limits = limits

    async def send(self, agent: AgentName, request: wire.SendMessage) -> wire.Sent:
        """An agent's message. A repeat with the same key answers with the same ids."""
        body = checked_body(request.body, AgentError)
        async with self._core.store.state.quick() as tx:
            known = await messages.with_key(tx, agent, request.key)
            if known:
                if not _is_repeat(known, request.to, body):
                    raise AgentError("that key was given to another message", code="conflict")
                return wire.Sent(ids=[row["id"] for row in known])
            names = await self._recipients(tx, agent, request.to)
            await _check_reply(tx, agent, request.in_reply_to)
            for name in names:
                await _check_room(tx, agent, name)
            ids, notes = [], []
            for name in names:
                way = _AT_ONCE if name == OPERATOR else await passage(tx, agent, name, self._limits)
                new = NewMessage(
                    agent,
                    name,
                    body,
                    in_reply_to=request.in_reply_to,
                    turn=self._core.presence.turn_of(agent),
                    key=request.key,
                    hops=way.hops,
                    due_at=way.due_at,
                )
                ids.append(await messages.add(tx, new))
                notes.append(way.note(tx.now))
            self._ring_after(tx, *names, urgent=False)
        return wire.Sent(ids=ids, note=next(filter(None, notes), ""))

    async def _recipients(self, tx: Tx, agent: AgentName, to: str) -> tuple[str, ...]:
        """Whom the message is for. Only a refusal, which names those it may write to, reads all agents."""
        policy = await self._core.policy(tx, agent)
        try:
            return policy.resolve(to, await roster(tx, to))
        except AgentError:
            return policy.resolve(to, await roster(tx))

    async def send_as_operator(self, actor: Actor, request: api.NewMessage) -> api.Message:
        """The operator's message; it ends a nap. To `*` it is one message for each agent, the first is
        answered."""
        must_be_operator(actor)
        body = checked_body(request.body, OperatorError)
        async with self._core.store.state.transaction(dry_run=request.dry_run) as tx:
            known = await messages.with_key(tx, OPERATOR, request.key) if request.key else []
            if known:
                if not _is_repeat(known, request.to, body):
                    raise OperatorError("that key was given to another message", code="conflict")
                return views.message(known[0])
            names = resolve_for_operator(request.to, await roster(tx))  # people write seldom
            if request.in_reply_to is not None and await messages.get(tx, request.in_reply_to) is None:
                raise OperatorError(f"there is no message {request.in_reply_to}", code="not-found")
            ids = [
                await messages.add(
                    tx,
                    NewMessage(
                        OPERATOR, name, body, urgent=True, in_reply_to=request.in_reply_to, key=request.key
                    ),
                )
                for name in names
            ]
            await tx.audit(actor.name, "message.send", request.to, messages=ids)
            self._ring_after(tx, *names, urgent=True)
            row = await messages.get(tx, ids[0])
        assert row is not None, "it was written in this transaction"
        view = views.message(row)
        return view.model_copy(update={"id": 0}) if request.dry_run else view

    async def notify(
        self, agent: AgentName, body: str, *, kind: str = "event", urgent: bool = False, key: str
    ) -> None:
        """A message from `system`; see `tell`."""
        async with self._core.store.state.quick() as tx:
            message = await tell(tx, agent, body, key=key, kind=kind, urgent=urgent)
            if message is not None:
                row = await messages.get(tx, message)
                assert row is not None, "it was written in this transaction or before"
                self._ring_after(tx, row["recipient"], urgent=urgent)

    async def page(self, *, agent: str | None, before: int | None, limit: int) -> api.MessageList:
        """Newest first."""
        limit = max(1, min(limit, 500))
        if agent == MANAGER:  # messages stand under its name; without one they went to the operator
            agent = await agents.manager(self._core.store.state) or OPERATOR
        rows = await messages.page(self._core.store.state, agent=agent, before=before, limit=limit)
        following = rows[-1]["id"] if len(rows) == limit else None
        return api.MessageList(items=[views.message(row) for row in rows], next=following)

    async def mark_read(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        """The operator has seen a message that was for them."""
        must_be_operator(actor)
        async with self._core.store.state.transaction(dry_run=dry_run) as tx:
            row = await messages.get(tx, message)
            if row is None:
                raise OperatorError(f"there is no message {message}", code="not-found")
            if row["recipient"] != OPERATOR:
                raise OperatorError(f"message {message} is for {row['recipient']}", code="conflict")
            await messages.mark_read(tx, message)
            row = await messages.get(tx, message)
        assert row is not None, "messages are never deleted"
        return views.message(row)

    async def redeliver(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        """What was set aside after too many failed turns waits anew, marked as delivered before."""
        must_be_operator(actor)
        async with self._core.store.state.transaction(dry_run=dry_run) as tx:
            row = await messages.get(tx, message)
            if row is None:
                raise OperatorError(f"there is no message {message}", code="not-found")
            is_repeat = row["state"] == "queued" and row["redelivered"]
            if not await messages.again(tx, message) and not is_repeat:
                raise OperatorError(
                    f"message {message} was not set aside",
                    code="conflict",
                    hint="only what failed too often can come once more; send it anew",
                )
            await tx.audit(actor.name, "message.redeliver", str(message))
            self._ring_after(tx, row["recipient"], urgent=bool(row["urgent"]))
            row = await messages.get(tx, message)
        assert row is not None, "messages are never deleted"
        return views.message(row)

    def _ring_after(self, tx: Tx, *names: str, urgent: bool) -> None:
        """`urgent`: a nap may have ended by it, which is to be shown."""

        def ring() -> None:
            for name in names:
                self._core.ring(name)
                if urgent:
                    self._core.presence.touch(name)

        tx.after_commit(ring)


async def _check_reply(tx: Tx, agent: str, message: int | None) -> None:
    if message is None:
        return
    row = await messages.get(tx, message)
    if row is None or agent not in {row["sender"], row["recipient"]}:
        raise AgentError(f"you have no message {message} to reply to", code="not-found")


async def _check_room(tx: Tx, sender: str, recipient: str) -> None:
    if not await messages.wait_at_least(tx, recipient, min(PAIR_MAX, QUEUE_MAX)):
        return
    if await messages.pair_depth(tx, sender, recipient) >= PAIR_MAX:
        raise AgentError(
            f"{PAIR_MAX} of your messages wait for {recipient} already",
            code="queue-full",
            hint="wait until it has read some of them",
        )
    if await messages.depth(tx, recipient) >= QUEUE_MAX:
        raise AgentError(
            f"{QUEUE_MAX} messages wait for {recipient} already", code="queue-full", hint="try again later"
        )


def _is_repeat(known: Sequence[Row], to: str, body: str) -> bool:
    """Whether rows under a key are the same message again. Who `manager` and `*` are may have changed
    since."""
    return all(row["body"] == body and to in {row["recipient"], MANAGER, "*"} for row in known)
