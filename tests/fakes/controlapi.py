"""A control API on a unix socket with a `World` behind it: for tests of the web server and for screenshots.

It answers by the table in `reconciler.control.models` with the real models, moves its world when told to
(messages, decisions, answers) and streams events. `python -m tests.fakes.controlapi SOCKET [WORLD]` serves
until it is ended.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from reconciler.control import models as api
from reconciler.control.client import SESSION_HEADER
from reconciler.control.sse import encode
from reconciler.errors import HiveError, OperatorError
from reconciler.model.states import AgentState, MessageState, ProposalKind, ProposalState, Risk, UserRole
from tests.fakes import controldata, controlworlds
from tests.fakes.controldata import World
from tests.fakes.figures import metrics_of, stats_of
from tests.fakes.objects import a_budget

OPERATOR_SECRET = "operator-session-0123456789abcdef"
VIEWER_SECRET = "viewer-session-0123456789abcdef00"
LOGIN_TOKEN = "one-time-token-0123456789"
_Body = TypeVar("_Body", bound=api.Model)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeControlApi:
    """`calls` records every write as (method, path, body). Set `refuse` to fail
    writes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions = {
            OPERATOR_SECRET: controldata.session("operator", UserRole.OPERATOR, "csrf-operator", world.now),
            VIEWER_SECRET: controldata.session("viewer", UserRole.VIEWER, "csrf-viewer", world.now),
        }
        self.tokens = {LOGIN_TOKEN}
        self.calls: list[tuple[str, str, Any]] = []
        self.refuse: HiveError | None = None
        self.streams = 0
        self._runner: web.AppRunner | None = None
        self._wake = asyncio.Event()
        self._cut = asyncio.Event()

    # ---------------------------------------------------------------------------------------------- life
    async def start(self, socket: Path) -> None:
        app = web.Application(middlewares=[self._edge])
        for method, path, handler in self._routes():
            app.router.add_route(method, f"/v1{path}", handler)
        self._cut = asyncio.Event()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()

    async def stop(self) -> None:
        """As if hived went away: streams are cut, the socket is gone."""
        self._cut.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def emit(self, kind: str, agent: str | None = None, **data: Any) -> api.Event:
        """Something happened: every stream gets it."""
        event = self.world.event(kind, agent, **data)
        self._wake.set()
        self._wake = asyncio.Event()
        return event

    def cut_streams(self) -> None:
        """End the open streams, as a restart of hived does."""
        self._cut.set()
        self._cut = asyncio.Event()

    # -------------------------------------------------------------------------------------------- the edge
    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.method == "POST":
                if request.path not in {"/v1/login", "/v1/scrape"}:
                    session = self._session(request)
                    if request.path != "/v1/logout" and session.role is not UserRole.OPERATOR:
                        raise OperatorError(
                            "a viewer may not do that", code="forbidden", hint="ask an operator"
                        )
                self.calls.append(
                    (request.method, request.path, await request.json() if request.can_read_body else None)
                )
                if self.refuse is not None:
                    raise self.refuse
            elif request.path != "/v1/login":
                self._session(request)
            return await handler(request)
        except HiveError as error:
            return web.json_response(error.as_json(), status=error.status)

    def _session(self, request: web.Request) -> api.Session:
        session = self.sessions.get(request.headers.get(SESSION_HEADER, ""))
        if session is None:
            raise OperatorError("this session has ended", code="unauthenticated", hint="run `hive login`")
        return session

    def _routes(self) -> list[tuple[str, str, Handler]]:
        reads: dict[str, Callable[[web.Request], api.Model]] = {
            "/status": self._status,
            "/session": self._session,
            "/agents": lambda _: api.AgentList(
                items=sorted(self.world.agents.values(), key=lambda a: a.name)
            ),
            "/agents/{name}": self._agent,
            "/agents/{name}/spec": self._spec,
            "/agents/{name}/policy": self._policy,
            "/agents/{name}/generations": lambda r: api.GenerationList(
                items=self.world.generations[self._agent(r).name]
            ),
            "/plans": lambda _: api.PlanList(
                items=[
                    api.Plan(agent=name, steps=[], outcome="settled") for name in sorted(self.world.agents)
                ]
            ),
            "/agents/{name}/plan": lambda r: api.Plan(agent=self._agent(r).name, steps=[], outcome="settled"),
            "/agents/{name}/why": lambda r: api.Why(
                agent=self._agent(r).name,
                chain=self.world.accidents.get(self._agent(r).name, []) + self.world.chains.get(12, []),
                now=[f"it is {self._agent(r).state}"],
            ),
            "/holds": lambda _: self._holds(),
            "/budgets": lambda _: api.BudgetList(
                items=[self._budget(k) for k in ("*", *sorted(self.world.agents))]
            ),
            "/budget": lambda _: self._budget("*"),
            "/agents/{name}/budget": lambda r: self._budget(self._agent(r).name),
            "/kept": lambda _: api.KeptList(items=[self.world.kept[k] for k in sorted(self.world.kept)]),
            "/agents/{name}/transcript": self._transcript,
            "/agents/{name}/logs": lambda r: api.LogLines(lines=self.world.console[self._agent(r).name]),
            "/messages": self._messages,
            "/proposals": self._proposals,
            "/proposals/{id}": self._proposal,
            "/proposals/{id}/diff": self._diff,
            "/proposals/{id}/log": self._log,
            "/proposals/{id}/why": self._why,
            "/questions": lambda _: api.QuestionList(
                items=sorted(self.world.questions.values(), key=lambda q: (q.state != "open", -q.id))
            ),
            "/loops": lambda _: api.LoopList(items=self.world.loops),
            "/drafts": lambda _: api.DraftList(items=self.world.drafts),
            "/events": self._events,
            "/stats": lambda r: stats_of(sorted(self.world.agents), r.query),
            "/metrics": lambda _: metrics_of(sorted(self.world.agents)),
            "/audit": lambda _: api.AuditList(
                items=self.world.audit[::-1], head=self.world.audit[-1].hash if self.world.audit else ""
            ),
        }
        writes: dict[str, Callable[[web.Request], Awaitable[api.Model]]] = {
            "/login": self._login,
            "/scrape": self._scrape,
            "/logout": self._logout,
            "/agents": self._new_agent,
            "/agents/{name}/model": self._set_model,
            "/agents/{name}/{verb:start|stop|restart|cancel|wake|compact|new-session}": self._act,
            "/{verb:hold|release}": self._hold,
            "/agents/{name}/{verb:hold|release}": self._hold,
            "/agents/{name}/rollback": self._rollback,
            "/budget/raise": self._raise,
            "/agents/{name}/budget/raise": self._raise,
            "/agents/{name}/revive": self._revive,
            "/agents/{name}/purge": self._purge,
            "/agents/{name}/nap": self._nap,
            "/loops/{name}/{peer}": self._decide_loop,
            "/messages": self._send,
            "/messages/{id}/read": self._read,
            "/messages/{id}/redeliver": self._redeliver,
            "/proposals/{id}/{verb:approve|deny|cancel}": self._decide,
            "/questions/{id}/{verb:answer|cancel}": self._answer,
            "/drafts/{name}/discard": self._discard_draft,
        }
        return [
            *(("GET", path, _read(read)) for path, read in reads.items()),
            *(("POST", path, _write(write)) for path, write in writes.items()),
            ("GET", "/stream", self._stream),
        ]

    async def _scrape(self, request: web.Request) -> api.Model:
        if (await request.json())["token"] != "right":
            raise OperatorError("that is not the token", code="unauthenticated")
        return metrics_of(sorted(self.world.agents))

    # ---------------------------------------------------------------------------------------------- reads
    def _budget(self, scope: str) -> api.Budget:
        """What the world says; else one without a limit."""
        spent = [a.cost_today_usd for a in self.world.agents.values() if scope in {a.name, "*"}]
        return self.world.budgets.get(scope) or a_budget(scope, spent=sum(spent), limit=None)

    async def _raise(self, request: web.Request) -> api.Budget:
        body = await _body(request, api.RaiseBudget)
        before = self._budget(request.match_info.get("name", "*"))
        limit = (before.limit_today_usd or 0) + body.usd
        self.world.budgets[before.scope] = before.model_copy(
            update={"limit_today_usd": limit, "added_today_usd": before.added_today_usd + body.usd}
        )
        return self.world.budgets[before.scope]

    def _status(self, _: web.Request) -> api.HiveStatus:
        w = self.world
        pending = sum(p.state is ProposalState.PENDING for p in w.proposals.values())
        asked = sum(q.state == "open" for q in w.questions.values())
        whole = w.holds.get("*")
        held = [name for name in w.agents if name in w.holds]
        stuck = [
            name
            for name, a in w.agents.items()
            if name not in held and (a.state is AgentState.CRASHED or a.trouble)
        ]
        return api.HiveStatus(
            version="0.1.0",
            platform="bare",
            driver="shim",
            model_upstream="the scripted model",
            agents=len(w.agents),
            thinking=sum(a.state is AgentState.THINKING for a in w.agents.values()),
            needs_operator=pending + asked + len(held) + len(stuck) + len(w.loops) + (whole is not None),
            approvals_pending=pending,
            questions_open=asked,
            cost_today_usd=sum(a.cost_today_usd for a in w.agents.values()),
            audit_head=w.audit[-1].hash if w.audit else "",
            last_event_id=len(w.events),
            gateway_connected=w.gateway_connected,
            hold=whole,
            held=held,
            stuck=stuck,
        )

    def _agent(self, request: web.Request) -> api.Agent:
        name = request.match_info["name"]
        if name not in self.world.agents:
            raise OperatorError(
                f"there is no agent {name!r}", code="not-found", hint="`hive agents` lists them"
            )
        return self.world.agents[name]

    def _spec(self, request: web.Request) -> api.SpecView:
        agent = self._agent(request)
        return api.SpecView(
            agent=agent.name,
            generation=agent.generation,
            commit=agent.commit,
            digest="d" * 64,
            spec=self.world.specs[agent.name],
        )

    def _policy(self, request: web.Request) -> api.PolicyAnswer:
        agent = self._agent(request)
        allowed = request.query["command"].startswith("git ")
        return api.PolicyAnswer(
            agent=agent.name,
            generation=agent.generation,
            command=request.query["command"],
            folder=request.query["folder"],
            allowed=allowed,
            reason="every part matches an allowed pattern" if allowed else "refused: no",
            allow=["git *"],
            deny=[],
        )

    def _transcript(self, request: web.Request) -> api.Transcript:
        lines = self.world.transcripts[self._agent(request).name]
        limit = int(request.query.get("limit", 50))
        if "after" in request.query:
            found = [line for line in lines if line.id > int(request.query["after"])][:limit]
        else:
            older = [line for line in lines if line.id < int(request.query.get("before", 10**18))]
            found = older[-limit:]
        first = found[0].id if found and lines[0].id < found[0].id else None
        return api.Transcript(items=found, before=first)

    def _messages(self, request: web.Request) -> api.MessageList:
        before, agent = int(request.query.get("before", 10**18)), request.query.get("agent")
        limit = int(request.query.get("limit", 50))
        found = [
            m
            for m in reversed(self.world.messages)
            if m.id < before and (agent is None or agent in {m.sender, m.to})
        ]
        return api.MessageList(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    def _proposals(self, request: web.Request) -> api.ProposalList:
        state, before = request.query.get("state"), int(request.query.get("before", 10**18))
        limit = int(request.query.get("limit", 50))
        found = [
            p
            for p in sorted(self.world.proposals.values(), key=lambda p: -p.id)
            if p.id < before and (state is None or p.state == state)
        ]
        return api.ProposalList(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    def _proposal(self, request: web.Request) -> api.Proposal:
        number = int(request.match_info["id"])
        if number not in self.world.proposals:
            raise OperatorError(f"there is no proposal {number}", code="not-found")
        return self.world.proposals[number]

    def _diff(self, request: web.Request) -> api.Diff:
        found = self.world.diffs.get(self._proposal(request).id)
        if found is None:
            raise OperatorError("the commit has no base to compare with", code="not-found")
        return found.model_copy(update={"base": request.query.get("base", "running")})

    def _log(self, request: web.Request) -> api.BuildLog:
        proposal = self._proposal(request)
        after = int(request.query.get("after", 0))
        done = proposal.state not in {
            ProposalState.APPROVED,
            ProposalState.BUILDING,
            ProposalState.ACTIVATING,
        }
        return api.BuildLog(
            items=[line for line in self.world.logs[proposal.id] if line.id > after],
            done=done,
            progress=self.world.builds.get(proposal.id),
        )

    def _why(self, request: web.Request) -> api.Why:
        proposal = self._proposal(request)
        return api.Why(agent=proposal.agent, chain=self.world.chains.get(proposal.id, []))

    def _events(self, request: web.Request) -> api.EventList:
        given = request.query
        after, before, limit = (int(given.get(name, -1)) for name in ("after", "before", "limit"))
        agent, kind = given.get("agent"), given.get("kind")
        found = [
            e
            for e in self.world.events
            if (agent is None or e.agent == agent)
            and (kind is None or e.kind == kind)
            and (agent or kind or e.kind != "turn.event")
            and e.id > after
            and (before < 0 or e.id < before)
        ]
        limit = 50 if limit < 0 else limit
        shown = found[:limit] if after >= 0 else found[-limit:]
        more = len(found) > len(shown)
        return api.EventList(
            items=shown, next=(shown[-1].id if after >= 0 else shown[0].id) if more else None
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = request.headers.get("Last-Event-ID")
        position = len(self.world.events) if last is None else int(last)
        cut = self._cut
        self.streams += 1
        try:
            while not cut.is_set():
                wake = self._wake
                for event in self.world.events[position:]:
                    await response.write(encode(event.model_dump_json(), id=event.id, event=event.kind))
                    position = event.id
                waits = [asyncio.create_task(wake.wait()), asyncio.create_task(cut.wait())]
                try:
                    await asyncio.wait(waits, return_when="FIRST_COMPLETED")
                finally:
                    for wait in waits:
                        wait.cancel()
        except ConnectionError:
            pass
        finally:
            self.streams -= 1
        return response

    # --------------------------------------------------------------------------------------------- writes
    async def _login(self, request: web.Request) -> api.Session:
        token = (await _body(request, api.Login)).token
        if token not in self.tokens:
            raise OperatorError("this link was used, or is older than ten minutes", code="unauthenticated")
        self.tokens.discard(token)
        return self.sessions[OPERATOR_SECRET].model_copy(update={"session": OPERATOR_SECRET})

    async def _logout(self, request: web.Request) -> api.Done:
        self.sessions.pop(request.headers[SESSION_HEADER], None)
        return api.Done()

    async def _new_agent(self, request: web.Request) -> api.Proposal:
        asked = await _body(request, api.NewAgent)
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", asked.name):
            raise OperatorError(
                f"{asked.name!r} is not an agent name", hint="a-z first, then a-z, 0-9 or '-'"
            )
        number = max(self.world.proposals, default=0) + 1
        made = self.world.add_proposal(
            number,
            asked.name,
            0,
            kind=ProposalKind.SPAWN,
            state=ProposalState.APPROVED,
            requested_by="operator",
        )
        self.emit("proposal.state", asked.name, proposal=number)
        return made

    async def _set_model(self, request: web.Request) -> api.Agent:
        agent = self._agent(request)
        model = agent.model.model_copy(update={"queued": (await _body(request, api.SetModel)).model})
        return self._changed(agent, model=model)

    async def _act(self, request: web.Request) -> api.Agent:
        await _body(request, api.Act)
        states = {"start": AgentState.STARTING, "stop": AgentState.STOPPED, "restart": AgentState.STARTING}
        agent = self._agent(request)
        return self._changed(
            agent,
            state=states.get(request.match_info["verb"], AgentState.IDLE),
            state_since=_now(),
            until=None,
        )

    def _holds(self) -> api.HoldList:
        return api.HoldList(items=[self.world.holds[scope] for scope in sorted(self.world.holds)])

    async def _hold(self, request: web.Request) -> api.HoldList:
        asked, scope = await _body(request, api.Act), request.match_info.get("name", "*")
        names = list(self.world.agents) if scope == "*" else [self._agent(request).name]
        on = request.match_info["verb"] == "hold"
        if on:
            hold = api.Hold(scope=scope, by="operator:operator", reason=asked.note, at=_now())
            self.world.holds[scope] = hold
        elif scope == "*":
            self.world.holds.clear()
        else:
            self.world.holds.pop(scope, None)
        for name in names:
            state = AgentState.HELD if on else AgentState.IDLE
            self._changed(self.world.agents[name], state=state, held=on, reason=asked.note if on else "")
        return self._holds()

    async def _rollback(self, request: web.Request) -> api.Proposal:
        asked, agent = await _body(request, api.Rollback), self._agent(request)
        goal = next(g for g in self.world.generations[agent.name] if g.number == asked.generation)
        number = 0 if asked.dry_run else max(self.world.proposals) + 1
        made = self.world.proposals[max(self.world.proposals)].model_copy(
            update={
                "id": number, "agent": agent.name, "commit": goal.commit, "state": ProposalState.APPROVED,
                "rollback_of": goal.number, "changes": [_BACK], "note": asked.note, "supersedes": [],
                "files": [], "staged_files": [],
                "description": f"back to generation {goal.number}",
            }
        )  # fmt: skip
        if not asked.dry_run:
            self.world.proposals[number] = made
        return made

    async def _revive(self, request: web.Request) -> api.Agent:
        await _body(request, api.Act)
        name = request.match_info["name"]
        del self.world.kept[name]
        return self.world.add_agent(name)

    async def _purge(self, request: web.Request) -> api.Done:
        asked, name = await _body(request, api.Purge), request.match_info["name"]
        if asked.confirm != name:
            raise OperatorError(
                f"to purge {name} its name must be given as the confirmation", hint=f"`hive purge {name}`"
            )
        self.world.kept[name] = self.world.kept[name].model_copy(update={"purging": True})
        return api.Done()

    def _changed(self, agent: api.Agent, **changes: Any) -> api.Agent:
        self.world.agents[agent.name] = agent.model_copy(update=changes)
        self.emit("agent.state", agent.name)
        return self.world.agents[agent.name]

    async def _send(self, request: web.Request) -> api.Message:
        asked = await _body(request, api.NewMessage)
        if asked.to not in {*self.world.agents, "*", "manager"}:
            raise OperatorError(f"there is no agent {asked.to!r}", code="not-found")
        message = self.world.say(0, "operator", asked.to, asked.body, MessageState.QUEUED, sent_at=_now())
        self.emit("message.sent", asked.to)
        return message

    async def _read(self, request: web.Request) -> api.Message:
        index = int(request.match_info["id"]) - 1
        self.world.messages[index] = self.world.messages[index].model_copy(
            update={"state": MessageState.READ}
        )
        self.emit("message.read")
        return self.world.messages[index]

    async def _redeliver(self, request: web.Request) -> api.Message:
        index = int(request.match_info["id"]) - 1
        self.world.messages[index] = self.world.messages[index].model_copy(
            update={"state": MessageState.QUEUED, "redelivered": True}
        )
        return self.world.messages[index]

    async def _decide(self, request: web.Request) -> api.Proposal:
        proposal, verb = self._proposal(request), request.match_info["verb"]
        if verb == "approve":
            asked = await _body(request, api.Approve)
            if asked.digest != proposal.digest or proposal.state is not ProposalState.PENDING:
                raise OperatorError(
                    f"proposal {proposal.id} is not what you were shown",
                    code="conflict",
                    hint="look at it again",
                )
            return self.move(proposal.id, ProposalState.APPROVED, note=asked.note, decided_by="operator")
        asked_note = (await _body(request, api.Decide)).note
        state = ProposalState.DENIED if verb == "deny" else ProposalState.CANCELLED
        return self.move(proposal.id, state, note=asked_note, decided_by="operator")

    def move(self, number: int, state: ProposalState, **changes: Any) -> api.Proposal:
        """The proposal enters `state`."""
        proposal = self.world.proposals[number]
        progress = [*proposal.progress, api.Progress(state=state, at=_now())]
        moved = proposal.model_copy(update={"state": state, "progress": progress, **changes})
        self.world.proposals[number] = moved
        self.emit("proposal.state", proposal.agent, proposal=number, state=str(state))
        return moved

    def log(self, number: int, text: str) -> None:
        """A line of the build log."""
        lines = self.world.logs[number]
        lines.append(api.LogLine(id=len(lines) + 1, at=_now(), text=text))
        self.emit("build.log", None, proposal=number)

    async def _nap(self, request: web.Request) -> api.Agent:
        agent, asked = self._agent(request), await _body(request, api.NapAgent)
        until = (datetime.now(UTC) + timedelta(seconds=asked.seconds)).isoformat()
        return self._changed(agent, state=AgentState.NAPPING, reason=asked.note, until=until)

    async def _decide_loop(self, request: web.Request) -> api.LoopList:
        pair = {request.match_info["name"], request.match_info["peer"]}
        await _body(request, api.DecideLoop)
        self.world.loops = [loop for loop in self.world.loops if set(loop.agents) != pair]
        self.emit("loop.decided", request.match_info["name"])
        return api.LoopList(items=self.world.loops)

    async def _discard_draft(self, request: web.Request) -> api.DraftList:
        await _body(request, api.Act)
        self.world.drafts = [one for one in self.world.drafts if one.name != request.match_info["name"]]
        self.emit("draft.discarded", None)
        return api.DraftList(items=self.world.drafts)

    async def _answer(self, request: web.Request) -> api.Question:
        number = int(request.match_info["id"])
        question = self.world.questions[number]
        given = await _body(request, api.Answer)
        text = "\n".join([*(question.options[n - 1] for n in given.options), *filter(None, [given.text])])
        ended = (
            {"state": "answered", "answer": text}
            if request.match_info["verb"] == "answer"
            else {"state": "cancelled"}
        )
        self.world.questions[number] = question.model_copy(update={**ended, "answered_by": "operator"})
        self.emit("question.closed", question.agent)
        return self.world.questions[number]


_BACK = api.Change(
    option="model", before='"opus"', after='"haiku"', risk=Risk.ELEVATED, reason="another model"
)
"""What going back to any generation changes."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def _body(request: web.Request, kind: type[_Body]) -> _Body:
    return kind.model_validate_json(await request.read())


def _json(answer: api.Model) -> web.Response:
    return web.Response(text=answer.model_dump_json(by_alias=True), content_type="application/json")


def _read(read: Callable[[web.Request], api.Model]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return _json(read(request))

    return handle


def _write(write: Callable[[web.Request], Awaitable[api.Model]]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return _json(await write(request))

    return handle


async def _serve(socket: Path, world: str) -> None:
    fake = FakeControlApi(getattr(controlworlds, world)(datetime.now(UTC)))
    await fake.start(socket)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "believable"))
