"""Objects of the control API with plausible values, to be changed by keyword."""

from __future__ import annotations

from typing import Any

from reconciler.control import models as api
from reconciler.model.states import (
    AgentState,
    Desired,
    MessageState,
    ProposalKind,
    ProposalState,
    Risk,
    Role,
    UserRole,
)

AT = "2026-03-01T12:00:00Z"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "d" * 64
VIEWER_SECRET = "viewer-secret"
OPERATOR_SECRET = "operator-secret"


def an_agent(name: str, role: Role = Role.AGENT, **changes: Any) -> api.Agent:
    agent = api.Agent(
        name=name,
        role=role,
        desired=Desired.RUNNING,
        state=AgentState.IDLE,
        state_since=AT,
        reason="",
        until=None,
        status="",
        model=api.ModelStatus(active="haiku", queued=None, switched_at=None, switched_by=None),
        generation=1,
        commit=COMMIT,
        uid_base=1048576,
        inbox_depth=0,
        context=api.Context(used=1200, window=200000),
        cost_today_usd=0.25,
        tokens_today=4200,
        turn=None,
        last_turn_at=AT,
        held=False,
        container=api.Container(
            driver="shim", unit=f"hive-{name}", leader_pid=4242, limits_enforced=["memory"]
        ),
    )
    return agent.model_copy(update=changes)


def a_proposal(number: int, agent: str = "smith", **changes: Any) -> api.Proposal:
    proposal = api.Proposal(
        id=number,
        kind=ProposalKind.APPLY,
        agent=agent,
        commit=COMMIT,
        base=None,
        state=ProposalState.PENDING,
        risk=Risk.ELEVATED,
        changes=[
            api.Change(option="model", before='"haiku"', after='"opus"', risk=Risk.ELEVATED, reason="dearer")
        ],
        files=["agent.nix"],
        staged_files=[],
        requested_by="hm1nd",
        description="a stronger model",
        note="",
        decided_by=None,
        created_at=AT,
        decided_at=None,
        error="",
        tag="",
        digest=DIGEST,
        generation=None,
        progress=[api.Progress(state=ProposalState.PENDING, at=AT)],
    )
    return proposal.model_copy(update=changes)


def a_message(number: int, sender: str, to: str, body: str, in_reply_to: int | None = None) -> api.Message:
    return api.Message(
        id=number,
        sender=sender,
        to=to,
        body=body,
        in_reply_to=in_reply_to,
        sent_at=AT,
        state=MessageState.QUEUED,
        redelivered=False,
    )


def a_loop(**changes: Any) -> api.Loop:
    loop = api.Loop(
        agents=["hm1nd", "scout"], state="held", waiting=1, hops=49, since=AT, until=None, last="and you?"
    )
    return loop.model_copy(update=changes)


def a_question(number: int, **changes: Any) -> api.Question:
    question = api.Question(
        id=number,
        agent="scout",
        question="which one?",
        options=["a", "b"],
        multi=False,
        asked_at=AT,
        expires_at=None,
        state="open",
        answer=None,
        answered_by=None,
    )
    return question.model_copy(update=changes)


def an_event(number: int, kind: str = "agent.state", **data: Any) -> api.Event:
    return api.Event(id=number, ts=AT, agent="scout", kind=kind, data=data)


def a_session(user: str, role: UserRole) -> api.Session:
    return api.Session(
        user=user, role=role, csrf="c" * 32, created_at=AT, expires_at=AT, stepped_up_until=None, session=None
    )


def a_budget(scope: str = "scout", *, spent: float = 0.5, limit: float | None = 2.0) -> api.Budget:
    return api.Budget(
        scope=scope,
        day="2026-03-01",
        resets_at="2026-03-02T00:00:00.000Z",
        usd_per_day=limit,
        added_today_usd=0.0,
        limit_today_usd=limit,
        spent_today_usd=spent,
        left_today_usd=None if limit is None else max(0.0, limit - spent),
        share=None if limit is None else spent / limit,
        warn_at=0.8,
        warned_at=None,
        state="unlimited" if limit is None else "ok",
        waits=False,
        reason="",
        tokens_per_turn=None,
    )
