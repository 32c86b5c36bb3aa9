"""Figures: of the hive, of an agent, as JSON, and for a monitor."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from reconciler.control.client import HiveError, OperatorError
from reconciler.control.models import Scrape
from ui.keys import CLIENT, client_of
from ui.pages import agents
from ui.pages.paths import NAME, name
from ui.render import page, part
from ui.security import session_secret
from ui.views import figures, metrics

routes = web.RouteTableDef()
AGENT_SPANS = ("1h", "24h", "7d", "30d")
PARAMETERS = ("agent", "since", "until", "keys", "points", "by")


def _span(request: web.Request) -> str:
    since = request.query.get("since", "")
    return since if since in figures.SPANS else "24h"


async def _hive(request: web.Request) -> dict[str, Any]:
    client, since = client_of(request), _span(request)
    whole, each = await asyncio.gather(
        client.stats(since=since, points=1),
        client.stats(since=since, points=1, by="agent", keys=",".join(figures.SUMMARY_KEYS)),
    )
    return {
        "since": since,
        "spans": figures.SPANS,
        "hive": figures.summary("", whole.series),
        "each": figures.by_agent(each),
        "tools": figures.tools(whole),
    }


@routes.get("/stats")
async def show(request: web.Request) -> web.Response:
    """What the hive did in a span, and which agent did how much of it."""
    return await page(request, "stats.html", title="Stats", section="stats", **await _hive(request))


@routes.get("/fragments/stats")
async def hive_part(request: web.Request) -> web.Response:
    """The figures alone."""
    return await part(request, "_stats.html", **await _hive(request))


async def _agent(request: web.Request) -> dict[str, Any]:
    client = client_of(request)
    answers = await asyncio.gather(
        *(client.stats(agent=name(request), since=since, points=1) for since in AGENT_SPANS)
    )
    return {"groups": figures.groups(answers), "columns": [figures.SPANS[since] for since in AGENT_SPANS]}


@routes.get(f"/agents/{NAME}/stats")
async def show_agent(request: web.Request) -> web.Response:
    """All figures of an agent, over several spans."""
    head, found = await asyncio.gather(agents.head_of(client_of(request), name(request)), _agent(request))
    return await page(
        request,
        "agent_stats.html",
        title=f"{name(request)} · stats",
        section="agent",
        tab="stats",
        **head,
        **found,
    )


@routes.get(f"/fragments/agents/{NAME}/stats")
async def agent_part(request: web.Request) -> web.Response:
    """The table alone."""
    return await part(request, "_agent_stats.html", agent_name=name(request), **await _agent(request))


@routes.get("/api/stats")
async def api(request: web.Request) -> web.Response:
    """The same as hived's `/v1/stats`, for who is logged in."""
    query = request.query
    for given in query:
        if given not in PARAMETERS or len(query.getall(given)) > 1:
            raise OperatorError(
                f"{given[:60]!r} is no parameter, or is given twice", hint=f"known: {', '.join(PARAMETERS)}"
            )
    found = await client_of(request).stats(**dict(query))
    return web.Response(text=found.model_dump_json(), content_type="application/json")


@routes.get("/metrics")
async def scrape(request: web.Request) -> web.Response:
    """For a monitor with the token of hived's configuration, or for who is logged in. Errors are plain text:
    that is what a monitor shows."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    client = request.app[CLIENT]
    try:
        if kind.lower() == "bearer" and token.isascii():  # other bytes are no text that could be sent on
            found = await client.scrape(Scrape(token=token.strip()[:4096]))
        elif (secret := session_secret(request)) is not None:
            found = await client.as_session(secret).metrics()
        else:
            raise OperatorError(
                "metrics need a login, or the header Authorization: Bearer TOKEN", code="unauthenticated"
            )
    except HiveError as error:
        hint = f" ({error.hint})" if error.hint else ""
        response = web.Response(status=error.status, text=f"{error.message}{hint}\n")
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
    return web.Response(body=metrics.text(found).encode(), headers={"Content-Type": metrics.CONTENT_TYPE})
