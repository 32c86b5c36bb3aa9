"""An agent's pages: the live transcript with the prompt line, and inbox, spec, generations, logs and why
beside it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from reconciler.control.client import ControlClient, OperatorError
from reconciler.control.models import (
    Act,
    Cause,
    Hold,
    NapAgent,
    NewMessage,
    SetModel,
    SpecView,
    Transcript,
)
from ui.keys import client_of
from ui.pages.paths import NAME, NUMBER, cursor, name, number
from ui.render import page, part, said
from ui.security import field
from ui.views import commands, transcripts

routes = web.RouteTableDef()
LINES_SHOWN = 200
LINES_AFTER = 500
LOG_LINES = 500
CIRCLES_MAX = 5
TABS = ("transcript", "inbox", "spec", "generations", "logs", "why", "stats")
VERB = r"{verb:start|stop|restart|cancel|wake|compact|new-session}"
ACCIDENTS = frozenset({"crash", "stop", "repair", "trouble"})


async def head_of(client: ControlClient, agent_name: str) -> dict[str, Any]:
    """What the head and the side panel show."""
    agent, spec, generations, inbox, holds, (lately, budget, loops) = await asyncio.gather(
        client.agent(agent_name),
        _spec(client, agent_name),
        client.generations(agent_name),
        client.messages(agent=agent_name, limit=20),
        _holds(client, agent_name),
        asyncio.gather(_lately(client, agent_name), client.budget(agent_name), client.loops()),
    )
    waiting = [m for m in inbox.items if m.to == agent_name and m.state in {"queued", "leased"}]
    return {
        "agent": agent,
        "spec": spec,
        "hold": holds,
        "generations": generations.items,
        "inbox": inbox.items,
        "waiting": waiting,
        "lately": lately,
        "budget": budget,
        "circles": [loop for loop in loops.items if agent_name in loop.agents][:CIRCLES_MAX],
        "commands": commands.HELP,
        "tabs": TABS,
    }


async def _spec(client: ControlClient, agent_name: str) -> SpecView | None:
    """None for an agent that has never been deployed."""
    try:
        return await client.spec(agent_name)
    except OperatorError as error:
        if error.code != "not-found":
            raise
        return None


async def _holds(client: ControlClient, agent_name: str) -> dict[str, Hold | None]:
    """The holds that are on an agent: its `own`, and that of the whole `hive`."""
    found = {hold.scope: hold for hold in (await client.holds()).items}
    return {"own": found.get(agent_name), "hive": found.get("*")}


async def _lately(client: ControlClient, agent_name: str) -> list[Cause]:
    """The newest accidents and repairs of a day."""
    since = datetime.now(UTC) - timedelta(days=1)
    found = (await client.why(agent_name)).chain
    return [c for c in found if c.kind in ACCIDENTS and datetime.fromisoformat(c.at) > since][:3]


def _view(found: Transcript, after: int, limit: int) -> transcripts.View:
    made = transcripts.view(found.items, after=after)
    # A full answer means that there is more: go on behind it, even past a call that still waits.
    return transcripts.View(made.rows, found.items[-1].id) if len(found.items) >= limit else made


@routes.get(f"/agents/{NAME}")
async def show(request: web.Request) -> web.Response:
    """The transcript, newest lines last; `?before=` shows older ones."""
    client, agent_name = client_of(request), name(request)
    before = cursor(request, "before")
    head, found = await asyncio.gather(
        head_of(client, agent_name), client.transcript(agent_name, before=before, limit=LINES_SHOWN)
    )
    view = transcripts.view(found.items)
    return await page(
        request,
        "agent.html",
        title=agent_name,
        section="agent",
        tab="transcript",
        **head,
        rows=view.rows,
        cursor=view.cursor,
        older=found.before,
        before=before,
    )


@routes.get(f"/fragments/agents/{NAME}/transcript")
async def transcript_part(request: web.Request) -> web.Response:
    """Rows after `?after`, or older ones before `?before`."""
    client, agent_name = client_of(request), name(request)
    before, after = cursor(request, "before"), cursor(request, "after") or 0
    if before is not None:
        found = await client.transcript(agent_name, before=before, limit=LINES_SHOWN)
        response = await part(
            request, "_transcript_rows.html", rows=transcripts.view(found.items).rows, agent_name=agent_name
        )
        response.headers["X-Older"] = "" if found.before is None else str(found.before)
        return response
    found = await client.transcript(agent_name, after=after, limit=LINES_AFTER)
    view = _view(found, after, LINES_AFTER)
    return await part(
        request, "_transcript_rows.html", cursor=view.cursor, rows=view.rows, agent_name=agent_name
    )


@routes.get(f"/agents/{NAME}/lines/{NUMBER}")
async def show_line(request: web.Request) -> web.Response:
    """One line of the transcript, whole, under an address of its own."""
    client, agent_name, line_id = client_of(request), name(request), number(request)
    head, found = await asyncio.gather(
        head_of(client, agent_name), client.transcript(agent_name, after=line_id - 1, limit=1)
    )
    if not found.items or found.items[0].id != line_id:
        raise web.HTTPNotFound
    line = found.items[0]
    text = json.dumps(line.data, indent=2, ensure_ascii=False)
    return await page(
        request,
        "agent_line.html",
        title=f"{agent_name} · line {line_id}",
        section="agent",
        tab="transcript",
        **head,
        line=line,
        text=text,
    )


@routes.get(f"/agents/{NAME}/{{tab:inbox|spec|generations|logs|why}}")
async def show_tab(request: web.Request) -> web.Response:
    """The other tabs."""
    client, agent_name, tab = client_of(request), name(request), request.match_info["tab"]
    head = await head_of(client, agent_name)
    return await page(
        request,
        "agent_tab.html",
        title=f"{agent_name} · {tab}",
        section="agent",
        tab=tab,
        **head,
        **await _tab(client, agent_name, tab, head["spec"]),
    )


async def _tab(client: ControlClient, agent_name: str, tab: str, spec: SpecView | None) -> dict[str, Any]:
    match tab:
        case "logs":
            return {"log": (await client.logs(agent_name, lines=LOG_LINES)).lines}
        case "why":
            why, plan = await asyncio.gather(client.why(agent_name), client.plan(agent_name))
            return {"chain": why.chain, "now_said": why.now, "plan": plan}
        case "spec":
            return {"spec_text": json.dumps(spec.spec, indent=2, ensure_ascii=False) if spec else ""}
        case _:
            return {}


@routes.get(f"/fragments/agents/{NAME}/{{what:head|side|inbox|generations|logs}}")
async def agent_part(request: web.Request) -> web.Response:
    """A part of an agent's page."""
    client, agent_name, what = client_of(request), name(request), request.match_info["what"]
    head = await head_of(client, agent_name)
    tab = request.query.get("tab", "")
    log = (await client.logs(agent_name, lines=LOG_LINES)).lines if what == "logs" else []
    return await part(
        request, f"_agent_{what}.html", **head, tab=tab if tab in TABS else "transcript", log=log
    )


@routes.post(f"/agents/{NAME}/act/{VERB}")
async def act(request: web.Request) -> web.StreamResponse:
    """A button: start, stop, restart, cancel, wake, compact, new-session."""
    verb = request.match_info["verb"]
    await client_of(request).act(name(request), verb, Act())
    return said(request, verb, f"/agents/{name(request)}")


@routes.post(f"/agents/{NAME}/model")
async def set_model(request: web.Request) -> web.StreamResponse:
    """The model picker; empty takes the override away."""
    return await _set_model(request, field(request, "model").strip() or None)


async def _set_model(request: web.Request, model: str | None) -> web.StreamResponse:
    await client_of(request).set_model(name(request), SetModel(model=model))
    return said(request, "model" if model else "model-cleared", f"/agents/{name(request)}")


@routes.post(f"/agents/{NAME}/nap")
async def nap(request: web.Request) -> web.StreamResponse:
    """The nap form of an agent's head."""
    wanted = commands.nap_of(field(request, "time").strip())
    if wanted is None:
        raise OperatorError("that is no time to nap", hint="as 90s, 10m or 2h; a second to a day")
    return await _nap(request, wanted.seconds, field(request, "note").strip()[:400])


async def _nap(request: web.Request, seconds: int, reason: str) -> web.StreamResponse:
    await client_of(request).nap(name(request), NapAgent(seconds=seconds, note=reason))
    return said(request, "nap", f"/agents/{name(request)}")


@routes.post(f"/agents/{NAME}/prompt")
async def prompt(request: web.Request) -> web.StreamResponse:
    """The prompt line: a message, or a command."""
    agent_name = name(request)
    match commands.parse(field(request, "body")):
        case commands.Say(body):
            if not body.strip():
                raise OperatorError("there is nothing to send", hint="write a message, or /help")
            await client_of(request).send(NewMessage(to=agent_name, body=body))
            return said(request, "sent", f"/agents/{agent_name}")
        case commands.Act(verb):
            await client_of(request).act(agent_name, verb, Act())
            return said(request, verb, f"/agents/{agent_name}")
        case commands.UseModel(model):
            return await _set_model(request, model)
        case commands.Nap(seconds, reason):
            return await _nap(request, seconds, reason)
        case commands.Clear():  # the script clears its own view; without it there is nothing to clear
            return said(request, "cleared", f"/agents/{agent_name}")
        case commands.Help():
            text = " · ".join(form for form, _ in commands.HELP)
            return said(request, "help", "/help", text=text)
        case commands.Unknown(word):
            known = " ".join(form.split()[0] for form, _ in commands.HELP)
            raise OperatorError(
                f"/{word[:40]} is not a command, and nothing was sent", hint=f"commands: {known}"
            )
