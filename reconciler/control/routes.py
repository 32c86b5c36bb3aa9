"""The one table of the control API: routing, validation, roles and the OpenAPI document are made from it.

A handler translates: it takes checked values from its `Call` and awaits one service. What the services refuse
comes back as their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from reconciler.control import models as api
from reconciler.control.auth import Door
from reconciler.control.call import Call, Route
from reconciler.control.edge import Param
from reconciler.control.routes_budget import BUDGET_ROUTES
from reconciler.control.routes_care import CARE_ROUTES
from reconciler.control.routes_lifecycle import LIFECYCLE_ROUTES
from reconciler.control.routes_questions import QUESTION_ROUTES
from reconciler.control.routes_stats import STATS_ROUTES
from reconciler.errors import OperatorError
from reconciler.model.states import ProposalState, UserRole

OPERATOR = UserRole.OPERATOR

# ---------------------------------------------------------------------------------------------- parameters
_LIMIT = Param("limit", "integer", "At most so many rows.", default=50, low=1, high=500)
_BEFORE = Param("before", "integer", "Only rows with a smaller id: the `next` of the page before.", low=1)
_AFTER = Param("after", "integer", "Only rows with a larger id.")
_AGENT = Param(
    "agent",
    "string",
    "Only of this agent (1 to 31 characters of a-z, 0-9 and '-').",
    pattern=r"[a-z][a-z0-9-]{0,30}",
)
_KIND = Param("kind", "string", "Only of this kind, as `agent.state`.", pattern=r"[a-z][a-z0-9_.-]{0,60}")
_STATE = Param("state", "string", "Only in this state.", choices=tuple(ProposalState))
_BASE = Param(
    "base", "string", "What to compare with.", default="running", choices=("running", "approved", "proposal")
)
_COMMAND = Param("command", "string", "The command, 4000 characters at most.", pattern=r"[^\0]{1,4000}")
_FOLDER = Param(
    "folder",
    "string",
    "The absolute path of the folder where it is given, as seen by the agent.",
    default="/state",
    pattern=r"/[^\0]{0,500}",
)
_LINES = Param("lines", "integer", "The last so many lines.", default=200, low=1, high=2000)


# ------------------------------------------------------------------------------------- handlers of more words
async def _plans(call: Call) -> api.PlanList:
    return api.PlanList(items=await call.services.agents.plans())


async def _agents(call: Call) -> api.AgentList:
    return api.AgentList(items=await call.services.agents.all())


async def _session(call: Call) -> api.Session:
    if call.caller.session is None:
        raise OperatorError("this call has no session", code="not-found")
    return call.caller.session


async def _logout(call: Call) -> api.Done:
    assert call.caller.secret is not None
    await call.services.accounts.logout(call.caller.secret)
    return api.Done()


async def _spending(call: Call) -> api.SpendingList:
    return api.SpendingList(items=list(await call.services.events.spending()))


async def _none(call: Call) -> api.Done:
    raise AssertionError(call)  # the server answers special routes itself


def _verb(verb: str, summary: str, act: Callable[[Call, api.Act], Coroutine[Any, Any, api.Agent]]) -> Route:
    return Route(
        "POST",
        f"/v1/agents/{{name}}/{verb}",
        summary,
        api.Agent,
        lambda c: act(c, c.body(api.Act)),
        OPERATOR,
        api.Act,
    )


# ---------------------------------------------------------------------------------------------------- table
_AGENT_ROUTES = (
    Route("GET", "/v1/status", "The hive at a glance.", api.HiveStatus, lambda c: c.services.agents.status()),
    Route("GET", "/v1/agents", "All agents, by name.", api.AgentList, _agents),
    Route(
        "POST",
        "/v1/agents",
        "Propose a new agent from the template.",
        api.Proposal,
        lambda c: c.services.agents.new(c.actor, c.body(api.NewAgent)),
        OPERATOR,
        api.NewAgent,
    ),
    Route("GET", "/v1/agents/{name}", "One agent.", api.Agent, lambda c: c.services.agents.get(c.agent)),
    _verb("start", "Let it run.", lambda c, act: c.services.agents.start(c.actor, c.agent, act)),
    _verb(
        "stop",
        "Stop it at the end of its turn.",
        lambda c, act: c.services.agents.stop(c.actor, c.agent, act),
    ),
    _verb("restart", "Stop and start it.", lambda c, act: c.services.agents.restart(c.actor, c.agent, act)),
    _verb(
        "destroy",
        "Remove it; its state is kept.",
        lambda c, act: c.services.agents.destroy(c.actor, c.agent, act),
    ),
    _verb("cancel", "End its running turn.", lambda c, act: c.services.agents.cancel(c.actor, c.agent, act)),
    _verb("wake", "End its nap.", lambda c, act: c.services.agents.wake(c.actor, c.agent, act)),
    _verb(
        "compact",
        "Sum its conversation up when its turn is over.",
        lambda c, act: c.services.agents.compact(c.actor, c.agent, act),
    ),
    _verb(
        "new-session",
        "Begin a fresh conversation when its turn is over.",
        lambda c, act: c.services.agents.new_session(c.actor, c.agent, act),
    ),
    Route(
        "POST",
        "/v1/agents/{name}/nap",
        "Do not wake it for a while, unless something urgent comes.",
        api.Agent,
        lambda c: c.services.agents.nap(c.actor, c.agent, c.body(api.NapAgent)),
        OPERATOR,
        api.NapAgent,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/model",
        "Override its model from the next turn on.",
        api.Agent,
        lambda c: c.services.agents.set_model(c.actor, c.agent, c.body(api.SetModel)),
        OPERATOR,
        api.SetModel,
    ),
    Route(
        "GET",
        "/v1/agents/{name}/spec",
        "The approved spec of the running generation.",
        api.SpecView,
        lambda c: c.services.agents.spec(c.agent),
    ),
    Route(
        "GET",
        "/v1/agents/{name}/policy",
        "How its Bash policy decides on a command; nothing is run.",
        api.PolicyAnswer,
        lambda c: c.services.agents.policy(c.agent, c.text("command") or "", c.text("folder") or "/state"),
        query=(_COMMAND, _FOLDER),
    ),
    Route(
        "GET",
        "/v1/agents/{name}/generations",
        "Its generations, newest first.",
        api.GenerationList,
        lambda c: c.services.agents.generations(c.agent),
    ),
    Route("GET", "/v1/plans", "What the next passes would do to every agent.", api.PlanList, _plans),
    Route(
        "GET",
        "/v1/agents/{name}/plan",
        "What the next passes would do.",
        api.Plan,
        lambda c: c.services.agents.plan(c.agent),
    ),
    Route(
        "GET",
        "/v1/agents/{name}/why",
        "The causes of its present state.",
        api.Why,
        lambda c: c.services.agents.why(c.agent),
    ),
    Route(
        "GET",
        "/v1/agents/{name}/transcript",
        "Its turns, as told by the container.",
        api.Transcript,
        lambda c: c.services.broker.transcript(
            c.agent, before=c.number("before"), after=c.number("after"), limit=c.count("limit")
        ),
        query=(_BEFORE, _AFTER, _LIMIT),
    ),
    Route(
        "GET",
        "/v1/agents/{name}/logs",
        "The container's console.",
        api.LogLines,
        lambda c: c.services.agents.logs(c.agent, c.count("lines")),
        query=(_LINES,),
    ),
)

_TALK_ROUTES = (
    Route(
        "GET",
        "/v1/messages",
        "Messages, newest first.",
        api.MessageList,
        lambda c: c.services.broker.messages(
            agent=c.text("agent"), before=c.number("before"), limit=c.count("limit")
        ),
        query=(_AGENT, _BEFORE, _LIMIT),
    ),
    Route(
        "POST",
        "/v1/messages",
        "Send a message as the operator.",
        api.Message,
        lambda c: c.services.broker.send_as_operator(c.actor, c.body(api.NewMessage)),
        OPERATOR,
        api.NewMessage,
    ),
    Route(
        "POST",
        "/v1/messages/{id}/read",
        "Mark a message to the operator as read.",
        api.Message,
        lambda c: c.services.broker.mark_read(c.actor, c.id, dry_run=c.body(api.Write).dry_run),
        OPERATOR,
        api.Write,
    ),
    Route(
        "POST",
        "/v1/messages/{id}/redeliver",
        "Let a message that was set aside come once more.",
        api.Message,
        lambda c: c.services.broker.redeliver(c.actor, c.id, dry_run=c.body(api.Write).dry_run),
        OPERATOR,
        api.Write,
    ),
    Route(
        "GET",
        "/v1/loops",
        "Agents that only feed each other, whose messages are held or slowed.",
        api.LoopList,
        lambda c: c.services.broker.loops(),
    ),
    Route(
        "POST",
        "/v1/loops/{name}/{peer}",
        "Deliver what waits between two agents, or drop it.",
        api.LoopList,
        lambda c: c.services.broker.decide_loop(c.actor, c.pair, c.body(api.DecideLoop)),
        OPERATOR,
        api.DecideLoop,
    ),
)

_APPROVAL_ROUTES = (
    Route(
        "GET",
        "/v1/proposals",
        "Proposals, newest first.",
        api.ProposalList,
        lambda c: c.services.approvals.list(
            state=c.text("state"), agent=c.text("agent"), before=c.number("before"), limit=c.count("limit")
        ),
        query=(_STATE, _AGENT, _BEFORE, _LIMIT),
    ),
    Route(
        "POST",
        "/v1/proposals",
        "Propose a commit that is in the agent's repository.",
        api.Proposal,
        lambda c: c.services.approvals.propose(c.actor, c.body(api.Propose)),
        OPERATOR,
        api.Propose,
    ),
    Route(
        "GET", "/v1/proposals/{id}", "One proposal.", api.Proposal, lambda c: c.services.approvals.get(c.id)
    ),
    Route(
        "GET",
        "/v1/proposals/{id}/diff",
        "Its text diff.",
        api.Diff,
        lambda c: c.services.approvals.diff(c.id, c.text("base") or "running"),
        query=(_BASE,),
    ),
    Route(
        "GET",
        "/v1/proposals/{id}/log",
        "Its build and activation log.",
        api.BuildLog,
        lambda c: c.services.approvals.log(c.id, c.number("after") or 0),
        query=(_AFTER,),
    ),
    Route(
        "GET",
        "/v1/proposals/{id}/why",
        "Who asked for it, in which turn, after which message.",
        api.Why,
        lambda c: c.services.approvals.why(c.id),
    ),
    Route(
        "POST",
        "/v1/proposals/{id}/approve",
        "Approve exactly what was shown.",
        api.Proposal,
        lambda c: c.services.approvals.approve(c.actor, c.id, c.body(api.Approve)),
        OPERATOR,
        api.Approve,
    ),
    Route(
        "POST",
        "/v1/proposals/{id}/deny",
        "Deny it, with a note to the proposer.",
        api.Proposal,
        lambda c: c.services.approvals.deny(c.actor, c.id, c.body(api.Decide)),
        OPERATOR,
        api.Decide,
    ),
    Route(
        "POST",
        "/v1/proposals/{id}/cancel",
        "Take it back before it is activated.",
        api.Proposal,
        lambda c: c.services.approvals.cancel(c.actor, c.id, c.body(api.Decide)),
        OPERATOR,
        api.Decide,
    ),
    Route(
        "GET",
        "/v1/drafts",
        "New agents being drafted.",
        api.DraftList,
        lambda c: c.services.approvals.drafts(),
    ),
    Route(
        "POST",
        "/v1/drafts/{name}/discard",
        "Discard a draft; the manager is told.",
        api.DraftList,
        lambda c: c.services.approvals.discard_draft(c.actor, c.agent, c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
)

_HISTORY_ROUTES = (
    Route(
        "GET",
        "/v1/events",
        "What happened, oldest first: after an id, or the newest (`turn.event` only with `agent` or `kind`).",
        api.EventList,
        lambda c: c.services.events.list(
            after=c.number("after"),
            agent=c.text("agent"),
            kind=c.text("kind"),
            limit=c.count("limit"),
            before=c.number("before"),
        ),
        query=(_AFTER, _BEFORE, _AGENT, _KIND, _LIMIT),
    ),
    Route(
        "GET",
        "/v1/stream",
        "Events as they happen (SSE; `Last-Event-ID` replays).",
        api.Event,
        _none,
        query=(_AFTER,),
        special="stream",
    ),
    Route(
        "GET",
        "/v1/audit",
        "Decisions, newest first, in a hash chain.",
        api.AuditList,
        lambda c: c.services.accounts.audit(before=c.number("before"), limit=c.count("limit")),
        query=(_BEFORE, _LIMIT),
    ),
    Route("GET", "/v1/spending", "Tokens and cost by day, agent and model.", api.SpendingList, _spending),
)

_ACCOUNT_ROUTES = (
    Route(
        "POST",
        "/v1/login-links",
        "Make a one-time login link.",
        api.LoginLink,
        lambda c: c.services.accounts.login_link(c.actor, c.body(api.NewLoginLink)),
        OPERATOR,
        api.NewLoginLink,
        doors=frozenset({Door.CONTROL}),
    ),
    Route(
        "POST",
        "/v1/login",
        "Consume a one-time token.",
        api.Session,
        lambda c: c.services.accounts.login(c.body(api.Login).token),
        None,
        api.Login,
        doors=frozenset({Door.UI}),
    ),
    Route("GET", "/v1/session", "The browser's session.", api.Session, _session, doors=frozenset({Door.UI})),
    Route("POST", "/v1/logout", "End the browser's session.", api.Done, _logout, doors=frozenset({Door.UI})),
    Route(
        "GET",
        "/v1/users",
        "People who may log in.",
        api.UserList,
        lambda c: c.services.accounts.users(),
        OPERATOR,
    ),
    Route(
        "GET",
        "/v1/sessions",
        "Live sessions.",
        api.SessionList,
        lambda c: c.services.accounts.sessions(),
        OPERATOR,
    ),
    Route("GET", "/openapi.json", "This document.", None, _none, None, special="openapi"),
)

ROUTES: tuple[Route, ...] = (
    *_AGENT_ROUTES,
    *LIFECYCLE_ROUTES,
    *BUDGET_ROUTES,
    *_TALK_ROUTES,
    *QUESTION_ROUTES,
    *_APPROVAL_ROUTES,
    *_HISTORY_ROUTES,
    *STATS_ROUTES,
    *_ACCOUNT_ROUTES,
    *CARE_ROUTES,
)
