"""A bounded amount of something (requests, bytes) that is taken and given back; who finds too little
waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Allowance:
    """So much in all. Waiters are served in order, so that a large one is not passed by small ones for
    ever."""

    def __init__(self, total: int) -> None:
        self._left = self._total = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taking(self, amount: int) -> AsyncIterator[None]:
        """Hold `amount` (at most all there is) within the block."""
        amount = min(amount, self._total)
        await self._take(amount)
        try:
            yield
        finally:
            self._give(amount)

    async def _take(self, amount: int) -> None:
        if not self._waiting and amount <= self._left:
            self._left -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(amount)  # given to us in the same moment
            else:
                self._waiting.remove((amount, turn))
                self._serve()
            raise

    def _give(self, amount: int) -> None:
        self._left += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._left -= amount
                turn.set_result(None)
