"""Wake waiters by notification: a number that only grows, so that nothing between looking and waiting is
lost."""

from __future__ import annotations

import asyncio

from reconciler.effects.protocols import Clock


class Signal:
    """A waiter reads `version`, looks at the world, and waits until the number is another."""

    def __init__(self) -> None:
        self.version = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Let every waiter look again."""
        self.version += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seen: int, clock: Clock, timeout_s: float | None = None) -> bool:
        """Until `version` is not `seen` any more, or the time is over; whether it was the former."""
        if self.version != seen:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending: set[asyncio.Future[None]] = {waiter}
        if timeout_s is not None:
            pending.add(asyncio.ensure_future(clock.sleep(max(0.0, timeout_s))))
        self._waiters.add(waiter)
        try:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.discard(waiter)
            for future in pending:
                future.cancel()
        return self.version != seen
