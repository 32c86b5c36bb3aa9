"""Acts on an agent as a whole: hold and release, rolling back, reviving and purging what is kept. What cannot
be taken back has a page of its own to confirm it, which works without scripts."""

from __future__ import annotations

import asyncio

from aiohttp import web

from reconciler.control.client import OperatorError
from reconciler.control.models import Act, Purge, Rollback
from ui.keys import client_of
from ui.pages.paths import NAME, NUMBER, name, number
from ui.render import page, said
from ui.security import field
from ui.views.proposals import rows

routes = web.RouteTableDef()
NOTE_MAX = 2000


def _note(request: web.Request) -> str:
    note = field(request, "note").strip().replace("\r\n", "\n")
    if len(note) > NOTE_MAX:
        raise OperatorError(
            f"the note has {len(note)} characters", hint=f"{NOTE_MAX} at most; nothing was done"
        )
    return note


@routes.post("/{verb:hold|release}")
async def whole(request: web.Request) -> web.StreamResponse:
    """The whole hive."""
    verb, asked = request.match_info["verb"], Act(note=_note(request))
    client = client_of(request)
    await (client.hold(None, asked) if verb == "hold" else client.release(None, asked))
    return said(request, f"{verb}-all", "/")


@routes.post(f"/agents/{NAME}/{{verb:hold|release}}")
async def one(request: web.Request) -> web.StreamResponse:
    """One agent."""
    verb, asked, agent = request.match_info["verb"], Act(note=_note(request)), name(request)
    client = client_of(request)
    await (client.hold(agent, asked) if verb == "hold" else client.release(agent, asked))
    return said(request, verb, f"/agents/{agent}")


@routes.get(f"/agents/{NAME}/generations/{NUMBER}/rollback")
async def ask_rollback(request: web.Request) -> web.Response:
    """What a roll-back would do, and the button."""
    client, agent_name, goal = client_of(request), name(request), number(request)
    agent, found = await asyncio.gather(client.agent(agent_name), client.generations(agent_name))
    target = next((g for g in found.items if g.number == goal), None)
    if target is None:
        raise web.HTTPNotFound
    # hived itself says what would be: the same checks as when the button is pressed.
    would = await client.rollback(agent_name, Rollback(generation=goal, dry_run=True))
    return await page(
        request,
        "rollback.html",
        title=f"{agent_name} · roll back",
        section="agent",
        agent=agent,
        target=target,
        would=would,
        p=would,
        rows=rows(would),
    )


@routes.post(f"/agents/{NAME}/generations/{NUMBER}/rollback")
async def rollback(request: web.Request) -> web.StreamResponse:
    """Roll back; the page of the proposal that does it shows how it goes."""
    asked = Rollback(generation=number(request), now=bool(field(request, "now")), note=_note(request))
    made = await client_of(request).rollback(name(request), asked)
    raise web.HTTPSeeOther(f"/approvals/{made.id}")


@routes.post(f"/drafts/{NAME}/discard")
async def discard(request: web.Request) -> web.StreamResponse:
    """Forget an agent that the manager drafts."""
    await client_of(request).discard_draft(name(request), Act(note=_note(request)))
    return said(request, "discarded", "/", text=f"The draft {name(request)} is discarded.")


@routes.post(f"/kept/{NAME}/revive")
async def revive(request: web.Request) -> web.StreamResponse:
    """Let a destroyed agent run again."""
    await client_of(request).act(name(request), "revive", Act())
    return said(request, "revive", f"/agents/{name(request)}")


@routes.get(f"/kept/{NAME}/purge")
async def ask_purge(request: web.Request) -> web.Response:
    """What would be removed, and a field for the name."""
    found = next((k for k in (await client_of(request).kept()).items if k.name == name(request)), None)
    if found is None:
        raise web.HTTPNotFound
    return await page(request, "purge.html", title=f"Purge {found.name}", section="hive", kept=found)


@routes.post(f"/kept/{NAME}/purge")
async def purge(request: web.Request) -> web.StreamResponse:
    """Remove it for good; hived compares the typed name."""
    asked = Purge(confirm=field(request, "confirm").strip(), note=_note(request))
    await client_of(request).purge(name(request), asked)
    return said(request, "purge", "/")
