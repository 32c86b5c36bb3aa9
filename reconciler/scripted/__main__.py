"""`python -m reconciler.scripted`: serve the scenarios on a unix socket or on a port of 127.0.0.1, until
SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from reconciler.errors import OperatorError
from reconciler.scripted.scenario import load, schema
from reconciler.scripted.server import Log, ScriptedModel

SCENARIOS = Path(__file__).parent / "scenarios"
SHUTDOWN_S = 1.0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hive-scriptedmodel", description="A Messages API that plays scenarios."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, help="listen on 127.0.0.1:PORT (0: any free one)")
    where.add_argument("--socket", type=Path, help="listen on a unix socket")
    parser.add_argument(
        "--socket-mode", type=lambda text: int(text, 8), default=0o660, help="its mode (octal, default 660)"
    )
    parser.add_argument(
        "--scenarios", type=Path, default=SCENARIOS, help="directory of *.yaml files (default: the demo's)"
    )
    parser.add_argument("--log", type=Path, help="append every request to this file, as JSON lines")
    parser.add_argument("--log-bodies", action="store_true", help="keep whole requests in the log")
    parser.add_argument("--check", action="store_true", help="only check the scenarios")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of scenario files")
    return parser.parse_args(argv)


async def _site(runner: web.AppRunner, arguments: argparse.Namespace) -> str:
    """Listen; the address for people. The socket appears under its name only when it accepts connections."""
    if arguments.socket is None:
        await web.TCPSite(runner, "127.0.0.1", arguments.port or 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"
    temporary = arguments.socket.with_name(f".{arguments.socket.name}.new")
    temporary.unlink(missing_ok=True)
    await web.UnixSite(runner, str(temporary)).start()
    temporary.chmod(arguments.socket_mode)
    temporary.rename(arguments.socket)
    return f"unix:{arguments.socket}"


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    scenarios = load(arguments.scenarios)
    log = Log(arguments.log, bodies=arguments.log_bodies)
    runner = web.AppRunner(ScriptedModel(scenarios, log).app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        address = await _site(runner, arguments)
        sys.stdout.write(f"scripted model with {len(scenarios)} scenarios on {address}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()
        log.close()
        if arguments.socket is not None:
            with contextlib.suppress(FileNotFoundError):
                arguments.socket.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 done, 1 failed."""
    arguments = _arguments(argv)
    try:
        if arguments.schema:
            sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
        elif arguments.check:
            sys.stdout.write(f"{len(load(arguments.scenarios))} scenarios are well\n")
        else:
            asyncio.run(serve(arguments))
    except OperatorError as error:
        sys.stderr.write(f"hive-scriptedmodel: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"hive-scriptedmodel: cannot listen: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
