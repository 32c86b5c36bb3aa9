"""Questions of agents: options, free text, or no answer at all."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from reconciler.control.client import OperatorError
from reconciler.control.models import Answer
from ui.keys import client_of
from ui.pages.paths import NUMBER, as_number, cursor, named, number
from ui.render import frame, page, part, said
from ui.security import field, fields

routes = web.RouteTableDef()
ANSWER_MAX = 8000
OPTIONS_MAX = 20
PER_PAGE = 100
WORDS_MAX = 200


async def _list(request: web.Request) -> dict[str, Any]:
    """The questions of one page; earlier pages hold ended ones only."""
    agent, words, before = (
        named(request, "agent"),
        request.query.get("q", "").strip(),
        cursor(request, "before"),
    )
    words = words[:WORDS_MAX].replace("\0", "")
    found = await client_of(request).questions(agent=agent, words=words, before=before, limit=PER_PAGE)
    here = {"agent": agent or "", "q": words, "before": str(before or "")}
    return {
        "questions": found.items,
        "next": found.next,
        "of": agent,
        "words": words,
        "before": before,
        "here": urlencode({key: value for key, value in here.items() if value}),
        "further": urlencode({key: value for key, value in here.items() if value and key != "before"}),
    }


@routes.get("/questions")
async def show(request: web.Request) -> web.Response:
    """Open ones first, then what was decided; by agent, by words."""
    framed, values = await asyncio.gather(frame(request), _list(request))
    return await page(
        request,
        "questions.html",
        title="Questions",
        section="questions",
        framed=framed,
        agents_all=framed.agents,
        **values,
    )


@routes.get("/fragments/questions")
async def list_part(request: web.Request) -> web.Response:
    """The list alone."""
    return await part(request, "_questions.html", **await _list(request))


@routes.post(f"/questions/{NUMBER}/answer")
async def answer(request: web.Request) -> web.StreamResponse:
    """Numbers of chosen options, words, or both."""
    text = field(request, "text").strip().replace("\r\n", "\n")
    chosen = [as_number(option) for option in fields(request, "option")]
    options = [number for number in chosen if number is not None and 1 <= number <= OPTIONS_MAX]
    if len(options) != len(chosen):
        raise OperatorError("that is no option of the question", hint="reload the page")
    if not text and not options:
        raise OperatorError("there is no answer", hint="choose an option, or write one")
    if len(text) > ANSWER_MAX:
        raise OperatorError(
            f"the answer has {len(text)} characters", hint=f"{ANSWER_MAX} at most; nothing was sent"
        )
    await client_of(request).answer(number(request), Answer(text=text, options=options[:OPTIONS_MAX]))
    return said(request, "answered", "/questions")


@routes.post(f"/questions/{NUMBER}/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    """No answer will come; the agent is told so."""
    await client_of(request).cancel_question(number(request))
    return said(request, "question-cancelled", "/questions")
