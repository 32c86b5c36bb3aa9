"""`python -m reconciler.gateway`: run the model gateway until SIGTERM or SIGINT.

Its run directory `RUN/gateway` and its state directory `STATE/gateway` must exist and belong to its user.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from reconciler.config import Config, load
from reconciler.errors import HiveError
from reconciler.gateway.app import control_path, gateway


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
    # aiohttp tells of hostile clients' broken requests; one line each would be theirs to fill the journal
    # with.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)


async def run(config: Config) -> None:
    """Serve until a signal comes."""
    async with gateway(config) as control:
        serving = asyncio.create_task(control.serve(control_path(config)), name="control")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        structlog.get_logger("gateway").info("gateway.started", upstream=config.gateway.label)
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="hive-gateway", description="The model gateway of a hive.")
    parser.add_argument("--config", type=Path, help="configuration file (default: $HIVE_CONFIG)")
    arguments = parser.parse_args(argv)
    _log_to_stderr()
    # every agent may have hundreds of connections
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != most:  # its unit sets both, and then forbids to change them
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(run(load(arguments.config)))
    except HiveError as error:
        sys.stderr.write(f"hive-gateway: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"hive-gateway: cannot run: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
