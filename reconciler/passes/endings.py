"""Ends of containers that hived did not ask for: told once each, with all that the host knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from reconciler.effects.protocols import Clock, Containers, ContainerStatus
from reconciler.model.names import OPERATOR, AgentName
from reconciler.model.states import Role
from reconciler.model.text import visible
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import AgentFacts

HEALTHY_AFTER_S = 60.0
LOG_LINES = 20
BODY_MAX = 60_000


class Voice(Protocol):
    """What passes tell of agents."""

    async def harness_gone(self, agent: AgentName) -> None: ...
    async def direct(self, agent: AgentName, kind: str, **data: object) -> None: ...


class Endings:
    """Tells crashes and stops by hand: a message, an event, and the count that slows restarts down."""

    def __init__(self, *, store: Store, containers: Containers, voice: Voice, clock: Clock) -> None:
        self._store = store
        self._containers = containers
        self._voice = voice
        self._clock = clock

    async def report(self, facts: AgentFacts, status: ContainerStatus, *, crashed: bool) -> None:
        """Tell the manager (the operator, if it was the manager or there is none), once per start.

        A crash counts, and slows the restarts down. A stop by hand is none: what follows is the desired
        state's matter.
        """
        name = facts.desired.name
        assert status.invocation is not None, "an exited container has an invocation"
        lines = await self._containers.logs(name, LOG_LINES)
        await self._voice.harness_gone(name)
        receiver = OPERATOR if facts.role is Role.MANAGER else "manager"
        async with self._store.state.transaction() as tx:
            if crashed:
                ended_at = status.ended_at or self._clock.now()
                await deployments.record_crash(
                    tx,
                    name,
                    status.invocation,
                    healthy=ended_at - (status.started_at or ended_at) >= HEALTHY_AFTER_S,
                    detail=_detail(status),
                    receiver=receiver,
                    body=_body("container_crash", f"{name} ended and nobody asked for it", status, lines),
                )
            else:
                what = f"somebody stopped the unit of {name} by hand; it is started again, as it should run"
                await deployments.record_stop(
                    tx,
                    name,
                    status.invocation,
                    detail=_detail(status),
                    receiver=receiver,
                    body=_body("container_stopped", what, status, lines),
                )


def _detail(status: ContainerStatus) -> dict[str, Any]:
    return {
        "unit": status.unit,
        "result": status.result,
        "exit_code": status.exit_code,
        "signal": status.signal,
        "oom": status.oom,
        "how": describe_end(status),
    }


def _body(kind: str, what: str, status: ContainerStatus, lines: Sequence[str]) -> str:
    """The message: one fact a line, then the console's last lines (hostile text, like all of an agent)."""
    facts = {
        "unit": status.unit or "-",
        "invocation": status.invocation,
        "result": status.result or "not known",
        "exit code": status.exit_code,
        "signal": status.signal,
        "out of memory": "yes" if status.oom else "no",
    }
    told = [f"{key}: {value}" for key, value in facts.items() if value is not None]
    text = [f"{kind}: {what}: {describe_end(status)}", *told, "last lines of its console:", *quoted(lines)]
    return "\n".join(text)[:BODY_MAX]


def quoted(lines: Sequence[str]) -> list[str]:
    """What an agent wrote, such that no line of it can pass for one of the hive's."""
    return [f"> {visible(part)}" for line in lines for part in line.splitlines() or [""]]


def describe_end(status: ContainerStatus) -> str:
    """How a container ended, in words."""
    if status.oom:
        return "out of memory"
    if status.signal is not None:
        return f"killed by signal {status.signal}"
    if status.exit_code is not None:
        return f"exited with {status.exit_code}"
    return "its exit status is not known"


__all__ = ["HEALTHY_AFTER_S", "LOG_LINES", "Endings", "Voice", "describe_end", "quoted"]
