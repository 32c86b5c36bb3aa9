"""The world behind the fake control API: everything it serves, and short ways to add to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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
from tests.fakes.objects import a_budget

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><style>*{display:none}</style>"
    " \u202egnp.exe\u202c \x1b[31mred\x07 {{ 7*7 }} {% raw %} javascript:alert(3) &amp; \u200bhidden\u00ad"
)


@dataclass
class World:
    """Everything that the fake serves; tests change it as they like."""

    now: datetime
    agents: dict[str, api.Agent] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: list[api.Message] = field(default_factory=list)
    proposals: dict[int, api.Proposal] = field(default_factory=dict)
    diffs: dict[int, api.Diff] = field(default_factory=dict)
    chains: dict[int, list[api.Cause]] = field(default_factory=dict)
    logs: dict[int, list[api.LogLine]] = field(default_factory=dict)
    builds: dict[int, api.BuildProgress] = field(default_factory=dict)
    questions: dict[int, api.Question] = field(default_factory=dict)
    drafts: list[api.Draft] = field(default_factory=list)
    loops: list[api.Loop] = field(default_factory=list)
    transcripts: dict[str, list[api.TranscriptLine]] = field(default_factory=dict)
    generations: dict[str, list[api.Generation]] = field(default_factory=dict)
    console: dict[str, list[str]] = field(default_factory=dict)
    events: list[api.Event] = field(default_factory=list)
    audit: list[api.AuditRow] = field(default_factory=list)
    gateway_connected: bool = True
    holds: dict[str, api.Hold] = field(default_factory=dict)
    kept: dict[str, api.Kept] = field(default_factory=dict)
    accidents: dict[str, list[api.Cause]] = field(default_factory=dict)
    budgets: dict[str, api.Budget] = field(default_factory=dict)

    def ago(self, seconds: float) -> str:
        return (self.now - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")

    def budget(self, scope: str, *, spent: float, limit: float | None, **changes: Any) -> api.Budget:
        """A budget of today, which ends in five hours."""
        made = a_budget(scope, spent=spent, limit=limit)
        return made.model_copy(update={"resets_at": self.ago(-5 * 3600), **changes})

    def add_agent(self, name: str, **changes: Any) -> api.Agent:
        """An idle agent with the changes; its uid range is the next free one."""
        commit = hashlib.sha1(name.encode()).hexdigest()
        agent = api.Agent(
            name=name,
            role=Role.AGENT,
            desired=Desired.RUNNING,
            state=AgentState.IDLE,
            state_since=self.ago(720),
            reason="",
            until=None,
            status="",
            model=a_model(),
            generation=1,
            commit=commit,
            uid_base=1048576 + 65536 * len(self.agents),
            inbox_depth=0,
            context=api.Context(used=28_000, window=200_000),
            cost_today_usd=0.12,
            tokens_today=84_300,
            turn=None,
            last_turn_at=self.ago(720),
            held=False,
            container=api.Container(
                driver="shim",
                unit=f"hive-agent@{name}",
                leader_pid=4000 + len(self.agents),
                limits_enforced=["memory", "tasks", "cpu"],
            ),
        ).model_copy(update=changes)
        self.agents[name] = agent
        self.specs[name] = {
            "model": "haiku",
            "models": [],
            "role": str(agent.role),
            "bash": {"allow": [], "deny": []},
            "tools": {"allow": ["Read", "Edit", "Write"], "server": []},
            "send": {"allow": ["manager", "operator"]},
            "limits": {"memoryMax": "4G", "cpuQuota": "200%", "tasksMax": 512, "diskMax": "10G"},
        }
        self.generations[name] = [
            api.Generation(
                agent=name,
                number=1,
                proposal=1,
                commit=commit,
                state="deployed",
                current=True,
                store_path=f"/nix/store/{commit[:32]}-hive-agent-{name}",
                created_at=self.ago(86_000),
            )
        ]
        self.transcripts[name] = []
        self.console[name] = []
        return agent

    def say(
        self,
        seconds: float,
        sender: str,
        to: str,
        body: str,
        state: MessageState = MessageState.ACKED,
        **more: Any,
    ) -> api.Message:
        message = api.Message(
            id=len(self.messages) + 1,
            sender=sender,
            to=to,
            body=body,
            in_reply_to=None,
            sent_at=self.ago(seconds),
            state=state,
            redelivered=False,
        ).model_copy(update=more)
        self.messages.append(message)
        return message

    def line(self, agent: str, turn: int, seconds: float, kind: str, **data: Any) -> api.TranscriptLine:
        number = sum(len(lines) for lines in self.transcripts.values()) + 1
        lines = self.transcripts[agent]
        made = api.TranscriptLine(
            id=number, turn=turn, seq=len(lines), at=self.ago(seconds), kind=kind, data=data
        )
        lines.append(made)
        return made

    def add_proposal(self, number: int, agent: str, seconds: float, **changes: Any) -> api.Proposal:
        commit = hashlib.sha1(f"{number}".encode()).hexdigest()
        proposal = api.Proposal(
            id=number,
            kind=ProposalKind.APPLY,
            agent=agent,
            commit=commit,
            base=hashlib.sha1(b"base").hexdigest(),
            state=ProposalState.PENDING,
            risk=Risk.ELEVATED,
            changes=[],
            files=["agent.nix"],
            staged_files=[],
            requested_by="hm1nd",
            description="",
            note="",
            decided_by=None,
            created_at=self.ago(seconds),
            decided_at=None,
            error="",
            tag=f"proposal/{number}",
            digest=hashlib.sha256(commit.encode()).hexdigest(),
            generation=None,
            progress=[
                api.Progress(state=ProposalState.EXAMINING, at=self.ago(seconds)),
                api.Progress(state=ProposalState.PENDING, at=self.ago(seconds - 2)),
            ],
        ).model_copy(update=changes)
        self.proposals[number] = proposal
        self.logs.setdefault(number, [])
        return proposal

    def event(self, kind: str, agent: str | None = None, seconds: float = 0, **data: Any) -> api.Event:
        made = api.Event(id=len(self.events) + 1, ts=self.ago(seconds), agent=agent, kind=kind, data=data)
        self.events.append(made)
        return made

    def decide(self, seconds: float, actor: str, action: str, target: str, **data: Any) -> None:
        before = self.audit[-1].hash if self.audit else "0" * 64
        digest = hashlib.sha256(f"{before}{actor}{action}{target}{data}".encode()).hexdigest()
        self.audit.append(
            api.AuditRow(
                id=len(self.audit) + 1,
                at=self.ago(seconds),
                actor=actor,
                action=action,
                target=target,
                data=data,
                hash=digest,
            )
        )


def change(option: str, before: str | None, after: str | None, risk: Risk, reason: str) -> api.Change:
    return api.Change(option=option, before=before, after=after, risk=risk, reason=reason)


def diff_of(proposal: int, path: str, lines: list[tuple[str, str]], start: int = 1) -> api.Diff:
    """A diff of one file: `lines` are (kind, text)."""
    old = new = start
    made = []
    for kind, text in lines:
        made.append(
            api.DiffLine.model_validate(
                {
                    "kind": kind,
                    "old": None if kind == "add" else old,
                    "new": None if kind == "del" else new,
                    "text": text,
                }
            )
        )
        old += kind != "add"
        new += kind != "del"
    added = sum(kind == "add" for kind, _ in lines)
    deleted = sum(kind == "del" for kind, _ in lines)
    hunk = api.Hunk(header=f"@@ -{start},{old - start} +{start},{new - start} @@", lines=made)
    file = api.FileDiff(
        path=path, old_path=None, status="modified", added=added, deleted=deleted, note="", hunks=[hunk]
    )
    return api.Diff(
        proposal=proposal,
        base="running",
        base_commit="b" * 40,
        commit="c" * 40,
        files=[file],
        truncated=False,
    )


def new_files(proposal: int, files: dict[str, list[str]]) -> api.Diff:
    """A diff in which every file is new."""
    whole = diff_of(proposal, "", [])
    made = [
        diff_of(proposal, path, [("add", line) for line in lines]).files[0] for path, lines in files.items()
    ]
    return whole.model_copy(update={"files": [f.model_copy(update={"status": "added"}) for f in made]})


def session(user: str, role: UserRole, csrf: str, now: datetime, secret: str | None = None) -> api.Session:
    return api.Session(
        user=user,
        role=role,
        csrf=csrf,
        created_at=now.isoformat(),
        stepped_up_until=None,
        session=secret,
        expires_at=(now + timedelta(hours=12)).isoformat(),
    )


def a_model(active: str = "haiku", **more: Any) -> api.ModelStatus:
    """A model as `agent.nix` has it, of those that the host offers."""
    allowed = ["haiku", "sonnet", "opus", "fable"]
    known = {"queued": None, "switched_at": None, "switched_by": None, "default": active, "allowed": allowed}
    return api.ModelStatus(active=active, **{**known, **more})
