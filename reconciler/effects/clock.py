"""The real clock; tests own a fake one."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`Clock` of this machine."""

    def now(self) -> float:
        """Epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less yields once."""
        await asyncio.sleep(max(0.0, seconds))
