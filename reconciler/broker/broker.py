"""The service `Broker`: one object over the parts that each do one thing."""

from __future__ import annotations

import asyncio

from harness import wire
from reconciler.broker.core import SEATS, Core, Seats, roster
from reconciler.broker.delivery import Delivery
from reconciler.broker.events import EventLog
from reconciler.broker.loops import Limits, Loops
from reconciler.broker.orders import Orders
from reconciler.broker.presence import Presence
from reconciler.broker.questions import Questions
from reconciler.broker.sending import Sending
from reconciler.broker.settling import Settling
from reconciler.broker.transcripts import Transcripts
from reconciler.broker.troubles import Troubles
from reconciler.broker.turns import OnHello, OnTurn, Turns
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.model.instants import micros, stamp
from reconciler.model.names import AgentName
from reconciler.room import lasting
from reconciler.services import Actor, Wake
from reconciler.store import agents, messages, turns
from reconciler.store.db import Store


class MessageBroker:
    """Messages, leases, turns, questions and orders.

    `on_hello` closes the container (no nested user namespaces) before hello is answered; if it raises, the
    harness is not answered and comes again. `on_turn` comes between a turn's beginning and its first request.
    `start` once before anything else, `run` for as long as hived
    lives.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        events: EventLog,
        presence: Presence,
        *,
        wake: Wake,
        on_hello: OnHello,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        seats: Seats = SEATS,
        on_turn: OnTurn | None = None,
    ) -> None:
        self._core = Core(store, clock, events, presence, wake, seats)
        self._sending = Sending(self._core, limits)
        self.troubles = Troubles(self._core)
        presence.gate = self.troubles.gate
        self._delivery = Delivery(self._core, self.troubles)
        self._turns = Turns(self._core, Settling(self._core, self.troubles), on_hello, on_turn)
        self._transcripts = Transcripts(self._core)
        self._questions = Questions(self._core)
        self._loops = Loops(self._core)
        self._orders = Orders(self._core)
        events.observe(self._observe)

    async def start(self) -> None:
        """Take up what the process before left: events that were not copied yet, open turns."""
        await self._core.events.drain()
        await self._core.presence.load()
        for row in await turns.all_open(self._core.store.state):
            self._core.residency.busy(row["agent"], row["id"])
        await self.troubles.load()

    async def run(self) -> None:
        """Tell of states and expire questions until cancelled."""
        async with asyncio.TaskGroup() as group:
            clock = self._core.clock
            group.create_task(lasting("presence", self._core.presence.run, clock), name="presence")
            group.create_task(lasting("troubles", self.troubles.run, clock), name="troubles")
            group.create_task(lasting("questions", self._questions.run, clock), name="questions")
            group.create_task(lasting("parking", self._orders.park, clock), name="parking")

    def _observe(self, event: api.Event) -> None:
        """Wake whom an event of another service concerns; the commits of this one wake by themselves."""
        if event.kind == "message.sent":
            self.nudge(AgentName(event.data["to"]))
            self.troubles.look()
        elif event.agent is not None and event.kind.startswith("agent.") and "state" not in event.data:
            self.nudge(AgentName(event.agent))
            if event.data.get("desired") == "destroyed":
                self._questions.look()

    # ------------------------------------------------------------------------------------ the operator's side
    async def send_as_operator(self, actor: Actor, request: api.NewMessage) -> api.Message:
        return await self._sending.send_as_operator(actor, request)

    async def messages(self, *, agent: str | None, before: int | None, limit: int) -> api.MessageList:
        return await self._sending.page(agent=agent, before=before, limit=limit)

    async def mark_read(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        return await self._sending.mark_read(actor, message, dry_run=dry_run)

    async def redeliver(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        return await self._sending.redeliver(actor, message, dry_run=dry_run)

    async def questions(
        self,
        *,
        agent: str | None = None,
        state: str | None = None,
        words: str = "",
        before: int | None = None,
        limit: int = 200,
    ) -> api.QuestionList:
        return await self._questions.page(agent=agent, state=state, words=words, before=before, limit=limit)

    async def question(self, question: int) -> api.Question:
        return await self._questions.get(question)

    async def answer(self, actor: Actor, question: int, request: api.Answer) -> api.Question:
        return await self._questions.answer(actor, question, request)

    async def cancel_question(self, actor: Actor, question: int, *, dry_run: bool = False) -> api.Question:
        return await self._questions.cancel(actor, question, dry_run=dry_run)

    async def loops(self) -> api.LoopList:
        return await self._loops.page()

    async def decide_loop(self, actor: Actor, pair: tuple[str, str], request: api.DecideLoop) -> api.LoopList:
        return await self._loops.decide(actor, pair, request)

    async def transcript(
        self, agent: str, *, before: int | None, after: int | None, limit: int
    ) -> api.Transcript:
        return await self._transcripts.read(agent, before=before, after=after, limit=limit)

    # --------------------------------------------------------------------------------------- the agent's side
    async def hello(self, agent: AgentName, request: wire.Hello) -> wire.Welcome:
        return await self._turns.hello(agent, request)

    async def inbox(
        self, agent: AgentName, boot: str, *, wait_s: float, limit: int, turn: int | None
    ) -> wire.Inbox:
        return await self._delivery.inbox(agent, boot, wait_s=wait_s, limit=limit, turn=turn)

    async def ack(self, agent: AgentName, lease: int) -> None:
        await self._delivery.ack(agent, lease)

    async def return_lease(self, agent: AgentName, lease: int) -> None:
        await self._delivery.return_lease(agent, lease)

    async def send(self, agent: AgentName, request: wire.SendMessage) -> wire.Sent:
        return await self._sending.send(agent, request)

    async def begin_turn(self, agent: AgentName, boot: str, request: wire.BeginTurn) -> wire.TurnBegun:
        return await self._turns.begin(agent, boot, request)

    async def turn_events(self, agent: AgentName, turn: int, request: wire.TurnEvents) -> wire.EventsTaken:
        return await self._transcripts.take(agent, turn, request)

    async def end_turn(self, agent: AgentName, turn: int, request: wire.EndTurn) -> None:
        await self._turns.end(agent, turn, request)

    async def directives(self, agent: AgentName, *, wait_s: float, after: int) -> wire.Directives:
        return await self._orders.take(agent, wait_s=wait_s, after=after)

    async def ask(self, agent: AgentName, request: wire.AskOperator) -> wire.Asked:
        return await self._questions.ask(agent, request)

    async def nap(self, agent: AgentName, request: wire.Nap) -> wire.Napping:
        """No waking before `seconds` have passed; nothing, and said so, if something urgent waits already."""
        async with self._core.store.state.quick() as tx:
            if await messages.urgent_waits(tx, agent):
                return wire.Napping(until=None)
            until = tx.now + micros(request.seconds)
            await agents.nap(tx, agent, until, request.reason)
            tx.after_commit(lambda: self._core.presence.touch(agent))
        return wire.Napping(until=stamp(until))

    async def peers(self, agent: AgentName) -> list[str]:
        state = self._core.store.state
        return (await self._core.policy(state, agent)).peers(await roster(state))

    async def parked(self, agent: AgentName) -> None:
        """The agent's harness has ended its CLI."""
        self._core.residency.parked(agent)

    async def set_status(self, agent: AgentName, request: wire.Status) -> None:
        async with self._core.store.state.quick() as tx:
            await agents.set_status(tx, agent, request.text)
            await tx.emit("agent.status", agent)

    # ------------------------------------------------------------------------------ passes and other services
    async def notify(
        self, agent: AgentName, body: str, *, kind: str = "event", urgent: bool = False, key: str
    ) -> None:
        await self._sending.notify(agent, body, kind=kind, urgent=urgent, key=key)

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None:
        if kind == "wake":
            self.troubles.urge(agent)
        await self._orders.give(agent, kind, **data)

    async def harness_gone(self, agent: AgentName) -> None:
        await self._turns.harness_gone(agent)

    def has_live_turn(self, agent: AgentName) -> bool:
        return self._core.presence.turn_of(agent) is not None

    def hello_of(self, agent: AgentName) -> float | None:
        return self._core.presence.hello_of(agent)

    def nudge(self, agent: AgentName) -> None:
        """Let a waiting inbox look again, and the state be told anew."""
        self._core.ring(agent)
        self._core.presence.touch(agent)

    def drain(self, agent: AgentName, *, on: bool) -> None:
        """While on, neither messages nor turns are given out, so that a busy agent comes to rest between two
        turns. A new harness process ends it."""
        if on:
            self._core.draining.add(agent)
        elif agent in self._core.draining:
            self._core.draining.discard(agent)
            self._core.ring(agent)
