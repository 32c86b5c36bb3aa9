"""Logging in by a one-time link, and out. GET only shows a button, so that a preview of the link cannot
consume it."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from reconciler.control.client import OperatorError
from reconciler.control.models import Login
from ui.filters import instant
from ui.keys import CLIENT, SETTINGS, TEMPLATES, client_of
from ui.render import common, html, page
from ui.security import log_in, log_out
from ui.views.commands import HELP
from ui.views.words import LEGEND

routes = web.RouteTableDef()
LINK = r"{token:[A-Za-z0-9_-]{1,200}}"


def _login_page(
    request: web.Request, token: str | None, *, message: str = "", status: int = 200
) -> web.Response:
    values = common(request) | {
        "title": "Log in",
        "token": token,
        "message": message,
        "hint": "",
        "status": status,
        "port": request.app[SETTINGS].port,
    }
    return html(request.app[TEMPLATES], "login.html", values, status)


@routes.get("/login")
async def explain(request: web.Request) -> web.Response:
    """How to get a link."""
    return _login_page(request, None)


@routes.get(f"/login/{LINK}")
async def ask(request: web.Request) -> web.Response:
    """The button that uses the link."""
    return _login_page(request, request.match_info["token"])


@routes.post(f"/login/{LINK}")
async def consume(request: web.Request) -> web.StreamResponse:
    """Use the link: the browser gets its session and goes to the hive."""
    try:
        session = await request.app[CLIENT].login(Login(token=request.match_info["token"]))
    except OperatorError as error:
        return _login_page(request, None, message=error.message, status=error.status)
    settings = request.app[SETTINGS]
    lifetime_s = int((instant(session.expires_at) - datetime.now(UTC)).total_seconds())
    response = web.Response(status=303, headers={"Location": "/"})
    log_in(response, settings, session, max(60, lifetime_s))
    return response


@routes.post("/logout")
async def leave(request: web.Request) -> web.StreamResponse:
    """End the session in hived, then in the browser."""
    await client_of(request).logout()
    response = web.Response(status=303, headers={"Location": "/login"})
    log_out(response, request.app[SETTINGS])
    return response


@routes.get("/help")
async def explain_keys(request: web.Request) -> web.Response:
    """Keys and signs."""
    return await page(request, "help.html", title="Keys and signs", legend=LEGEND, commands=HELP)
