"""`/`: what needs the operator, who is working, what is said; and how a new agent begins."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from reconciler.control.client import ControlClient, OperatorError
from reconciler.control.models import Agent, HiveStatus, NewAgent
from ui.keys import client_of
from ui.pages.money import by_scope
from ui.render import frame, page, part
from ui.security import field
from ui.views.needs import Needs, by_need, needs
from ui.views.proposals import summary

routes = web.RouteTableDef()
MESSAGES_SHOWN = 12


@routes.get("/")
async def show(request: web.Request) -> web.Response:
    """The dashboard."""
    client = client_of(request)
    framed, messages, drafts, kept, budgets = await asyncio.gather(
        frame(request),
        client.messages(limit=MESSAGES_SHOWN),
        client.drafts(),
        client.kept(),
        by_scope(client),
    )
    waiting = await _needs(client, framed.agents, framed.status)
    found = _filtered(framed.agents, request.query.get("q", ""))
    return await page(
        request,
        "dashboard.html",
        title="Hive",
        section="hive",
        framed=framed,
        needs=waiting,
        summary=summary,
        messages=messages.items,
        drafts=drafts.items,
        kept=kept.items,
        agents=found,
        query=request.query.get("q", "")[:64],
        agents_all=framed.agents,
        budgets=budgets,
        hive_budget=budgets["*"],
    )


async def _needs(client: ControlClient, agents: list[Agent], status: HiveStatus) -> Needs:
    proposals, questions, loops = await asyncio.gather(
        client.proposals(state="pending"), client.questions(), client.loops()
    )
    return needs(proposals.items, questions.items, loops.items, agents, status)


def _filtered(agents: list[Agent], query: str) -> list[Agent]:
    """Agents whose name, state or model holds the words of `query`."""
    words = query.lower().split()
    return [
        a for a in agents if all(w in f"{a.name} {a.state} {a.model.active or ''}".lower() for w in words)
    ]


@routes.post("/agents")
async def new_agent(request: web.Request) -> web.StreamResponse:
    """A new agent from the template, decided by the person who asks for it."""
    name = field(request, "name").strip()
    if not name:
        raise OperatorError(
            "a new agent needs a name", hint="a-z first, then a-z, 0-9 or '-', 31 characters at most"
        )
    wanted = NewAgent(name=name, description=field(request, "description")[:2000], approve=True)
    made = await client_of(request).new_agent(wanted)
    raise web.HTTPSeeOther(f"/approvals/{made.id}")


@routes.get("/fragments/rail")
async def rail_part(request: web.Request) -> web.Response:
    """The rail: counts and agents."""
    return await part(
        request,
        "_rail.html",
        frame=await frame(request),
        section=request.query.get("at", "")[:20],
        here=request.query.get("agent", "")[:31],
    )


@routes.get("/fragments/needs")
async def needs_part(request: web.Request) -> web.Response:
    """What needs the operator."""
    client = client_of(request)
    agents, status = await asyncio.gather(client.agents(), client.status())
    waiting = await _needs(client, agents.items, status)
    return await part(request, "_needs.html", needs=waiting, summary=summary)


@routes.get("/fragments/agents")
async def agents_part(request: web.Request) -> web.Response:
    """The table of agents."""
    framed, budgets = await asyncio.gather(frame(request), by_scope(client_of(request)))
    query = request.query.get("q", "")
    values: dict[str, Any] = {
        "agents": _filtered(framed.agents, query),
        "agents_all": framed.agents,
        "query": query[:64],
        "budgets": budgets,
    }
    return await part(request, "_agents.html", frame=framed, **values)


@routes.get("/fragments/flow")
async def flow_part(request: web.Request) -> web.Response:
    """The last messages."""
    client = client_of(request)
    messages, agents = await asyncio.gather(client.messages(limit=MESSAGES_SHOWN), client.agents())
    return await part(request, "_flow.html", messages=messages.items, agents_all=by_need(agents.items))


@routes.get("/fragments/drafts")
async def drafts_part(request: web.Request) -> web.Response:
    """Agents being drafted."""
    return await part(request, "_drafts.html", drafts=(await client_of(request).drafts()).items)


@routes.get("/fragments/kept")
async def kept_part(request: web.Request) -> web.Response:
    """What is kept of destroyed agents."""
    return await part(request, "_kept.html", kept=(await client_of(request).kept()).items)


@routes.get("/fragments/whole")
async def whole_part(request: web.Request) -> web.Response:
    """Whether the whole hive is held, and the button for it."""
    return await part(request, "_whole.html", hold=(await client_of(request).status()).hold)
