"""Sends the events of one turn to the host, in order, as they come, until each is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from harness.buffer import EventBuffer
from harness.link import Link, LinkError
from harness.wire import EventKind

log = logging.getLogger(__name__)


class EventSender:
    """One turn's way out. `emit` never waits; `run` is a task for as long as the turn lasts."""

    def __init__(self, link: Link, turn: int, buffer: EventBuffer) -> None:
        self._link = link
        self._turn = turn
        self._buffer = buffer
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def emit(self, kind: EventKind, data: Mapping[str, Any], /) -> None:
        """Puts an event into the buffer."""
        self._buffer.add(kind, data)
        self._empty.clear()
        self._more.set()

    async def run(self) -> None:
        """Never returns. What gathers while a batch is on its way goes with the next one."""
        while True:
            await self._more.wait()
            self._more.clear()
            while batch := self._buffer.batch():
                try:
                    self._buffer.acknowledge(await self._link.send_events(self._turn, batch))
                except LinkError as error:
                    # the host answered and does not want them (the turn is unknown to it): repeating would
                    # not help
                    log.warning(
                        "the events %d to %d of turn %d were refused: %s",
                        batch[0].seq,
                        batch[-1].seq,
                        self._turn,
                        error,
                    )
                    self._buffer.acknowledge(batch[-1].seq)
            self._empty.set()

    async def drained(self) -> None:
        """Waits until the host has everything that was put in."""
        await self._empty.wait()
