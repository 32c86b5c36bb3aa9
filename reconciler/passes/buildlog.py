"""The log of one build on its way to history: lines are gathered for a moment and written together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

AppendLog = Callable[[int, list[str]], Awaitable[None]]

# A build that prints faster than history takes lines is slowed, not remembered.
_WAITING_MAX = 2000


class LogWriter:
    """Writes what `add` gets, in order. Leaving the block waits until all of it is written; when the block
    is cancelled, what waits is dropped."""

    def __init__(self, append: AppendLog, proposal: int) -> None:
        self._append = append
        self._proposal = proposal
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(_WAITING_MAX)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write(), name=f"build-log-{self._proposal}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None, "the block was entered"
        if isinstance(error, asyncio.CancelledError):
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            return
        await self._lines.put(None)
        await self._task

    async def add(self, line: str) -> None:
        """A line; waits while history is behind, raises what history raised."""
        assert self._task is not None, "the block was entered"
        if self._task.done():
            self._task.result()
        await self._lines.put(line)

    async def _write(self) -> None:
        try:
            going = True
            while going:
                lines = [await self._lines.get(), *self._waiting()]
                going = None not in lines
                if texts := [line for line in lines if line is not None]:
                    await self._append(self._proposal, texts)
        finally:
            self._waiting()  # nobody may wait for room that nobody makes

    def _waiting(self) -> list[str | None]:
        lines: list[str | None] = []
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        return lines
