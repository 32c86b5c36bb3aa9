"""Errors as pages: each says what happened and what to do next, and none says more than hived or the person
did.

One of the three places where everything may be caught (the HTTP error middleware).
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import web

from reconciler.control.client import HiveError, TemporaryError
from ui.keys import REACH, SETTINGS, TEMPLATES, VISITOR
from ui.render import common, html, wants_part
from ui.security import Handler

log = structlog.get_logger("ui")

_HEADINGS = {
    400: "That cannot be done so",
    401: "Log in",
    403: "Not allowed",
    404: "There is nothing here",
    405: "Not that way",
    409: "This page was stale",
    413: "Too large",
    415: "Not that kind of form",
    500: "Something is wrong in the web server",
    502: "hived and the web server do not understand each other",
    503: "The hive is away",
}
# What programs are told, under /api/: the codes of the control API.
_CODES = {400: "invalid", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 503: "unavailable"}
RETRY_S = 5


@web.middleware
async def show_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a page, or into a line beside the form when the script asked."""
    try:
        response = await handler(request)
    except HiveError as error:
        return _known(request, error)
    except web.HTTPException as answer:
        if answer.status < 400:
            raise
        return _shown(request, answer.status, _plain(answer), "")
    except Exception:
        reference = secrets.token_hex(4)
        log.exception("page.failed", reference=reference, path=request.path)
        return _shown(
            request,
            500,
            f"this page failed; the log of hive-ui has the reason under {reference}",
            "try again; if it stays, report it with that reference",
        )
    if VISITOR in request:
        request.app[REACH].away_since = None
    return response


def _plain(answer: web.HTTPException) -> str:
    match answer.status:
        case 404:
            return "no page has this address"
        case 405:
            return "this address does not take that kind of request"
        case 413:
            return "what was sent is larger than 256 KiB"
        case _:
            return answer.reason.lower()


def _known(request: web.Request, error: HiveError) -> web.Response:
    match error:
        case TemporaryError():
            reach = request.app[REACH]
            reach.away_since = reach.away_since or datetime.now(UTC).isoformat()
            return _shown(request, 503, error.message, error.hint, away_since=reach.away_since)
        case HiveError(code="protocol"):
            return _shown(request, 502, error.message, error.hint)
        case _:
            return _shown(request, error.status, error.message, error.hint)


def _again(path: str) -> str:
    """Where to look again: the page itself, or the proposal that a stale decision was about.

    Never another host, which a path that begins with two slashes would be.
    """
    proposal = re.match(r"/approvals/[0-9]+(?=/)", path)
    return proposal[0] if proposal else "/" if path.startswith("//") else path


def _shown(request: web.Request, status: int, message: str, hint: str, **more: Any) -> web.Response:
    values = common(request) | {
        "status": status,
        "heading": _HEADINGS.get(status, "That did not work"),
        "message": message,
        "hint": hint,
        "away_since": None,
        "retry_s": RETRY_S if status == 503 and request.method == "GET" else None,
        "title": _HEADINGS.get(status, "error"),
        "again": _again(request.path),
        "port": request.app[SETTINGS].port,
    }
    if request.path.startswith("/api/"):
        envelope = {"error": {"code": _CODES.get(status, "failed"), "message": message, "hint": hint}}
        return web.json_response(envelope, status=status)
    if wants_part(request):
        template = "_said.html"
        values |= {"text": "", "error": message}
    else:
        template = "login.html" if status == 401 else "error.html"
        values |= {"token": None}
    response = html(request.app[TEMPLATES], template, values | more, status)
    if status == 401 and request.headers.get("HX-Request") == "true":
        response.headers["HX-Redirect"] = "/login"
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_S)
    return response
