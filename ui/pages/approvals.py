"""Approvals: the list, and the page on which the operator reads what changes and decides."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from reconciler.control.client import ControlClient, OperatorError
from reconciler.control.models import Approve, BuildLog, Cause, Decide, Diff, LogLine, Proposal
from ui.filters import percent
from ui.keys import client_of
from ui.pages.paths import NUMBER, cursor, number
from ui.render import page, part, said
from ui.security import field
from ui.views.nix import spans
from ui.views.proposals import ENDS, RUNNING, progress, rows, summary, verdict

routes = web.RouteTableDef()
BASES = (
    ("running", "what runs now"),
    ("approved", "the last approved"),
    ("proposal", "the proposal before"),
)
PER_PAGE = 50
LOG_PAGES = 20
LOG_END = 2**53 - 1  # after it there are no lines


@routes.get("/approvals")
async def show_list(request: web.Request) -> web.Response:
    """Those that wait, then those that are under way; with `?show=history` all that ended."""
    return await page(
        request, "approvals.html", title="Approvals", section="approvals", **await _list(request)
    )


@routes.get("/fragments/approvals")
async def list_part(request: web.Request) -> web.Response:
    """The list alone."""
    return await part(request, "_approvals.html", **await _list(request))


async def _list(request: web.Request) -> dict[str, Any]:
    history = request.query.get("show") == "history"
    found = await client_of(request).proposals(
        before=cursor(request, "before"), limit=PER_PAGE if history else 200
    )
    ended = [p for p in found.items if str(p.state) in ENDS]
    active = [p for p in found.items if str(p.state) not in ENDS]
    return {
        "history": history,
        "items": ended if history else active,
        "recent": ended[:8],
        "next": found.next if history else None,
        "summary": summary,
    }


@routes.get(f"/approvals/{NUMBER}")
async def show(request: web.Request) -> web.Response:
    """One proposal: what changes, the decision, the diff or the build log, the chain."""
    client = client_of(request)
    proposal = await client.proposal(number(request))
    body, chain = await asyncio.gather(_body(request, client, proposal), _chain(client, proposal))
    return await page(
        request,
        "approval.html",
        title=f"{proposal.agent} #{proposal.id}",
        section="approvals",
        **_decision(proposal),
        **body,
        chain=chain,
    )


def _decision(proposal: Proposal) -> dict[str, Any]:
    return {
        "p": proposal,
        "sentence": summary(proposal),
        "rows": rows(proposal),
        "steps": progress(proposal),
        "verdict": verdict(proposal),
        "decidable": proposal.state == "pending" and proposal.digest is not None,
        "running": str(proposal.state) in RUNNING,
    }


async def _body(request: web.Request, client: ControlClient, proposal: Proposal) -> dict[str, Any]:
    """The build log once there is one, else the diff; `?show=` chooses, `?base=` gives the diff's base."""
    wanted = request.query.get("show")
    built = any(str(step.state) == "approved" for step in proposal.progress)
    show = "diff" if wanted == "diff" or not built else "log"
    base = request.query.get("base", "")
    base = base if base in dict(BASES) else "running"
    log, end = await _log(client, proposal.id) if show == "log" else ([], BuildLog(items=[], done=True))
    diff = await _diff(client, proposal, base) if show == "diff" else None
    return {
        "show": show,
        "base": base,
        "bases": BASES,
        "built": built,
        "diff": diff,
        "spans": spans,
        "log": log,
        "log_done": end.done,
        "build": _build(end),
        "log_cursor": log[-1].id if log else 0,
    }


async def _log(client: ControlClient, number: int) -> tuple[list[LogLine], BuildLog]:
    """The log from its beginning, and its last page, which says whether it has ended. hived gives it in
    pages; the script asks for what lies beyond the last one read here."""
    found = await client.build_log(number, after=0)
    lines: list[LogLine] = list(found.items)
    for _ in range(LOG_PAGES - 1):
        if found.done or not found.items:
            break
        found = await client.build_log(number, after=lines[-1].id)
        lines += found.items
    return lines, found


def _build(log: BuildLog) -> dict[str, Any] | None:
    """How far the build is: its share in percent, and the instants that the page's clocks go by."""
    found, now = log.progress, datetime.now(UTC)
    if found is None:
        return None
    left = found.left_s
    return {
        "progress": found,
        "share": percent(found.built, found.expected),
        "since": (now - timedelta(seconds=found.elapsed_s)).isoformat(timespec="milliseconds"),
        "until": None if left is None else (now + timedelta(seconds=left)).isoformat(timespec="milliseconds"),
    }


async def _diff(client: ControlClient, proposal: Proposal, base: str) -> Diff | OperatorError:
    """The diff, or why there is none: a page without it can still be denied."""
    try:
        return await client.diff(proposal.id, base=base)
    except OperatorError as error:
        return error


async def _chain(client: ControlClient, proposal: Proposal) -> list[Cause]:
    """Who asked, in which turn, after which message. A proposal that was imported has no chain of its own."""
    try:
        return (await client.proposal_why(proposal.id)).chain
    except OperatorError:
        return []


@routes.get(f"/fragments/approvals/{NUMBER}/decision")
async def decision_part(request: web.Request) -> web.Response:
    """Where the proposal stands and what can be decided."""
    return await part(
        request, "_decision.html", **_decision(await client_of(request).proposal(number(request)))
    )


@routes.get(f"/fragments/approvals/{NUMBER}/body")
async def body_part(request: web.Request) -> web.Response:
    """The diff or the log."""
    client = client_of(request)
    proposal = await client.proposal(number(request))
    return await part(
        request, "_approval_body.html", **_decision(proposal), **await _body(request, client, proposal)
    )


@routes.get(f"/fragments/approvals/{NUMBER}/log")
async def log_part(request: web.Request) -> web.Response:
    """Lines of the log after the cursor."""
    after = cursor(request, "after") or 0
    log = await client_of(request).build_log(number(request), after=after)
    last = log.items[-1].id if log.items else after
    return await part(request, "_log_lines.html", cursor=last, log=log.items)


@routes.get(f"/fragments/approvals/{NUMBER}/build")
async def build_part(request: web.Request) -> web.Response:
    """How far its build is."""
    log = await client_of(request).build_log(number(request), after=LOG_END)
    return await part(request, "_build.html", p={"id": number(request)}, build=_build(log))


@routes.post(f"/approvals/{NUMBER}/approve")
async def approve(request: web.Request) -> web.StreamResponse:
    """Approve what the page showed: its digest travels in the form, and hived compares."""
    asked = Approve(digest=field(request, "digest"), note=_note(request), now=field(request, "now") == "1")
    await client_of(request).approve(number(request), asked)
    raise web.HTTPSeeOther(f"/approvals/{number(request)}")


@routes.post(f"/approvals/{NUMBER}/deny")
async def deny(request: web.Request) -> web.StreamResponse:
    """Deny with a note that reaches the proposer."""
    await client_of(request).deny(number(request), Decide(note=_note(request)))
    return said(request, "denied", f"/approvals/{number(request)}")


@routes.post(f"/approvals/{NUMBER}/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    """Take a proposal back that is not yet activating."""
    await client_of(request).cancel_proposal(number(request), Decide(note=_note(request)))
    return said(request, "cancelled", f"/approvals/{number(request)}")


def _note(request: web.Request) -> str:
    note = field(request, "note").strip()
    if len(note) > 2000:
        raise OperatorError(f"the note has {len(note)} characters", hint="2000 at most; nothing was decided")
    return note
