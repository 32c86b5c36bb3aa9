"""What the gateway tells, as the signs that the broker's troubles are made of. Pure."""

from __future__ import annotations

from reconciler.broker.outcomes import LIMIT_LONGEST_S
from reconciler.broker.troubles import Kind, Sign
from reconciler.gateway.messages import LimitEvent, RefusalEvent, TroubleEvent, UsageEvent
from reconciler.model.instants import micros

_KINDS: dict[int, Kind] = {401: "credential", 402: "credit", 403: "forbidden", 400: "credit"}


def of_usage(event: UsageEvent) -> Sign | None:
    """A request that was answered to its end proves that the API works, and the credential with it."""
    return Sign("ok", event.agent, event.model, turn=event.turn) if event.certain else None


def of_limit(event: LimitEvent, now: float) -> Sign:
    """A limit with its end, which is believed for a week; 529 is no limit but an API that is overloaded."""
    if event.status != 429:
        return Sign("unavailable", event.agent, event.model, event.message, turn=event.turn)
    until = None if event.until is None else micros(min(max(event.until, 0.0), now + LIMIT_LONGEST_S))
    return Sign("limit", event.agent, event.model, event.message, until, event.turn)


def of_trouble(event: TroubleEvent) -> Sign:
    """A refusal that concerns the credential or the account, else an API that failed by itself. A model that
    an account may not use is the agent's own matter, but the proof of it needs more than words."""
    kind = _KINDS.get(event.status, "unavailable")
    return Sign(kind, event.agent, event.model, event.message, turn=event.turn)


def of_refusal(event: RefusalEvent) -> Sign | None:
    """What the gateway refused by itself: mostly a matter of the agent that asked."""
    match event.reason:
        case "credential":
            return Sign("credential", event.agent, message=event.message, turn=event.turn)
        case "upstream":
            return Sign("unavailable", event.agent, message=event.message, turn=event.turn)
        case "budget" if event.closure is None:  # too much for its turn, or for any day
            return Sign("turn_budget", event.agent, turn=event.turn)
        case _:
            return None
