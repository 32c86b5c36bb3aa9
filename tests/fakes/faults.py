"""Faults at the n-th call of a fake effect: fail, hang, or die (as if the daemon were killed) before or
after it acted.

    faults = Faults()
    world = FakeContainers(faults)
    faults.at(3, "die-after")        # the third call of any effect that shares these faults

A test that walks all n runs the scenario once to count (`faults.calls`), then once per n and kind, each time
catching `Died`, forgetting all memory but the store, and running the reconciler again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from reconciler.errors import TemporaryError

Kind = Literal["fail", "fail-after", "hang", "die-before", "die-after"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Died(BaseException):
    """The daemon is dead from here on: nothing of it may catch this."""


@dataclass(slots=True)
class Faults:
    """What happens at which call; `calls` lists all calls made, as `effect.method name`.

    `only`: names of methods that count as calls (`start`, `stop`, …); empty means those that change the
    world.
    """

    only: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list)
    _planned: dict[int, tuple[Kind, BaseException | None]] = field(default_factory=dict)

    def at(self, n: int, kind: Kind, error: BaseException | None = None) -> None:
        """Let call number `n` (from 1, counted over this object's life) go wrong."""
        self._planned[n] = (kind, error)

    def watch(self, methods: Iterable[str]) -> None:
        """Count only these methods."""
        self.only = frozenset(methods)

    @asynccontextmanager
    async def call(self, method: str, subject: str = "", *, changes: bool = True) -> AsyncIterator[None]:
        """Wrap one call of an effect: what is in the block is its act."""
        counted = method in self.only if self.only else changes
        kind, error = None, None
        if counted:
            self.calls.append(f"{method} {subject}".strip())
            kind, error = self._planned.pop(len(self.calls), (None, None))
        if kind == "fail":
            raise error or TemporaryError(f"injected: {method} failed", after_s=0.01)
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "die-before":
            raise Died(method)
        yield
        if kind == "fail-after":
            raise error or TemporaryError(f"injected: {method} failed after it acted", after_s=0.01)
        if kind == "die-after":
            raise Died(method)
