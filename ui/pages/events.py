"""Events: what happened, newest first, by agent and kind."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from reconciler.control.models import Event
from ui.keys import client_of
from ui.pages.paths import cursor, named
from ui.render import page, part
from ui.views.kinds import KINDS

routes = web.RouteTableDef()
PER_PAGE = 100
_KIND = re.compile(r"[a-z]+(\.[a-z_]+)?")


async def _list(request: web.Request) -> dict[str, Any]:
    """A page of the newest, or of those below the id `until`."""
    agent, kind = named(request, "agent"), request.query.get("kind", "")
    kind = kind if _KIND.fullmatch(kind) else ""
    found = await client_of(request).events(
        before=cursor(request, "until"), agent=agent, kind=kind or None, limit=PER_PAGE
    )
    return {
        "events": [(event, _brief(event)) for event in reversed(found.items)],
        "older": found.next,
        "of": agent,
        "kind": kind,
        "kinds": KINDS,
    }


def _brief(event: Event) -> str:
    """The data of an event in one line, without what is empty."""
    return "  ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in event.data.items()
        if value is not None and value != ""
    )[:600]


@routes.get("/events")
async def show(request: web.Request) -> web.Response:
    """The history."""
    return await page(request, "events.html", title="Events", section="events", **await _list(request))


@routes.get("/fragments/events")
async def list_part(request: web.Request) -> web.Response:
    """The list alone."""
    return await part(request, "_events.html", **await _list(request))
