"""Questions of agents: to read, answer and cancel. Rows of the table in `routes.py`."""

from __future__ import annotations

from reconciler.control import models as api
from reconciler.control.call import Call, Route
from reconciler.control.edge import Param
from reconciler.model.states import UserRole

OPERATOR = UserRole.OPERATOR
STATES = ("open", "ended", "answered", "expired", "cancelled")

_QUERY = (
    Param(
        "agent",
        "string",
        "Only of this agent (1 to 31 characters of a-z, 0-9 and '-').",
        pattern=r"[a-z][a-z0-9-]{0,30}",
    ),
    Param("state", "string", "Only in this state; `ended`: in any but open.", choices=STATES),
    Param("q", "string", "Only where question, options or answer hold this text.", pattern=r"[^\0]{0,200}"),
    Param("before", "integer", "Only ended ones with a smaller id: the `next` of the page before.", low=1),
    Param("limit", "integer", "At most so many rows.", default=200, low=1, high=500),
)


async def _page(call: Call) -> api.QuestionList:
    return await call.services.broker.questions(
        agent=call.text("agent"),
        state=call.text("state"),
        words=call.text("q") or "",
        before=call.number("before"),
        limit=call.count("limit"),
    )


QUESTION_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/questions",
        "Questions of agents, open ones first.",
        api.QuestionList,
        _page,
        query=_QUERY,
    ),
    Route(
        "GET",
        "/v1/questions/{id}",
        "One question.",
        api.Question,
        lambda c: c.services.broker.question(c.id),
    ),
    Route(
        "POST",
        "/v1/questions/{id}/answer",
        "Answer a question.",
        api.Question,
        lambda c: c.services.broker.answer(c.actor, c.id, c.body(api.Answer)),
        OPERATOR,
        api.Answer,
    ),
    Route(
        "POST",
        "/v1/questions/{id}/cancel",
        "Cancel a question; the agent is told.",
        api.Question,
        lambda c: c.services.broker.cancel_question(c.actor, c.id, dry_run=c.body(api.Write).dry_run),
        OPERATOR,
        api.Write,
    ),
)
