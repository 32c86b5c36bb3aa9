"""State tables: who may move where. Code, tests and docs are made from these tables."""

from __future__ import annotations

from enum import StrEnum


class ProposalState(StrEnum):
    """The life of a proposal; the last five end it."""

    EXAMINING = "examining"
    PENDING = "pending"
    APPROVED = "approved"
    BUILDING = "building"
    ACTIVATING = "activating"
    DEPLOYED = "deployed"
    INVALID = "invalid"
    DENIED = "denied"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    FAILED = "failed"


_P = ProposalState
PROPOSAL_MOVES: dict[ProposalState, frozenset[ProposalState]] = {
    _P.EXAMINING: frozenset({_P.PENDING, _P.INVALID, _P.CANCELLED}),
    _P.PENDING: frozenset({_P.APPROVED, _P.DENIED, _P.SUPERSEDED, _P.CANCELLED}),
    _P.APPROVED: frozenset({_P.BUILDING, _P.SUPERSEDED, _P.CANCELLED, _P.FAILED}),
    _P.BUILDING: frozenset({_P.ACTIVATING, _P.SUPERSEDED, _P.CANCELLED, _P.FAILED}),
    _P.ACTIVATING: frozenset({_P.DEPLOYED, _P.FAILED}),
    _P.DEPLOYED: frozenset(),
    _P.INVALID: frozenset(),
    _P.DENIED: frozenset(),
    _P.SUPERSEDED: frozenset(),
    _P.CANCELLED: frozenset(),
    _P.FAILED: frozenset(),
}
PROPOSAL_ENDS = frozenset(s for s, moves in PROPOSAL_MOVES.items() if not moves)
DEPLOYING = frozenset({_P.APPROVED, _P.BUILDING, _P.ACTIVATING})


class ProposalKind(StrEnum):
    """`apply`: a commit for an existing agent. `spawn`: the first commit of a new one, perhaps with staged
    state."""

    APPLY = "apply"
    SPAWN = "spawn"


class MessageState(StrEnum):
    """`queued` waits, `leased` is with a turn that has not ended, `acked` was consumed by a good turn,
    `read` was seen by the operator. `held` waits for the operator, because agents only fed each other;
    `dropped` is what the operator then decided not to deliver. `set_aside` failed too many turns and is
    delivered no more."""

    QUEUED = "queued"
    LEASED = "leased"
    ACKED = "acked"
    READ = "read"
    HELD = "held"
    DROPPED = "dropped"
    SET_ASIDE = "set_aside"


class AgentState(StrEnum):
    """What an agent is doing, as every badge shows it (design section 8)."""

    STARTING = "starting"
    IDLE = "idle"
    THINKING = "thinking"
    COMPACTING = "compacting"
    NAPPING = "napping"
    PARKED = "parked"
    HELD = "held"
    STOPPED = "stopped"
    CRASHED = "crashed"


class Desired(StrEnum):
    """What the operator wants of an agent."""

    RUNNING = "running"
    STOPPED = "stopped"
    DESTROYED = "destroyed"


class Role(StrEnum):
    """An agent's role; at most one manager in a hive."""

    AGENT = "agent"
    MANAGER = "manager"


class Risk(StrEnum):
    """Risk of a change, in growing order."""

    LOW = "low"
    ELEVATED = "elevated"
    DANGEROUS = "dangerous"


RISK_ORDER = (Risk.LOW, Risk.ELEVATED, Risk.DANGEROUS)


class UserRole(StrEnum):
    """What a logged-in person may do: `viewer` reads, `operator` decides."""

    VIEWER = "viewer"
    OPERATOR = "operator"


def may_move(before: ProposalState, after: ProposalState) -> bool:
    """Whether the table allows the move."""
    return after in PROPOSAL_MOVES[before]
