"""Questions of agents to the operator. Whatever ends one, the agent gets a message of kind `answer`, in the
same commit."""

from __future__ import annotations

import json

from harness import wire
from reconciler.broker import views
from reconciler.broker.core import Core, checked_body, must_be_operator
from reconciler.broker.signals import Signal
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.instants import MICRO, micros, stamp
from reconciler.model.names import OPERATOR, SYSTEM, AgentName
from reconciler.model.people import person
from reconciler.services import Actor
from reconciler.store import messages, questions
from reconciler.store.db import Row, Tx
from reconciler.store.messages import NewMessage

OPEN_MAX = 20
PAGE_MAX = 500
QUOTE_MAX = 300
TOLD_MAX = 80
LIST_HINT = "`hive questions` lists them"


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

    async def page(
        self, *, agent: str | None, state: str | None, words: str, before: int | None, limit: int
    ) -> api.QuestionList:
        """Open ones first, newest first."""
        limit = max(1, min(limit, PAGE_MAX))
        rows = await questions.page(
            self._core.store.state, agent=agent, state=state, words=words, before=before, limit=limit
        )
        more = len(rows) == limit and rows[-1]["state"] != "open"
        return api.QuestionList(
            items=[views.question(row) for row in rows], next=rows[-1]["id"] if more else None
        )

    async def get(self, question: int) -> api.Question:
        """One question; `OperatorError` code `not-found`."""
        row = await questions.get(self._core.store.state, question)
        if row is None:
            raise OperatorError(f"there is no question {question}", code="not-found", hint=LIST_HINT)
        return views.question(row)

    async def answer(self, actor: Actor, question: int, request: api.Answer) -> api.Question:
        """Answer an open question; the agent is woken."""
        must_be_operator(actor)
        async with self._core.store.state.transaction(dry_run=request.dry_run) as tx:
            row = await self._open(tx, question)
            text = checked_body(_answer(row, request), OperatorError)
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
        """End what is overdue, and what a destroyed agent left; how many there were."""
        state, now = self._core.store.state, micros(self._core.clock.now())
        if not await questions.overdue(state, now) and not await questions.without_agent(state):
            return 0
        async with state.transaction() as tx:
            orphans = await questions.without_agent(tx)
            for row in orphans:
                await questions.close(tx, row, "cancelled", by=SYSTEM)
                await self._reply(tx, row, SYSTEM, "(you were destroyed before it was answered)")
            rows = await questions.overdue(tx, now)
            for row in rows:
                await questions.close(tx, row, "expired")
                await self._reply(tx, row, SYSTEM, "(nobody answered in time)")
        return len(rows) + len(orphans)

    def look(self) -> None:
        """Something may have ended a question: look at once."""
        self._news.notify()

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
            raise OperatorError(f"there is no question {question}", code="not-found", hint=LIST_HINT)
        if row["state"] != "open":
            raise OperatorError(
                f"question {question} is {_ended(row)}",
                code="conflict",
                hint=f"nothing was done; to say more, write a message to {row['agent']}",
            )
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


def _answer(row: Row, request: api.Answer) -> str:
    """Chosen options, one a line, then the words; `OperatorError` for a choice that the question does not
    offer."""
    offered = json.loads(row["options"])
    chosen = sorted(set(request.options))
    if chosen and chosen[-1] > len(offered):
        what = f"options 1 to {len(offered)}" if offered else "no options"
        raise OperatorError(
            f"question {row['id']} has {what}, not {chosen[-1]}",
            hint=f"`hive questions {row['id']}` shows it",
        )
    if len(chosen) > 1 and not row["multi"]:
        raise OperatorError(
            f"question {row['id']} takes one option, not {len(chosen)}",
            hint="choose one; add words if you like",
        )
    lines = [offered[number - 1] for number in chosen]
    return "\n".join([*lines, request.text] if request.text.strip() else lines)


def _ended(row: Row) -> str:
    """How, when and by whom, for who comes too late."""
    at = stamp(row["answered_at"])
    match row["state"]:
        case "answered":
            text = " ".join(row["answer"].split())
            told = text[:TOLD_MAX] + ("…" if len(text) > TOLD_MAX else "")
            return f"answered already, by {person(row['answered_by'])} at {at}: {told!r}"
        case "expired":
            return f"over: its time ended at {at}, and {row['agent']} was told that nobody answered"
        case _:
            by = "its agent's end" if row["answered_by"] == SYSTEM else person(row["answered_by"])
            return f"cancelled already, by {by} at {at}"
