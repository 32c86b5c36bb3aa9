"""Time that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq


class VirtualClock:
    """A `Clock`: `advance` lets time pass and wakes who slept long enough, in order."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._passed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._news = asyncio.Event()

    def now(self) -> float:
        return self._start + self._passed

    def monotonic(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._passed + seconds, self._count, sleeper))
        if seconds <= 0:
            self.advance(0)
        self._news.set()
        await sleeper

    def sleeping(self, at_least_s: float = 0.0) -> int:
        """How many wait for time to pass, that long or longer."""
        after = self._passed + at_least_s
        return sum(not sleeper.done() and at >= after for at, _, sleeper in self._sleepers)

    async def asleep(self, count: int = 1, *, at_least_s: float = 0.0) -> None:
        """Until so many wait for that long or longer. To advance before would let them sleep from then on."""
        while self.sleeping(at_least_s) < count:
            self._news.clear()
            await self._news.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass; the woken run when the caller next awaits."""
        self._passed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._passed:
            _, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():
                sleeper.set_result(None)
