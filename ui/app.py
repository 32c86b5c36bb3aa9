"""The composition of the web server: middlewares in their order, routes, start and stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from reconciler.control.client import ControlClient
from ui import assets, errors, security, stream
from ui.keys import ASSETS, CLIENT, REACH, SETTINGS, STREAMS, TEMPLATES, Reach, Settings
from ui.pages import agents, approvals, audit, dashboard, events, login, messages, questions
from ui.render import environment
from ui.stream import Streams

log = logging.getLogger("ui")

SHUTDOWN_S = 2.0


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
    found = assets.load()
    app[SETTINGS] = settings
    app[ASSETS] = found
    app[TEMPLATES] = environment(found)
    app[STREAMS] = Streams()
    app[REACH] = Reach()
    app[CLIENT] = ControlClient(settings.socket)
    app.on_response_prepare.append(security.add_headers)
    app.on_shutdown.append(app[STREAMS].close)
    app.cleanup_ctx.append(_client)
    app.router.add_get("/static/{digest}/{name:.+}", assets.serve)
    app.router.add_get("/stream", stream.stream)
    for module in (dashboard, approvals, agents, messages, questions, events, audit, login):
        app.router.add_routes(module.routes)
    return app


async def _client(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[CLIENT].close()


async def serve(settings: Settings, ready: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM or SIGINT; open streams end at once, other requests have `SHUTDOWN_S`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(create_app(settings), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        log.info("ui.ready host=%s port=%d socket=%s", settings.host, settings.port, settings.socket)
        if ready is not None:
            ready.set()
        await stop.wait()
    finally:
        await runner.cleanup()


def parse(argv: list[str]) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(prog="hive-ui", description="The operator's web of a hive.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--socket", type=Path, default=Path("/run/hyperhive/ui.sock"), help="hived's ui.sock")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="a further Host header to answer to (the name of a reverse proxy); may be repeated",
    )
    parser.add_argument("--https", action="store_true", help="browsers come by https: mark the cookie Secure")
    given = parser.parse_args(argv)
    if not 1 <= given.port <= 65535:
        parser.error(f"--port {given.port}: a port is between 1 and 65535")
    hosts = frozenset(str(name).lower() for name in given.allow_host)
    return Settings(socket=given.socket, host=given.host, port=given.port, hosts=hosts, secure=given.https)


def main() -> None:
    """Entry of `python -m ui`. Exit status 1 when the port cannot be had."""
    settings = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        asyncio.run(serve(settings))
    except OSError as error:
        log.error("ui.failed host=%s port=%d error=%s", settings.host, settings.port, error.strerror)  # noqa: TRY400
        sys.exit(1)
