"""The composition of the web server: middlewares in their order, and the routes of all pages."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from reconciler.control.client import ControlClient
from ui import assets, errors, security, stream
from ui.keys import ASSETS, CLIENT, REACH, SETTINGS, STREAMS, TEMPLATES, Reach, Settings
from ui.pages import (
    agents,
    approvals,
    audit,
    dashboard,
    events,
    lifecycle,
    login,
    messages,
    money,
    questions,
    stats,
)
from ui.render import environment
from ui.stream import Streams


def create_app(settings: Settings) -> web.Application:
    """The application. It makes its own client of `settings.socket` and closes it at the end."""
    app = web.Application(
        client_max_size=security.FORM_MAX_BYTES,
        middlewares=[
            errors.show_errors,
            security.check_host,
            security.check_origin,
            security.load_visitor,
            security.read_form,
        ],
    )
    app[SETTINGS] = settings
    app[ASSETS] = assets.load()
    app[TEMPLATES] = environment()
    app[STREAMS] = Streams()
    app[REACH] = Reach()
    app[CLIENT] = ControlClient(settings.socket)
    app.on_response_prepare.append(security.add_headers)
    app.on_shutdown.append(app[STREAMS].close)
    app.cleanup_ctx.append(_client)
    app.router.add_get("/static/{digest}/{name:.+}", assets.serve)
    app.router.add_get("/stream", stream.stream)
    pages = (
        dashboard, approvals, agents, lifecycle, messages, questions, money, events, audit, stats, login
    )  # fmt: skip
    for module in pages:
        app.router.add_routes(module.routes)
    return app


async def _client(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[CLIENT].close()
