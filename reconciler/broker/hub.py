"""Live events in memory: every subscriber has a bounded queue; who is too slow is told so and dropped."""

from __future__ import annotations

import asyncio
from collections import deque

from reconciler.control import models as api
from reconciler.errors import TemporaryError

QUEUE_MAX = 1000
SUBSCRIBERS_MAX = 256


class Subscription:
    """One reader's queue. `next` yields events in order of their ids, None at the end; `overflown` says that
    the end came because the reader was too slow."""

    def __init__(self, limit: int) -> None:
        self._queue: deque[api.Event] = deque()
        self._limit = limit
        self._news = asyncio.Event()
        self._closed = False
        self.overflown = False

    def put(self, event: api.Event) -> None:
        """Queue an event; the queue's end if it is full."""
        if self._closed:
            return
        if len(self._queue) >= self._limit:
            self.overflown = True
            self._queue.clear()
            self.close()
            return
        self._queue.append(event)
        self._news.set()

    def close(self) -> None:
        """No more events; what is queued is still read."""
        self._closed = True
        self._news.set()

    async def next(self) -> api.Event | None:
        """The next event; waits for it. None: there will be none."""
        while not self._queue:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()


class Hub:
    """Passes published events on to all subscribers. `last` is the id of the newest."""

    def __init__(self, *, queue_max: int = QUEUE_MAX) -> None:
        self._queue_max = queue_max
        self._subscriptions: set[Subscription] = set()
        self._closed = False
        self.last = 0

    @property
    def count(self) -> int:
        """How many subscribers there are."""
        return len(self._subscriptions)

    def publish(self, event: api.Event) -> None:
        """Hand the event to everybody. Called in the order of the ids."""
        self.last = event.id
        for subscription in list(self._subscriptions):
            subscription.put(event)
            if subscription.overflown:
                self._subscriptions.discard(subscription)

    def subscribe(self) -> Subscription:
        """A queue of what is published from now on; `TemporaryError` when there are too many."""
        if len(self._subscriptions) >= SUBSCRIBERS_MAX:
            raise TemporaryError(f"there are {SUBSCRIBERS_MAX} event streams already", code="busy")
        subscription = Subscription(self._queue_max)
        if self._closed:
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscriber; safe to repeat."""
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End all streams: the servers are stopping."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
