"""Questions of agents: options, free text, or no answer at all."""

from __future__ import annotations

from aiohttp import web

from reconciler.control.client import OperatorError
from reconciler.control.models import Answer
from ui.keys import client_of
from ui.pages.paths import NUMBER, number
from ui.render import page, part, said
from ui.security import field, fields

routes = web.RouteTableDef()
ANSWER_MAX = 8000


@routes.get("/questions")
async def show(request: web.Request) -> web.Response:
    """Open ones first."""
    found = await client_of(request).questions()
    return await page(
        request, "questions.html", title="Questions", section="questions", questions=found.items
    )


@routes.get("/fragments/questions")
async def list_part(request: web.Request) -> web.Response:
    """The list alone."""
    return await part(request, "_questions.html", questions=(await client_of(request).questions()).items)


@routes.post(f"/questions/{NUMBER}/answer")
async def answer(request: web.Request) -> web.StreamResponse:
    """Chosen options, one a line, then the free text."""
    text = "\n".join([*fields(request, "option"), field(request, "text").strip()]).strip()
    if not text:
        raise OperatorError("there is no answer", hint="choose an option, or write one")
    if len(text) > ANSWER_MAX:
        raise OperatorError(
            f"the answer has {len(text)} characters", hint=f"{ANSWER_MAX} at most; nothing was sent"
        )
    await client_of(request).answer(number(request), Answer(text=text))
    return said(request, "answered", "/questions")


@routes.post(f"/questions/{NUMBER}/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    """No answer will come; the agent is told so."""
    await client_of(request).cancel_question(number(request))
    return said(request, "question-cancelled", "/questions")
