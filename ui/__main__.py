"""`python -m ui`: the web server as a process: arguments, log, start and stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from aiohttp import web

from ui.app import create_app
from ui.keys import Settings

log = structlog.get_logger("ui")

SHUTDOWN_S = 2.0


async def serve(settings: Settings) -> None:
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
        log.info("ui.ready", host=settings.host, port=settings.port, socket=str(settings.socket))
        await stop.wait()
    finally:
        await runner.cleanup()


def parse(argv: Sequence[str] | None) -> Settings:
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


def _log_to_stderr() -> None:
    """Text on a terminal, JSON otherwise."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    # Broken requests are whoever sends them's to make: they may not fill the journal.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; 0 after a signal, 1 when the port cannot be had."""
    settings = parse(argv)
    _log_to_stderr()
    try:
        asyncio.run(serve(settings))
    except OSError as error:
        log.error("ui.failed", host=settings.host, port=settings.port, error=error.strerror)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
