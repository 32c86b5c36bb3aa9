"""Templates: one environment with autoescape and strict names, whole pages with their frame, and parts of
pages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from reconciler.control.models import Agent, HiveStatus
from ui import filters
from ui.assets import load
from ui.keys import TEMPLATES, VISITOR
from ui.views.needs import by_need
from ui.views.words import GLYPHS, RISKS, STATE_CLASS, state_clock

TEMPLATE_ROOT = Path(__file__).parent / "templates"
_DONE = {
    "sent": "Sent.",
    "read": "Marked as read.",
    "discarded": "The draft is discarded.",
    "answered": "Answered.",
    "question-cancelled": "Question cancelled.",
    "denied": "Denied. The proposer gets your note.",
    "cancelled": "Cancelled.",
    "model": "The model is queued.",
    "model-cleared": "Your override of the model is taken away.",
    "start": "Starting.",
    "stop": "Stopping.",
    "restart": "Restarting.",
    "cancel": "Cancelling the turn.",
    "wake": "Waking.",
    "raised": "Raised until midnight.",
    "nap": "Napping.",
    "loop-deliver": "Delivered. The count begins anew.",
    "loop-drop": "Dropped.",
    "compact": "The conversation is summed up when the agent is between two turns.",
    "new-session": "A fresh conversation begins with the next turn.",
    "hold": "Held: nothing of it runs until you release it.",
    "release": "Released: it goes on where it was.",
    "hold-all": "The whole hive is held.",
    "release-all": "Everything is released.",
    "revive": "Revived: it starts from what was kept.",
    "purge": "Being purged.",
    "help": "",
    "cleared": "Cleared.",
}


@functools.cache
def environment() -> jinja2.Environment:
    """The environment of all templates. Every printed string goes through `filters.visible`, then is
    escaped."""
    assets = load()
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_ROOT),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_finalize,
    )
    env.filters |= {
        "absolute": filters.absolute,
        "count": filters.count,
        "cut": filters.cut,
        "duration": filters.duration,
        "first_line": filters.first_line,
        "percent": filters.percent,
        "person": filters.person,
        "short": filters.short,
        "time_of_day": filters.time_of_day,
        "tokens": filters.tokens,
        "usd": filters.usd,
    }
    env.globals |= {
        "asset": assets.url,
        "has_asset": assets.has,
        "glyphs": GLYPHS,
        "risks": RISKS,
        "state_class": STATE_CLASS,
        "state_clock": state_clock,
        "relative": filters.relative,
        "percent": filters.percent,
    }
    return env


def _finalize(value: Any) -> Any:
    # Markup is what macros and blocks made: its parts have been through here already.
    return filters.visible(str(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page shows around its content. `agents`: those that need somebody first, else by name."""

    status: HiveStatus
    agents: list[Agent]
    needs: int


async def frame(request: web.Request) -> Frame:
    """Read the frame from hived."""
    client = request[VISITOR].client
    status, agents = await asyncio.gather(client.status(), client.agents())
    return Frame(status, by_need(agents.items), status.needs_operator)


async def page(
    request: web.Request,
    template: str,
    *,
    title: str,
    section: str = "",
    framed: Frame | None = None,
    **values: Any,
) -> web.Response:
    """A whole page. `section` is the rail's entry that is lit, `framed` the frame when the page has read it
    already."""
    shown = framed or await frame(request)
    known = common(request) | {
        "title": title,
        "section": section,
        "frame": shown,
        "done": _DONE.get(request.query.get("done", ""), ""),
    }
    return html(request.app[TEMPLATES], template, known | values)


async def part(
    request: web.Request, template: str, *, cursor: int | None = None, **values: Any
) -> web.Response:
    """A part of a page, refetched by the script. `cursor`: where the next lines begin, in a header."""
    response = html(request.app[TEMPLATES], template, common(request) | values)
    if cursor is not None:
        response.headers["X-Cursor"] = str(cursor)
    return response


def common(request: web.Request) -> dict[str, Any]:
    """Values that every template may use; `visitor` is None on the pages before login."""
    return {
        "now": datetime.now(UTC),
        "visitor": request.get(VISITOR),
        "path": request.path,
        "may_act": (visitor := request.get(VISITOR)) is not None and visitor.may_act,
    }


def html(
    env: jinja2.Environment, template: str, values: Mapping[str, Any], status: int = 200
) -> web.Response:
    """Render to an answer."""
    text = env.get_template(template).render(values)
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


def wants_part(request: web.Request) -> bool:
    """Whether the script asked (htmx or our own): answers are parts of pages then, not whole ones."""
    return request.headers.get("HX-Request") == "true" or request.path.startswith("/fragments/")


def said(request: web.Request, code: str, back: str, *, text: str = "") -> web.Response:
    """The answer to a write: for the script a line to show beside the form, for a plain browser the way back.

    `code` is a key of `_DONE`; `back` is one of our own paths, never taken from the request.
    """
    if wants_part(request):
        response = html(request.app[TEMPLATES], "_said.html", {"text": text or _DONE[code], "error": None})
        response.headers["HX-Trigger"] = "hive:done"
        return response
    joined = "&" if "?" in back else "?"
    path, _, anchor = back.partition("#")
    raise web.HTTPSeeOther(f"{path}{joined}done={code}{'#' + anchor if anchor else ''}")


__all__ = ["Frame", "common", "environment", "frame", "html", "page", "part", "said", "wants_part"]
