"""Messages: the flow of the whole hive or of one agent, one message under its address, and the compose
form."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from reconciler.control.client import OperatorError
from reconciler.control.models import DecideLoop, NewMessage
from ui.keys import client_of
from ui.pages.paths import NAME, NUMBER, as_number, cursor, name, named, number
from ui.render import frame, page, part, said
from ui.security import field
from ui.views.needs import by_need

routes = web.RouteTableDef()
PER_PAGE = 50


async def _list(request: web.Request) -> dict[str, Any]:
    agent, before = named(request, "agent"), cursor(request, "before")
    found = await client_of(request).messages(agent=agent, before=before, limit=PER_PAGE)
    return {"messages": found.items, "next": found.next, "of": agent, "before": before}


@routes.get("/messages")
async def show(request: web.Request) -> web.Response:
    """The flow, newest first."""
    framed, values = await asyncio.gather(frame(request), _list(request))
    reply = cursor(request, "re")
    return await page(
        request,
        "messages.html",
        title="Messages",
        section="messages",
        framed=framed,
        agents_all=framed.agents,
        to=named(request, "to") or values["of"],
        reply=reply,
        **values,
    )


@routes.get("/fragments/messages")
async def list_part(request: web.Request) -> web.Response:
    """The flow alone."""
    return await part(request, "_messages.html", **await _list(request))


@routes.get(f"/messages/{NUMBER}")
async def show_one(request: web.Request) -> web.Response:
    """One message, whole."""
    wanted = number(request)
    found, framed = await asyncio.gather(
        client_of(request).messages(before=wanted + 1, limit=1), frame(request)
    )
    if not found.items or found.items[0].id != wanted:
        raise web.HTTPNotFound
    message = found.items[0]
    return await page(
        request,
        "message.html",
        title=f"Message {wanted}",
        section="messages",
        framed=framed,
        message=message,
        agents_all=by_need(framed.agents),
        to=message.sender,
        reply=wanted,
    )


@routes.post("/messages")
async def send(request: web.Request) -> web.StreamResponse:
    """Send as the operator."""
    to, body = field(request, "to").strip(), field(request, "body")
    if not to or not body.strip():
        what = "to whom" if not to else "what to say"
        raise OperatorError(f"the message does not say {what}", hint="choose an agent and write something")
    message = NewMessage(to=to, body=body, in_reply_to=as_number(field(request, "re")))
    sent = await client_of(request).send(message)
    return said(request, "sent", "/messages", text=f"Sent to {sent.to}.")


@routes.post(f"/messages/{NUMBER}/redeliver")
async def redeliver(request: web.Request) -> web.StreamResponse:
    """What was set aside comes once more."""
    await client_of(request).redeliver(number(request))
    return said(request, "sent", f"/messages/{number(request)}", text="It waits in the inbox again.")


@routes.post(f"/messages/{NUMBER}/read")
async def mark_read(request: web.Request) -> web.StreamResponse:
    """The operator has seen it."""
    await client_of(request).mark_read(number(request))
    return said(request, "read", "/messages")


@routes.post(f"/loops/{NAME}/{{peer:[a-z][a-z0-9-]{{0,30}}}}/{{act:deliver|drop}}")
async def decide_loop(request: web.Request) -> web.StreamResponse:
    """What becomes of the messages that wait between two agents that only feed each other."""
    act = request.match_info["act"]
    decision = DecideLoop(deliver=act == "deliver")
    await client_of(request).decide_loop(name(request), request.match_info["peer"], decision)
    return said(request, f"loop-{act}", "/")
