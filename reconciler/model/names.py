"""Names and ids, validated once where they enter and passed on as distinct types."""

from __future__ import annotations

import re
from typing import NewType

from reconciler.errors import OperatorError

AgentName = NewType("AgentName", str)
Commit = NewType("Commit", str)
ProposalId = NewType("ProposalId", int)
MessageId = NewType("MessageId", int)
TurnId = NewType("TurnId", int)
LeaseId = NewType("LeaseId", int)

AGENT_NAME_PATTERN = r"[a-z][a-z0-9-]{0,30}"
RESERVED_NAMES = frozenset({"operator", "manager", "system", "all", "hive", "meta"})
OPERATOR = "operator"
MANAGER = "manager"
SYSTEM = "system"

_AGENT_NAME = re.compile(AGENT_NAME_PATTERN)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def agent_name(text: str) -> AgentName:
    """A valid name for an agent, else `OperatorError` that says what is allowed."""
    if not _AGENT_NAME.fullmatch(text):
        raise OperatorError(
            f"{text[:60]!r} is not an agent name",
            hint="a name starts with a-z and goes on with a-z, 0-9 or '-', 31 characters at most",
        )
    if text in RESERVED_NAMES:
        raise OperatorError(
            f"{text!r} is a reserved name", hint=f"reserved: {', '.join(sorted(RESERVED_NAMES))}"
        )
    return AgentName(text)


def commit(text: str) -> Commit:
    """A full commit id (40 hex digits), else `OperatorError`: names and short ids are refused, they move."""
    if not _COMMIT.fullmatch(text):
        raise OperatorError(
            f"{text[:60]!r} is not a full commit id",
            hint="give the 40 hex digits of `git rev-parse HEAD`; branch names and short ids can move",
        )
    return Commit(text)
