"""The composition root of the harness: says hello, builds the parts, runs them until the container is
stopped.

Order matters for the time to the first hello: it goes out with the standard library alone; pydantic, aiohttp
and the SDK are imported after it, the last in the background.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Mapping
from types import FrameType

from harness.hello import say_hello

# harness.wire and harness.config say the same; importing them takes too long here, so a test compares
_WIRE_VERSION = 1
_AGENT_SOCKET = "/run/hive/agent.sock"


def main(environment: Mapping[str, str]) -> int:
    """Runs until SIGTERM, then leaves with 0; returns only the status of what cannot start.

    The harness's own environment is emptied: the SDK would hand it on.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    boot = secrets.token_hex(16)
    answer = say_hello(_AGENT_SOCKET, boot, _WIRE_VERSION)
    os.environ.clear()

    import asyncio

    from harness.config import Config
    from harness.life import live
    from harness.wire import Welcome

    try:
        config = Config.from_environment(environment)
        welcome = Welcome.model_validate_json(answer)
    except ValueError as error:
        sys.stderr.write(f"harness: cannot start: {error}\n")
        return 78  # EX_CONFIG
    os.environ["PATH"] = "/usr/bin:/bin"

    async def run() -> None:
        await live(config, boot, welcome)
        sys.stderr.flush()
        # Not by returning: waiting for the thread that may still import the SDK and tearing its modules down
        # cost seconds on a busy machine, of the few that a container has to end in. All is told by now.
        os._exit(0)

    asyncio.run(run())
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Stopped before there is anything to stop."""
    raise SystemExit(0)
