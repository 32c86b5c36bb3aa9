"""The turn loop: messages in, one turn of Claude Code, events out, the end told to the host. It holds no
policy.

A lease is settled by the end of its turn and by nothing else, so a message is never lost: whatever goes wrong
here leaves the lease to the host, which delivers again. Between turns the host's orders (`directives`) are
carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.buffer import Emit, EventBuffer
from harness.compaction import Watched
from harness.link import POLL_S, Link, LinkError
from harness.outcomes import Facts, Verdict, classify
from harness.prompts import wake_prompt
from harness.sender import EventSender
from harness.wire import Directive, Inbox, Purpose, TurnBegun, Welcome

log = logging.getLogger(__name__)

_MESSAGES_MAX = 10
_STOP_S = 2.0
_FAREWELL_S = 1.0
_TOO_LONG = (
    "the conversation is too long for the model, also after it was summed up. The messages are kept: "
    "`/new-session` (`hive new-session NAME`) begins a fresh conversation, which gets them; notes and files "
    "stay."
)


class Runner(Protocol):
    """What the loop needs of a session."""

    context: tuple[int, int] | None

    @property
    def is_open(self) -> bool: ...
    async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts: ...
    async def interrupt(self) -> None: ...
    async def close(self) -> None: ...


class Between(Protocol):
    """What is done between turns, on the host's order: `harness.app` brings it."""

    async def take_model(self, model: str) -> None: ...
    async def take_session(self, session_id: str) -> None: ...
    async def take_welcome(self, welcome: Welcome) -> None: ...
    async def refresh_trees(self) -> None: ...
    def compact_at(self) -> float: ...
    def has_conversation(self) -> bool: ...
    async def take_notes(self, emit: Emit) -> None: ...
    async def notes_are_due(self) -> bool: ...
    async def rewrite_notes(self, emit: Emit) -> Verdict: ...
    async def interrupt(self) -> None: ...


@dataclass(slots=True)
class Orders:
    """What the host ordered and is not done yet. `changed` is set by every order.

    `spec`: ask the host what is approved now; `news`: it has told, and that is to be applied; `park`: end the
    CLI, unless a later turn than this one has begun.
    """

    session_id: str = ""
    compact: bool = False
    spec: bool = False
    news: bool = False
    repos: bool = False
    park: int | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, order: Directive) -> None:
        """Notes an order that is carried out between turns (`cancel` is not one of them)."""
        match order.kind:
            case "session":
                self.session_id = str(order.data.get("session_id", ""))
                self.compact = False  # of the conversation that is left behind
            case "compact":
                self.compact = True
            case "spec":
                self.spec = True
            case "repos":
                self.repos = True
            case "park":
                self.park = int(order.data.get("after", 0))
            case "model" | "wake" | "cancel":
                pass  # the next turn names its model; the end of a nap shows in the inbox
        self.changed.set()

    def heard_welcome(self, _welcome: Welcome) -> None:
        """The host has told what is approved: after a hello of ours."""
        self.news = True
        self.changed.set()


class TurnLoop:
    """Runs turns one after the other until it is cancelled or stopped."""

    def __init__(
        self,
        link: Link,
        session: Runner,
        between: Between,
        orders: Orders,
        *,
        agent: str,
        idle_park_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.orders = orders
        self._link = link
        self._session = session
        self._between = between
        self._agent = agent
        self._idle_park_s = idle_park_s
        self._sleep = sleep
        self._stopping = False
        self._cancelled = False
        self._last_turn = 0
        self._told_resident = False
        self._look_at_notes = False
        self._compacted_at: tuple[int, int] | None = None
        link.is_resident = lambda: session.is_open
        self._out_of_turn = asyncio.Event()
        self._out_of_turn.set()

    async def run(self) -> None:
        """Returns after `stop` only. The poll of the inbox is never given up, since it may bring a lease;
        orders are carried out beside it."""
        poll: asyncio.Task[Inbox] | None = None
        clock = asyncio.get_running_loop().time
        worked_at = clock()
        try:
            while not self._stopping:
                await self._settle()
                poll = poll or asyncio.create_task(self._link.inbox(POLL_S, _MESSAGES_MAX), name="inbox")
                idle_at = worked_at + self._idle_park_s
                await self._either(poll, max(0.0, idle_at - clock()) if self._session.is_open else None)
                if poll.done() and not self._stopping:
                    inbox, poll = await self._received(poll), None
                    if inbox is not None and inbox.lease is not None:
                        self.orders.park = None  # the host has changed its mind
                        await self._settle()  # what was ordered before these messages were given out
                        await self._deliver(inbox)
                        worked_at = clock()
                        continue
                if self._session.is_open and clock() >= idle_at:
                    await self._session.close()
                await self._tell_parked()
        finally:
            if poll is not None:
                poll.cancel()

    async def stop(self) -> None:
        """The container is stopping: a live turn is interrupted, its end told; at most about three
        seconds."""
        self._stopping = True
        if not self._out_of_turn.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S + _FAREWELL_S):
                    await self._interrupt()
                    await self._out_of_turn.wait()

    async def _interrupt(self) -> None:
        await self._session.interrupt()
        await self._between.interrupt()

    async def obey(self, order: Directive) -> None:
        """Takes one order of the host: a cancel at once, the others between turns."""
        if order.kind == "cancel":
            turn = order.data.get("turn")
            if turn is None or turn == self._link.turn:
                self._cancelled = True  # also for a turn whose session is still being made ready
                await self._interrupt()
        else:
            self.orders.take(order)

    async def _either(self, poll: asyncio.Task[Inbox], at_most_s: float | None) -> None:
        """Waits for the inbox or an order, or until the session has idled for too long."""
        order = asyncio.create_task(self.orders.changed.wait())
        try:
            await asyncio.wait({poll, order}, timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            order.cancel()

    async def _received(self, poll: asyncio.Task[Inbox]) -> Inbox | None:
        try:
            return poll.result()
        except LinkError as error:
            log.warning("asking for messages: %s", error)
            await self._sleep(1.0)
            return None

    async def _settle(self) -> None:
        """Carries out what was ordered for between turns."""
        orders = self.orders
        orders.changed.clear()
        if orders.session_id:
            session_id, orders.session_id = orders.session_id, ""
            await self._between.take_session(session_id)
        if orders.spec:
            orders.spec = False
            await self._link.hello()
        if orders.news:
            orders.news = False
            await self._between.take_welcome(self._link.welcome)
        if orders.repos:
            orders.repos = False
            await self._between.refresh_trees()
        if orders.compact or self._is_full():
            orders.compact = False
            self._compacted_at = self._session.context
            await self._extra("compaction", self._sum_up)
        if self._look_at_notes:
            self._look_at_notes = False
            if await self._between.notes_are_due():
                await self._session.close()  # there is one seat, and one CLI in it
                await self._extra("notes", self._between.rewrite_notes)
                self._look_at_notes = False
        if orders.park is not None:
            after, orders.park = orders.park, None
            if after >= self._last_turn:
                await self._session.close()
                self._told_resident = True  # whatever the host thinks, it is answered
        await self._tell_parked()

    def _is_full(self) -> bool:
        """Whether the context is beyond the agent's watermark, and that is news."""
        used, window = self._session.context or (0, 0)
        beyond = window > 0 and used >= self._between.compact_at() * window
        return beyond and self._session.context != self._compacted_at

    async def _tell_parked(self) -> None:
        """Gives the seat back when there is no CLI any more. Should it get lost, the next hello tells."""
        if self._told_resident and not self._session.is_open:
            self._told_resident = False
            try:
                await self._link.parked()
            except LinkError as error:
                log.warning("telling that the session is parked: %s", error)

    async def _deliver(self, inbox: Inbox) -> None:
        """One turn over the messages of a lease."""
        assert inbox.lease is not None
        try:
            begun = await self._link.begin_turn(inbox.lease, uuid.uuid4().hex)
        except LinkError as error:
            # the host does not know the lease any more (it was away): the messages come again
            log.warning("beginning a turn: %s", error)
            with contextlib.suppress(LinkError):
                await self._link.return_lease(inbox.lease)
            await self._sleep(1.0)
            return
        await self._turn(begun, lambda emit: self._converse(wake_prompt(self._agent, inbox), emit))

    async def _extra(self, purpose: Purpose, work: Callable[[Emit], Awaitable[Verdict]]) -> None:
        """A turn without messages."""
        try:
            begun = await self._link.begin_turn(None, uuid.uuid4().hex, purpose)
        except LinkError as error:
            log.warning("beginning a turn for %s: %s", purpose, error)
            return
        await self._turn(begun, work)

    async def _sum_up(self, emit: Emit) -> Verdict:
        """The agent notes what it must keep, then the CLI sums the conversation up."""
        if not self._between.has_conversation():
            emit("note", {"text": "there is no conversation to sum up"})
            return Verdict("ok")
        if not self._cancelled:
            await self._between.take_notes(emit)
        emit("prompt", {"text": "/compact"})
        return (await self._compact(emit))[0]

    async def _compact(self, emit: Emit) -> tuple[Verdict, bool]:
        """The CLI's own command: the verdict, and whether the conversation is a summary now."""
        watched = Watched(emit)
        told = await self._judged("/compact", watched.take, command=True)
        return watched.verdict(told), watched.done

    async def _converse(self, prompt: str, emit: Emit) -> Verdict:
        """The turn itself; when the conversation has grown too long, compacts and tries once more."""
        emit("prompt", {"text": prompt})
        verdict = await self._judged(prompt, emit)
        if verdict.outcome != "prompt_too_long":
            return verdict
        emit("note", {"text": "the conversation is too long for the model: compacting, then once more"})
        _, shorter = await self._compact(emit)
        if shorter:
            verdict = await self._judged(prompt, emit)
        if verdict.outcome != "prompt_too_long":
            return verdict
        return replace(verdict, error=f"{_TOO_LONG} {verdict.error}"[:4000])

    async def _judged(self, prompt: str, emit: Emit, *, command: bool = False) -> Verdict:
        if self._cancelled:
            return Verdict("cancelled")
        facts = await self._session.run(prompt, emit, command=command)
        return classify(replace(facts, stopping=self._stopping))

    async def _turn(self, begun: TurnBegun, work: Callable[[Emit], Awaitable[Verdict]]) -> None:
        """Opens and closes a turn around `work`. The end goes out after all events, however long the host is
        away."""
        self._link.enter_turn(begun.turn)
        self._last_turn, self._told_resident = begun.turn, True
        self._cancelled = False
        self._look_at_notes = True
        self._out_of_turn.clear()
        buffer = EventBuffer()
        sender = EventSender(self._link, begun.turn, buffer)
        sending = asyncio.create_task(sender.run(), name=f"events-{begun.turn}")
        try:
            await self._between.take_model(begun.model)
            try:
                verdict = await work(sender.emit)
            except Exception as error:
                # a bug of ours must not take the container down with the turn: the messages come again
                log.exception("turn %d", begun.turn)
                verdict = Verdict("crashed", f"the harness failed: {type(error).__name__}: {error}"[:1000])
            await self._drained(sender, sending)
            try:
                await self._link.end_turn(begun.turn, verdict, _FAREWELL_S if self._stopping else None)
            except LinkError as error:
                log.warning("ending turn %d: %s", begun.turn, error)
        finally:
            self._link.leave_turn()
            self._out_of_turn.set()
            sending.cancel()

    async def _drained(self, sender: EventSender, sending: asyncio.Task[None]) -> None:
        """Waits until the host has all events; not for ever when stopping, nor for a sender that broke."""
        drained = asyncio.create_task(sender.drained(), name="drained")
        try:
            await asyncio.wait(
                {drained, sending},
                timeout=_FAREWELL_S if self._stopping else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            drained.cancel()
        if sending.done():
            log.error("the events of a turn were not all sent", exc_info=sending.exception())
