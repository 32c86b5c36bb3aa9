"""What stands between a browser and the pages: headers on every answer, Host, Origin, the form's token, the
session.

The order of the middlewares is in `app.create_app`. Everything here fails closed; hived checks the session,
the role and the decision again, because this process is not trusted with them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from hmac import compare_digest
from urllib.parse import parse_qs, urlsplit

from aiohttp import hdrs, web

from reconciler.control.client import OperatorError
from reconciler.control.models import Session
from ui.keys import CLIENT, FORM, SETTINGS, VISITOR, Settings, Visitor

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FORM_MAX_BYTES = 256 * 1024
FORM_S = 15.0
FIELDS_MAX = 200
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_SECRET = re.compile(r"[A-Za-z0-9_=.~-]{1,200}")
_SAFE_METHODS = frozenset({"GET", "HEAD"})
# Reached without a session: how to log in, and what the login page looks like.
# /metrics checks for itself: a monitor has a token instead of a session.
_OPEN = re.compile(r"/login(/[^/]*)?|/static/.*|/favicon\.ico|/metrics")
_LOGIN = re.compile(r"/login/[^/]*")


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """A signal handler, so that it also meets errors and streams. Pages are never kept by caches."""
    for name, value in _HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    response.headers.pop(hdrs.SERVER, None)


@web.middleware
async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse names that are not ours: a page of elsewhere whose name was pointed at this address (DNS
    rebinding)."""
    if request.headers.get(hdrs.HOST, "").lower() not in own_hosts(request.app[SETTINGS]):
        port = request.app[SETTINGS].port
        raise OperatorError(
            "this address is not one that the hive answers to",
            code="forbidden",
            hint=f"open http://localhost:{port}/, or start hive-ui with --allow-host and the name you use",
        )
    return await handler(request)


def own_hosts(settings: Settings) -> frozenset[str]:
    """Values of the Host header that are this server's."""
    local = {f"{name}:{settings.port}" for name in ("localhost", "127.0.0.1", "[::1]")}
    if settings.port == 80:
        local |= {"localhost", "127.0.0.1", "[::1]"}
    return settings.hosts | local


@web.middleware
async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse writes that another site's page caused. Browsers say `Sec-Fetch-Site`; those that do not say
    `Origin`.

    With `Referrer-Policy: no-referrer` a form of our own page carries `Origin: null`, so null alone proves
    nothing and is taken only beside `Sec-Fetch-Site: same-origin`.
    """
    if request.method in _SAFE_METHODS:
        return await handler(request)
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
    ours = origin is not None and _is_own(request, origin)
    if not (ours if site is None else site == "same-origin" and (ours or origin in {None, "null"})):
        raise OperatorError(
            "this request came from another site, or does not say where it comes from",
            code="forbidden",
            hint="open the hive's own page and press the button there",
        )
    return await handler(request)


def _is_own(request: web.Request, origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:  # no address at all, such as `http://[`
        return False
    scheme = "https" if request.app[SETTINGS].secure else "http"
    return parts.scheme == scheme and parts.netloc.lower() == request.headers.get(hdrs.HOST, "").lower()


def session_secret(request: web.Request) -> str | None:
    """The session in the browser's cookie, if there is one that could be."""
    secret = request.cookies.get(request.app[SETTINGS].cookie, "")
    return secret if _SECRET.fullmatch(secret) else None


@web.middleware
async def load_visitor(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Ask hived whose session the cookie is. Everything but the login pages and static files needs one."""
    if _OPEN.fullmatch(request.path):
        return await handler(request)
    secret = session_secret(request)
    if secret is None:
        raise OperatorError(
            "you are not logged in", code="unauthenticated", hint="run `hive login` on the host"
        )
    client = request.app[CLIENT].as_session(secret)
    session = await client.session()
    request[VISITOR] = Visitor(session, client, may_act=session.role == "operator")
    return await handler(request)


@web.middleware
async def read_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the form of every write and compare its token with the session's, so that no page can forget to.

    A login link has no session yet: its token is in the address and is the proof.
    """
    if request.method in _SAFE_METHODS:
        return await handler(request)
    try:
        async with asyncio.timeout(FORM_S):
            body = await request.read()
    except TimeoutError as error:
        raise OperatorError(f"the form did not arrive within {FORM_S:g} s") from error
    form = parse_form(request.content_type, body)
    request[FORM] = form
    if not _LOGIN.fullmatch(request.path):
        if VISITOR not in request:  # an open page, and none of those takes forms
            raise OperatorError("you are not logged in", code="unauthenticated")
        given = form.get("csrf", [""])[0]
        if not compare_digest(given.encode(), request[VISITOR].session.csrf.encode()):
            raise OperatorError(
                "the form is from an earlier session or was not made by this hive",
                code="forbidden",
                hint="go back, reload the page and press the button again; nothing was changed",
            )
    return await handler(request)


def parse_form(content_type: str, body: bytes) -> Mapping[str, list[str]]:
    """The fields of a urlencoded form, each with its values in order. `OperatorError` for anything else."""
    if not body:
        return {}
    if content_type != "application/x-www-form-urlencoded":
        raise OperatorError(f"a form comes urlencoded, not as {content_type[:60]!r}")
    try:
        return parse_qs(
            body.decode(),
            keep_blank_values=True,
            max_num_fields=FIELDS_MAX,
            encoding="utf-8",
            errors="strict",
        )
    except ValueError as error:
        raise OperatorError("the form cannot be read: not UTF-8, or too many fields") from error


def field(request: web.Request, name: str) -> str:
    """One field of the form, line ends as LF; empty when absent."""
    return request[FORM].get(name, [""])[0].replace("\r\n", "\n")


def fields(request: web.Request, name: str) -> list[str]:
    """All values of a field (check boxes)."""
    return [value.replace("\r\n", "\n") for value in request[FORM].get(name, [])]


def log_in(response: web.StreamResponse, settings: Settings, session: Session, lifetime_s: int) -> None:
    """Hand the browser its session: not readable by scripts, never sent along from other sites."""
    response.set_cookie(
        settings.cookie,
        session.session or "",
        max_age=lifetime_s,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=settings.secure,
    )


def log_out(response: web.StreamResponse, settings: Settings) -> None:
    """Take the cookie back."""
    response.del_cookie(settings.cookie, path="/", httponly=True, samesite="Strict", secure=settings.secure)
