"""Questions of agents to the operator. Whatever ends one, the agent gets a message of kind `answer`, in the
same commit."""

from __future__ import annotations

from harness import wire
from reconciler.broker import views
from reconciler.broker.core import Core, checked_body, must_be_operator
from reconciler.broker.signals import Signal
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.instants import MICRO, micros
from reconciler.model.names import OPERATOR, SYSTEM, AgentName
from reconciler.services import Actor
from reconciler.store import messages, questions
from reconciler.store.db import Row, Tx
from reconciler.store.messages import NewMessage

OPEN_MAX = 20
PAGE = 200
QUOTE_MAX = 300


class Questions:
    """Asking, answering, and the clock that ends what nobody answers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._news = Signal()

    async def ask(self, agent: AgentName, request: wire.AskOperator) -> wire.Asked:
        """Open a question. A repeat with the same key answers with the same id."""
        checked_body(request.question, AgentError)
        for option in request.options:
            checked_body(option, AgentError)
        async with self._core.store.state.transaction() as tx:
            known = await questions.with_key(tx, agent, request.key)
            if known is not None:
                if known["question"] != request.question:
                    raise AgentError("that key was given to another question", code="conflict")
                return wire.Asked(id=known["id"])
            if await questions.open_count(tx, agent) >= OPEN_MAX:
                raise AgentError(
                    f"{OPEN_MAX} of your questions are open already",
                    code="queue-full",
                    hint="wait for answers",
                )
            ttl = request.ttl_seconds
            question = await questions.ask(
                tx,
                agent,
                question=request.question,
                options=request.options,
                multi=request.multi,
                expires_at=None if ttl is None else tx.now + micros(ttl),
                key=request.key,
            )
            tx.after_commit(self._news.notify)
        return wire.Asked(id=question)

    async def page(self) -> api.QuestionList:
        """Open ones first, newest first."""
        rows = await questions.page(self._core.store.state, PAGE)
        return api.QuestionList(items=[views.question(row) for row in rows])

    async def answer(self, actor: Actor, question: int, request: api.Answer) -> api.Question:
        """Answer an open question; the agent is woken."""
        must_be_operator(actor)
        text = checked_body(request.text, OperatorError)
        async with self._core.store.state.transaction(dry_run=request.dry_run) as tx:
            row = await self._open(tx, question)
            await questions.close(tx, row, "answered", answer=text, by=actor.name)
            await self._reply(tx, row, OPERATOR, text)
            await tx.audit(actor.name, "question.answer", row["agent"], question=question)
            return await self._view(tx, question)

    async def cancel(self, actor: Actor, question: int, *, dry_run: bool = False) -> api.Question:
        """End an open question without an answer; the agent is told."""
        must_be_operator(actor)
        async with self._core.store.state.transaction(dry_run=dry_run) as tx:
            row = await self._open(tx, question)
            await questions.close(tx, row, "cancelled", by=actor.name)
            await self._reply(tx, row, SYSTEM, "(the operator cancelled the question)")
            await tx.audit(actor.name, "question.cancel", row["agent"], question=question)
            return await self._view(tx, question)

    async def expire(self) -> int:
        """End what is overdue; how many there were."""
        now = micros(self._core.clock.now())
        if not await questions.overdue(self._core.store.state, now):
            return 0
        async with self._core.store.state.transaction() as tx:
            rows = await questions.overdue(tx, now)
            for row in rows:
                await questions.close(tx, row, "expired")
                await self._reply(tx, row, SYSTEM, "(nobody answered in time)")
        return len(rows)

    async def run(self) -> None:
        """Expire questions when their time comes, until cancelled."""
        while True:
            seen = self._news.version
            while await self.expire():
                pass
            at = await questions.next_expiry(self._core.store.state)
            pause_s = None if at is None else max(0.0, at / MICRO - self._core.clock.now())
            await self._news.wait(seen, self._core.clock, pause_s)

    async def _open(self, tx: Tx, question: int) -> Row:
        row = await questions.get(tx, question)
        if row is None:
            raise OperatorError(f"there is no question {question}", code="not-found")
        if row["state"] != "open":
            raise OperatorError(f"question {question} is {row['state']} already", code="conflict")
        return row

    async def _reply(self, tx: Tx, row: Row, sender: str, text: str) -> None:
        quoted = row["question"][:QUOTE_MAX] + (" …" if len(row["question"]) > QUOTE_MAX else "")
        body = f"Answer to your question {row['id']} ({quoted}):\n{text}"
        await messages.add(
            tx,
            NewMessage(
                sender,
                row["agent"],
                body,
                kind="answer",
                urgent=sender == OPERATOR,
                key=f"question-{row['id']}",
            ),
        )

        def ring() -> None:
            self._core.ring(row["agent"])
            self._core.presence.touch(row["agent"])

        tx.after_commit(ring)

    async def _view(self, tx: Tx, question: int) -> api.Question:
        row = await questions.get(tx, question)
        assert row is not None, "questions are never deleted"
        return views.question(row)
