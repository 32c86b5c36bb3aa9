"""The services of hived in memory, small, with the types of `reconciler.services`.

They keep what the servers hand over (`calls`, in order) and answer plausible objects; policy that the real
services have is not repeated, but what every caller must handle is: unknown names, wrong sessions, conflicts.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import wire
from reconciler.backup.format import HEADER, Header
from reconciler.backup.writing import Archive
from reconciler.control import models as api
from reconciler.errors import HiveError, OperatorError
from reconciler.model.names import AgentName
from reconciler.model.states import MessageState, ProposalKind, ProposalState, Role, UserRole
from reconciler.services import Actor, Services
from tests.fakes.lifecycle import FakeLifecycle
from tests.fakes.objects import (
    AT,
    COMMIT,
    DIGEST,
    OPERATOR_SECRET,
    VIEWER_SECRET,
    a_budget,
    a_loop,
    a_message,
    a_proposal,
    a_question,
    a_session,
    an_agent,
    an_event,
)


def a_header(*, with_state: bool = True) -> Header:
    """The header of a backup."""
    return Header(
        format=1, version="0.1.0", made_at=AT, host="hive", platform="bare", schemas={"state.db": 1},
        agents=[], audit_head="", audit_rows=0, with_state=with_state,
    )  # fmt: skip


Recorded = list[tuple[str, tuple[object, ...]]]


def _missing(what: str, key: object) -> OperatorError:
    return OperatorError(f"there is no {what} {key}", code="not-found")


@dataclass
class FakeAgents:
    """`fail`, if set, is raised by every call; `gate`, if set, is awaited first."""

    known: dict[str, api.Agent] = field(
        default_factory=lambda: {
            n: an_agent(n, r) for n, r in (("hm1nd", Role.MANAGER), ("scout", Role.AGENT))
        }
    )
    calls: Recorded = field(default_factory=list)
    fail: Exception | None = None
    gate: asyncio.Event | None = None

    async def _note(self, call: str, *arguments: object) -> None:
        self.calls.append((call, arguments))
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail

    async def all(self) -> list[api.Agent]:
        await self._note("all")
        return [self.known[name] for name in sorted(self.known)]

    async def get(self, name: str) -> api.Agent:
        await self._note("get", name)
        if name not in self.known:
            raise _missing("agent", name)
        return self.known[name]

    async def new(self, actor: Actor, request: api.NewAgent) -> api.Proposal:
        await self._note("new", actor, request)
        state = ProposalState.APPROVED if request.approve else ProposalState.EXAMINING
        return a_proposal(9, request.name, kind=ProposalKind.SPAWN, state=state)

    async def _act(self, verb: str, actor: Actor, name: str, request: api.Act) -> api.Agent:
        await self._note(verb, actor, name, request)
        if name not in self.known:
            raise _missing("agent", name)
        return self.known[name]

    async def start(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("start", actor, name, request)

    async def stop(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("stop", actor, name, request)

    async def restart(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("restart", actor, name, request)

    async def destroy(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("destroy", actor, name, request)

    async def cancel(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("cancel", actor, name, request)

    async def wake(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("wake", actor, name, request)

    async def nap(self, actor: Actor, name: str, request: api.NapAgent) -> api.Agent:
        return await self._act("nap", actor, name, request)

    async def compact(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("compact", actor, name, request)

    async def new_session(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        return await self._act("new-session", actor, name, request)

    async def set_model(self, actor: Actor, name: str, request: api.SetModel) -> api.Agent:
        agent = await self.get(name)
        await self._note("set_model", actor, name, request)
        return agent.model_copy(update={"model": agent.model.model_copy(update={"queued": request.model})})

    async def spec(self, name: str) -> api.SpecView:
        agent = await self.get(name)
        spec = {"model": "haiku"}
        return api.SpecView(agent=name, generation=agent.generation, commit=COMMIT, digest=DIGEST, spec=spec)

    async def policy(self, name: str, command: str, folder: str) -> api.PolicyAnswer:
        agent = await self.get(name)
        return api.PolicyAnswer(
            agent=name,
            generation=agent.generation,
            command=command,
            folder=folder,
            allowed=command.startswith("git"),
            reason="every part matches an allowed pattern" if command.startswith("git") else "refused: no",
            allow=["git *"],
            deny=[],
        )

    async def generations(self, name: str) -> api.GenerationList:
        await self.get(name)
        one = api.Generation(
            agent=name,
            number=1,
            proposal=1,
            commit=COMMIT,
            store_path="/nix/store/x",
            state="deployed",
            current=True,
            created_at=AT,
        )
        return api.GenerationList(items=[one])

    async def plan(self, name: str) -> api.Plan:
        await self.get(name)
        step = api.Step(kind="start_container", cost="restart", reason="it should run")
        return api.Plan(agent=name, steps=[step], outcome="again")

    async def plans(self) -> list[api.Plan]:
        return [await self.plan(name) for name in sorted(self.known)]

    async def why(self, name: str) -> api.Why:
        await self.get(name)
        return api.Why(
            agent=name, chain=[api.Cause(at=AT, kind="approval", text="approved", ref="proposal/1")]
        )

    async def logs(self, name: str, lines: int) -> api.LogLines:
        await self.get(name)
        await self._note("logs", name, lines)
        return api.LogLines(lines=["one", "two \x1b[31mred\x1b[0m"][-lines:])

    async def status(self) -> api.HiveStatus:
        await self._note("status")
        return api.HiveStatus(
            version="0.1.0",
            platform="bare",
            driver="shim",
            model_upstream="the scripted model",
            agents=len(self.known),
            thinking=0,
            needs_operator=1,
            approvals_pending=1,
            questions_open=0,
            cost_today_usd=0.5,
            audit_head="a" * 64,
            last_event_id=7,
            gateway_connected=True,
        )


@dataclass
class FakeBroker:
    """Messages and questions in dictionaries; the agent's side answers at once."""

    stored: list[api.Message] = field(default_factory=list)
    open_questions: dict[int, api.Question] = field(default_factory=lambda: {1: a_question(1)})
    lines: list[api.TranscriptLine] = field(default_factory=list)
    calls: Recorded = field(default_factory=list)
    hold_inbox: asyncio.Event | None = None
    inbox_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    hello_calls: list[wire.Hello] = field(default_factory=list)
    fail: Exception | None = None

    def _note(self, call: str, *arguments: object) -> None:
        self.calls.append((call, arguments))
        if self.fail is not None:
            raise self.fail

    async def send_as_operator(self, actor: Actor, request: api.NewMessage) -> api.Message:
        self._note("send_as_operator", actor, request)
        message = a_message(len(self.stored) + 1, "operator", request.to, request.body, request.in_reply_to)
        self.stored.append(message)
        return message

    async def messages(self, *, agent: str | None, before: int | None, limit: int) -> api.MessageList:
        self._note("messages", agent, before, limit)
        found = [m for m in reversed(self.stored) if before is None or m.id < before]
        return api.MessageList(items=[m for m in found if agent is None or agent in {m.sender, m.to}][:limit])

    async def mark_read(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        self._note("mark_read", actor, message, dry_run)
        for stored in self.stored:
            if stored.id == message:
                return stored.model_copy(update={"state": MessageState.READ})
        raise _missing("message", message)

    async def redeliver(self, actor: Actor, message: int, *, dry_run: bool = False) -> api.Message:
        self._note("redeliver", actor, message, dry_run)
        for stored in self.stored:
            if stored.id == message:
                return stored.model_copy(update={"state": MessageState.QUEUED})
        raise _missing("message", message)

    async def questions(self, **asked: object) -> api.QuestionList:
        self.asked_questions = asked
        return api.QuestionList(items=list(self.open_questions.values()))

    async def question(self, question: int) -> api.Question:
        if question not in self.open_questions:
            raise _missing("question", question)
        return self.open_questions[question]

    async def answer(self, actor: Actor, question: int, request: api.Answer) -> api.Question:
        self._note("answer", actor, question, request)
        if question not in self.open_questions:
            raise _missing("question", question)
        return self.open_questions[question].model_copy(update={"state": "answered", "answer": request.text})

    async def cancel_question(self, actor: Actor, question: int, *, dry_run: bool = False) -> api.Question:
        self._note("cancel_question", actor, question, dry_run)
        if question not in self.open_questions:
            raise _missing("question", question)
        return self.open_questions[question].model_copy(update={"state": "cancelled"})

    async def loops(self) -> api.LoopList:
        self._note("loops")
        return api.LoopList(items=[a_loop()])

    async def decide_loop(self, actor: Actor, pair: tuple[str, str], request: api.DecideLoop) -> api.LoopList:
        self._note("decide_loop", actor, pair, request)
        if set(pair) != set(a_loop().agents):
            raise _missing("loop", pair)
        return api.LoopList(items=[])

    async def transcript(
        self, agent: str, *, before: int | None, after: int | None, limit: int
    ) -> api.Transcript:
        self._note("transcript", agent, before, after, limit)
        return api.Transcript(items=[line for line in self.lines if line.id > (after or 0)], before=None)

    async def hello(self, agent: AgentName, request: wire.Hello) -> wire.Welcome:
        self._note("hello", agent, request)
        self.hello_calls.append(request)
        return wire.Welcome(
            wire=wire.WIRE_VERSION,
            agent=agent,
            role="agent",
            spec={},
            prompt="",
            model="haiku",
            session_id="0" * 36,
            resume=False,
            generation=1,
            peers=["manager"],
            directives_after=0,
        )

    async def inbox(
        self, agent: AgentName, boot: str, *, wait_s: float, limit: int, turn: int | None
    ) -> wire.Inbox:
        self._note("inbox", agent, boot, wait_s, limit, turn)
        if self.hold_inbox is not None:
            try:
                await self.hold_inbox.wait()
            except asyncio.CancelledError:
                self.inbox_cancelled.set()
                raise
        return wire.Inbox(lease=None, messages=[], waiting=0)

    async def ack(self, agent: AgentName, lease: int) -> None:
        self._note("ack", agent, lease)

    async def return_lease(self, agent: AgentName, lease: int) -> None:
        self._note("return_lease", agent, lease)

    async def send(self, agent: AgentName, request: wire.SendMessage) -> wire.Sent:
        self._note("send", agent, request)
        return wire.Sent(ids=[1])

    async def begin_turn(self, agent: AgentName, boot: str, request: wire.BeginTurn) -> wire.TurnBegun:
        self._note("begin_turn", agent, boot, request)
        return wire.TurnBegun(turn=5, model="haiku")

    async def turn_events(self, agent: AgentName, turn: int, request: wire.TurnEvents) -> wire.EventsTaken:
        self._note("turn_events", agent, turn, request)
        return wire.EventsTaken(seq=request.events[-1].seq)

    async def end_turn(self, agent: AgentName, turn: int, request: wire.EndTurn) -> None:
        self._note("end_turn", agent, turn, request)

    async def directives(self, agent: AgentName, *, wait_s: float, after: int) -> wire.Directives:
        self._note("directives", agent, wait_s, after)
        return wire.Directives(directives=[])

    async def ask(self, agent: AgentName, request: wire.AskOperator) -> wire.Asked:
        self._note("ask", agent, request)
        return wire.Asked(id=1)

    async def peers(self, agent: AgentName) -> list[str]:
        self._note("peers", agent)
        return ["operator"]

    async def nap(self, agent: AgentName, request: wire.Nap) -> wire.Napping:
        self._note("nap", agent, request)
        return wire.Napping(until="2026-01-01T00:00:00Z")

    async def set_status(self, agent: AgentName, request: wire.Status) -> None:
        self._note("set_status", agent, request)

    async def parked(self, agent: AgentName) -> None:
        self._note("parked", agent)

    async def notify(
        self, agent: AgentName, body: str, *, kind: str = "event", urgent: bool = False, key: str
    ) -> None:
        self._note("notify", agent, body, kind, urgent, key)

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None:
        self._note("direct", agent, kind, data)

    async def harness_gone(self, agent: AgentName) -> None:
        self._note("harness_gone", agent)

    def has_live_turn(self, agent: AgentName) -> bool:
        return False

    def hello_of(self, agent: AgentName) -> float | None:
        return None


@dataclass
class FakeApprovals:
    """Proposals by number. `next_states[n]`: what `get` answers next, one after the other."""

    known: dict[int, api.Proposal] = field(default_factory=lambda: {1: a_proposal(1)})
    next_states: list[ProposalState] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=lambda: ["building", "done"])
    calls: Recorded = field(default_factory=list)
    uploaded: list[bytes] = field(default_factory=list)
    seen_paths: list[Path] = field(default_factory=list)
    fail: Exception | None = None

    def _note(self, call: str, *arguments: object) -> None:
        self.calls.append((call, arguments))
        if self.fail is not None:
            raise self.fail

    def _take(self, *files: Path) -> None:
        self.seen_paths += files
        self.uploaded += [file.read_bytes() for file in files]

    async def propose_bundle(
        self, agent: AgentName, target: str, commit: str, description: str, bundle: Path
    ) -> wire.Proposed:
        self._take(bundle)
        self._note("propose_bundle", agent, target, commit, description)
        return wire.Proposed(proposal=1, state="examining")

    async def propose_draft(
        self, agent: AgentName, name: str, commit: str, description: str, bundle: Path, state: Path
    ) -> wire.Proposed:
        self._take(bundle, state)
        self._note("propose_draft", agent, name, commit, description)
        return wire.Proposed(proposal=2, state="examining")

    async def start_draft(self, agent: AgentName, request: wire.SpawnDraft) -> wire.DraftMade:
        self._note("start_draft", agent, request)
        return wire.DraftMade(name=request.name, commit=COMMIT)

    async def request_spawn(self, agent: AgentName, request: wire.Spawn) -> wire.Proposed:
        self._note("request_spawn", agent, request)
        return wire.Proposed(proposal=3, state="examining")

    async def propose(self, actor: Actor, request: api.Propose) -> api.Proposal:
        self._note("propose", actor, request)
        made = a_proposal(len(self.known) + 1, request.agent, commit=request.commit, requested_by="operator")
        self.known[made.id] = made
        return made.model_copy(update={"state": ProposalState.EXAMINING})

    async def new_agent(self, actor: Actor, request: api.NewAgent) -> api.Proposal:
        self._note("new_agent", actor, request)
        return a_proposal(9, request.name, kind=ProposalKind.SPAWN)

    async def list(
        self, *, state: str | None, agent: str | None, before: int | None, limit: int
    ) -> api.ProposalList:
        self._note("list", state, agent, before, limit)
        found = [p for p in self.known.values() if state in {None, p.state} and agent in {None, p.agent}]
        return api.ProposalList(items=found[:limit])

    async def get(self, proposal: int) -> api.Proposal:
        self._note("get", proposal)
        if proposal not in self.known:
            raise _missing("proposal", proposal)
        if self.next_states:
            state = self.next_states.pop(0)
            self.known[proposal] = self.known[proposal].model_copy(update={"state": state})
        return self.known[proposal]

    async def diff(self, proposal: int, base: str) -> api.Diff:
        self._note("diff", proposal, base)
        lines = [
            api.DiffLine(kind="del", old=1, new=None, text='  hyperhive.model = "haiku";'),
            api.DiffLine(kind="add", old=None, new=1, text='  hyperhive.model = "opus";'),
        ]
        file = api.FileDiff(
            path="agent.nix",
            old_path=None,
            status="modified",
            added=1,
            deleted=1,
            note="",
            hunks=[api.Hunk(header="@@ -1 +1 @@", lines=lines)],
        )
        return api.Diff(
            proposal=proposal, base="running", base_commit=None, commit=COMMIT, files=[file], truncated=False
        )

    async def log(self, proposal: int, after: int) -> api.BuildLog:
        rows = [api.LogLine(id=n, at=AT, text=line) for n, line in enumerate(self.log_lines, 1)]
        return api.BuildLog(items=[row for row in rows if row.id > after], done=True)

    async def why(self, proposal: int) -> api.Why:
        return api.Why(agent="smith", chain=[])

    async def approve(self, actor: Actor, proposal: int, request: api.Approve) -> api.Proposal:
        self._note("approve", actor, proposal, request)
        if request.digest != self.known[proposal].digest:
            raise OperatorError(
                "the proposal is not what was shown", code="conflict", hint="look at it again"
            )
        self.known[proposal] = self.known[proposal].model_copy(update={"state": ProposalState.APPROVED})
        return self.known[proposal]

    async def deny(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        self._note("deny", actor, proposal, request)
        return a_proposal(proposal, state=ProposalState.DENIED, note=request.note)

    async def cancel(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        self._note("cancel", actor, proposal, request)
        return a_proposal(proposal, state=ProposalState.CANCELLED, note=request.note)

    async def discard_draft(self, actor: Actor, name: str, request: api.Act) -> api.DraftList:
        self._note("discard_draft", actor, name, request)
        return await self.drafts()

    async def drafts(self) -> api.DraftList:
        return api.DraftList(
            items=[api.Draft(name="scribe", created_by="hm1nd", created_at=AT, proposal=None)]
        )

    async def repository_bundle(self, agent: AgentName, name: str) -> bytes:
        self._note("repository_bundle", agent, name)
        return b"# v2 git bundle\n"

    async def resume(self) -> None:
        self._note("resume")


@dataclass
class FakeAccounts:
    """Sessions by secret: a viewer's and an operator's to begin with."""

    live: dict[str, api.Session] = field(
        default_factory=lambda: {
            VIEWER_SECRET: a_session("vera", UserRole.VIEWER),
            OPERATOR_SECRET: a_session("olga", UserRole.OPERATOR),
        }
    )
    calls: Recorded = field(default_factory=list)

    async def login_link(self, actor: Actor, request: api.NewLoginLink) -> api.LoginLink:
        self.calls.append(("login_link", (actor, request)))
        url = "http://localhost:7000/login/tok"
        return api.LoginLink(token="tok", url=url, user=request.user, expires_in_s=600)

    async def login(self, token: str) -> api.Session:
        if token != "tok":
            raise OperatorError("this link was used or has expired", code="unauthenticated")
        return a_session("olga", UserRole.OPERATOR).model_copy(update={"session": OPERATOR_SECRET})

    async def session(self, secret: str) -> tuple[Actor, api.Session]:
        if secret not in self.live:
            raise OperatorError("the session has ended", code="unauthenticated")
        session = self.live[secret]
        return Actor(f"{session.role}:{session.user}", session.role), session

    async def logout(self, secret: str) -> None:
        del self.live[secret]

    async def users(self) -> api.UserList:
        return api.UserList(items=[api.User(name="olga", role=UserRole.OPERATOR, created_at=AT)])

    async def sessions(self) -> api.SessionList:
        return api.SessionList(items=[api.SessionInfo(id=1, user="olga", created_at=AT, last_seen_at=AT)])

    async def audit(self, *, before: int | None, limit: int) -> api.AuditList:
        row = api.AuditRow(
            id=1, at=AT, actor="unix:root", action="approve", target="1", data={}, hash="a" * 64
        )
        return api.AuditList(items=[row], head="a" * 64)


@dataclass
class FakeEvents:
    """`history` is replayed; `live` is what comes after (None ends the stream)."""

    history: list[api.Event] = field(default_factory=lambda: [an_event(n) for n in range(1, 4)])
    live: asyncio.Queue[api.Event | None] = field(default_factory=asyncio.Queue)
    ended: int = 0
    fail: Exception | None = None

    async def list(
        self,
        *,
        after: int | None,
        agent: str | None,
        kind: str | None,
        limit: int,
        before: int | None = None,
    ) -> api.EventList:
        found = [e for e in self.history if e.id > (after or 0) and (before is None or e.id < before)]
        found = [e for e in found if kind in {None, e.kind}]
        return api.EventList(items=found[:limit] if after is not None else found[-limit:])

    async def stream(self, *, after: int | None) -> AsyncIterator[api.Event]:
        try:
            for event in self.history:
                if after is not None and event.id > after:
                    yield event
            while (coming := await self.live.get()) is not None:
                yield coming
            if self.fail is not None:
                raise self.fail
        finally:
            self.ended += 1

    async def spending(self) -> Sequence[api.Spending]:
        one = api.Spending(
            agent="scout",
            day="2026-03-01",
            model="haiku",
            requests=3,
            input_tokens=10,
            output_tokens=20,
            cache_read_tokens=30,
            cache_write_tokens=40,
            usd=0.01,
        )
        return [one]


@dataclass
class FakeStats:
    """One figure of scout over two minutes; the last question and its parameters in `asked`."""

    asked: dict[str, object] = field(default_factory=dict)

    async def query(
        self, *, agent: str | None, since: str, until: str | None, keys: str | None, points: int, by: str
    ) -> api.Stats:
        self.asked = {
            "agent": agent, "since": since, "until": until, "keys": keys, "points": points, "by": by
        }  # fmt: skip
        one = api.StatSeries(
            agent=agent,
            key="exit_ok",
            unit="turns",
            aggregate="sum",
            told_by="host",
            meaning="turns that ended well at once",
            values=[3, None],
            total=3,
        )
        return api.Stats(
            since="2026-03-01T00:00:00.000Z",
            until="2026-03-01T00:02:00.000Z",
            bucket_s=60,
            times=["2026-03-01T00:00:00.000Z", "2026-03-01T00:01:00.000Z"],
            series=[one],
        )

    async def metrics(self) -> api.MetricList:
        sample = api.Sample(labels={"agent": "scout", "outcome": 'o"k'}, value=3)
        one = api.Metric(name="hyperhive_turns_total", kind="counter", help="Turns.", samples=[sample])
        return api.MetricList(items=[one])

    async def scrape(self, request: api.Scrape) -> api.MetricList:
        if request.token != "right":
            raise OperatorError("that is not the token", code="unauthenticated")
        return await self.metrics()


@dataclass
class FakeBackups:
    """A small archive that is real. `fail_after`: what goes wrong once the header is out."""

    calls: Recorded = field(default_factory=list)
    fail_after: HiveError | None = None
    fail: HiveError | None = None
    cut: bool = False

    async def plan(self) -> api.BackupPlan:
        self.calls.append(("plan", ()))
        part = api.BackupPart(name="state.db", entries=1, bytes=4096)
        return api.BackupPlan(
            parts=[part], entries=1, bytes=4096, left_out=["agents/scout/pipe: it is a pipe"]
        )

    async def stream(self, actor: Actor, *, with_state: bool) -> AsyncIterator[bytes]:
        self.calls.append(("stream", (actor, with_state)))
        if self.fail is not None:
            raise self.fail
        with tempfile.TemporaryFile() as lines:
            archive = Archive(lines)
            for chunk in archive.text(HEADER, a_header(with_state=with_state).model_dump_json().encode()):
                yield chunk
            if self.fail_after is not None:
                yield Archive.failure(self.fail_after)
                return
            for chunk in archive.text("state.db", b"rows" * 100_000):
                yield chunk
            archive.leave_out("agents/scout/state/pipe", "it is a socket, a pipe or a device")
            if not self.cut:
                for chunk in archive.end():
                    yield chunk


@dataclass
class FakeDoctor:
    """One finding of each kind."""

    calls: Recorded = field(default_factory=list)
    fails: int = 1

    async def examine(self, actor: Actor, *, repair: bool) -> api.Health:
        self.calls.append(("examine", (actor, repair)))
        statuses = ["ok", "warn", "not-applicable", *["fail"] * self.fails]
        items = [
            api.Check.model_validate(
                {
                    "id": f"check-{s}",
                    "title": f"a check that is {s}",
                    "status": s,
                    "detail": "found",
                    "remedy": "do",
                }
            )
            for s in statuses
        ]
        return api.Health(items=items, ok=1, warn=1, fail=self.fails)


@dataclass
class FakeBudgets:
    """One agent with a budget, and the hive's."""

    calls: Recorded = field(default_factory=list)

    async def all(self) -> api.BudgetList:
        return api.BudgetList(items=[a_budget("*"), a_budget("scout")])

    async def of(self, scope: str) -> api.Budget:
        if scope not in {"*", "scout"}:
            raise _missing("agent", scope)
        return a_budget(scope)

    async def raise_today(self, actor: Actor, scope: str, request: api.RaiseBudget) -> api.Budget:
        before = await self.of(scope)
        self.calls.append(("raise_today", (actor, scope, request)))
        limit = (before.limit_today_usd or 0) + request.usd
        return before.model_copy(update={"limit_today_usd": limit, "added_today_usd": request.usd})


@dataclass
class FakeServices:
    """All of them, and the value that servers take."""

    agents: FakeAgents = field(default_factory=FakeAgents)
    broker: FakeBroker = field(default_factory=FakeBroker)
    approvals: FakeApprovals = field(default_factory=FakeApprovals)
    accounts: FakeAccounts = field(default_factory=FakeAccounts)
    events: FakeEvents = field(default_factory=FakeEvents)
    lifecycle: FakeLifecycle = field(default_factory=FakeLifecycle)
    backups: FakeBackups = field(default_factory=FakeBackups)
    doctor: FakeDoctor = field(default_factory=FakeDoctor)
    budgets: FakeBudgets = field(default_factory=FakeBudgets)
    stats: FakeStats = field(default_factory=FakeStats)

    def bundle(self) -> Services:
        return Services(
            self.agents,
            self.broker,
            self.approvals,
            self.accounts,
            self.events,
            self.lifecycle,
            self.backups,
            self.doctor,
            self.budgets,
            self.stats,
        )
