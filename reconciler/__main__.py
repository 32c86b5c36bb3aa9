"""`python -m reconciler`: hived, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import sys

import structlog

from reconciler.app import serve
from reconciler.config import load
from reconciler.errors import HiveError


def main() -> int:
    """Exit status 0 when it was stopped, 1 when it cannot run (the reason is on standard error)."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    try:
        asyncio.run(serve(load()))
    except HiveError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        sys.stderr.write(f"hived: {error.message}{hint}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
