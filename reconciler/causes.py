"""Why an agent, or a proposal, is as it is: message → turn → tool call → proposal → decision → deployment,
and what people and accidents did to the container since. Only rows are read; who told a row is said with it.

Used by the services of agents and of approvals; decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from reconciler.control import models as api
from reconciler.model.instants import stamp
from reconciler.model.names import AgentName
from reconciler.model.people import person
from reconciler.model.states import AgentState, ProposalState
from reconciler.model.text import visible
from reconciler.store import causes, proposals
from reconciler.store.db import Row, Store
from reconciler.store.proposals import ProposalRow

LIFE_MAX = 20
ACTS_MAX = 20
TEXT_MAX = 500
PROPOSING = ("propose", "request_spawn", "request_spawn_commit", "request_apply_commit")
"""The tools, after their server's prefix, whose calls become proposals."""

_At = tuple[int, api.Cause]
"""An instant in microseconds, exact where the stamp is not, and the link."""


def _cause(at: int, kind: str, text: str, ref: str = "", *, container: bool = False) -> _At:
    text = visible(text)
    cut = text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 2] + " …"
    return at, api.Cause(
        at=stamp(at), kind=kind, text=cut, ref=ref, told_by="container" if container else "host"
    )


def _newest_first(found: Iterable[_At]) -> list[api.Cause]:
    """Of one instant, the effect stands before its cause, as it was found."""
    return [cause for _, cause in sorted(found, key=lambda one: one[0], reverse=True)]


# ------------------------------------------------------------------------------------------------ proposals
async def of_proposal(store: Store, row: ProposalRow) -> list[api.Cause]:
    """Who decided it, who asked for it, in which turn, after which messages; newest first."""
    return _newest_first(await _proposal(store, row))


async def _proposal(store: Store, row: ProposalRow) -> list[_At]:
    ref = f"proposal {row.id}"
    found = [_cause(row.decided_at, "approval", _decision(row), ref)] if row.decided_at is not None else []
    if row.rollback_of is not None:
        return found  # nobody proposed it: the decision is all there is
    words = f": {row.description}" if row.description else ""
    asked = f"{person(row.requested_by)} proposed {row.commit[:12]} for {row.agent}{words}"
    found.append(_cause(row.created_at, "proposal", asked, ref))
    if row.turn is None:
        return found
    call = await _call(store, row)
    if call is not None:
        found.append(call)
    turn = await causes.turn(store.state, row.turn)
    if turn is not None:
        text = f"{turn['agent']} ran turn {turn['id']} with {turn['model']}"
        found.append(_cause(turn["begun_at"], "turn", text, f"turn {turn['id']}"))
    for message in await causes.messages_of(store.state, row.turn):
        text = f"{person(message['sender'])} wrote: {message['body']}"
        found.append(_cause(message["sent_at"], "message", text, f"message {message['id']}"))
    return found


def _decision(row: ProposalRow) -> str:
    note = f": {row.note}" if row.note else ""
    who = person(row.decided_by or "")
    if row.rollback_of is not None:
        return f"{who} rolled back to generation {row.rollback_of}{note}"
    ended = row.state in {ProposalState.DENIED, ProposalState.CANCELLED}
    return f"{who} {row.state if ended else 'approved'} it{note}"


async def _call(store: Store, row: ProposalRow) -> _At | None:
    """The tool call of its turn that proposed it, as the container told: the nearest in time."""
    assert row.turn is not None, "only agents call tools"
    calls = []
    for line in await causes.tool_calls(store.events, row.turn):
        data = json.loads(line["data"])
        tool = str(data.get("name", "")).rpartition("__")[2]
        if tool in PROPOSING:
            calls.append((abs(line["at"] - row.created_at), line["at"], tool, data.get("input")))
    if not calls:
        return None
    _, at, tool, given = min(calls, key=lambda one: one[0])
    text = f"{tool} {json.dumps(given, ensure_ascii=False)}"
    # Its clock is the container's word: it cannot put the call after what it caused.
    return _cause(min(at, row.created_at), "tool call", text, f"turn {row.turn}", container=True)


# --------------------------------------------------------------------------------------------------- agents
async def of_agent(store: Store, name: AgentName) -> list[api.Cause]:
    """What led to what the agent is: deployments with their causes, starts and ends, acts of people; newest
    first, each sort bounded."""
    found = [one for event in await causes.life(store.events, name, LIFE_MAX) if (one := _life(event))]
    found += [_act(row) for row in await causes.acts(store.state, name, ACTS_MAX)]
    born = await causes.born(store.state, name)  # what an agent before it of the same name did is not its own
    found = [one for one in found if one[0] >= born]
    for deployment in await causes.deployments(store.state, name):
        row = await proposals.get(store.state, deployment["id"])
        found += await _deployment(store, row)
        if row.rollback_of is not None:
            origin = await causes.proposal_of(store.state, name, row.rollback_of)
            if origin is not None:
                found += await _deployment(store, await proposals.get(store.state, origin))
    return _newest_first(found)


async def _deployment(store: Store, row: ProposalRow) -> list[_At]:
    """How far a decision has come, and its causes."""
    ref, found = f"proposal {row.id}", []
    generation = f"generation {row.generation}"
    for state, at in (await proposals.progress(store.state, [row.id]))[row.id]:
        match state:
            case ProposalState.DEPLOYED:
                found.append(
                    _cause(at, "deployment", f"{generation} came up: its harness takes messages", ref)
                )
            case ProposalState.FAILED:
                first = row.error.partition("\n")[0]
                found.append(_cause(at, "rollback" if row.generation else "failure", first, ref))
            case ProposalState.BUILDING if row.state is ProposalState.BUILDING:
                found.append(_cause(at, "build", "it is being built", ref))
            case ProposalState.ACTIVATING if row.state is ProposalState.ACTIVATING:
                found.append(_cause(at, "activation", f"{generation} is started and probed", ref))
    return [*reversed(found), *await _proposal(store, row)]


def _life(event: Row) -> _At | None:
    data: dict[str, Any] = json.loads(event["data"])
    ref = f"event {event['id']}"
    match event["kind"]:
        case "agent.started":
            text = f"generation {data.get('generation')} was started: {data.get('reason')}"
            return _cause(event["ts"], "start", text, ref)
        case "agent.crashed":
            text = f"its container ended and nobody asked for it: {data.get('how')}"
            return _cause(event["ts"], "crash", f"{text} (crash {data.get('count')} in a row)", ref)
        case "agent.stopped_by_hand":
            return _cause(event["ts"], "stop", f"somebody stopped its unit by hand: {data.get('how')}", ref)
        case "agent.repaired":
            step = str(data.get("step")).replace("_", " ")
            return _cause(event["ts"], "repair", f"{step}: {data.get('reason')}", ref)
        case "agent.trouble":
            return _cause(event["ts"], "trouble", f"a pass failed: {data.get('error')}", ref)
    return None


def _act(row: Row) -> _At:
    data: dict[str, Any] = json.loads(row["data"])
    verb = str(row["action"]).removeprefix("agent.")
    whom = " (the whole hive)" if row["target"] == "*" else ""
    to = f" to {data['model'] or 'that of its spec'}" if "model" in data else ""
    note = f": {data['note']}" if data.get("note") else ""
    text = f"{person(row['actor'])} asked for: {verb}{to}{whom}{note}"
    return _cause(row["at"], verb, text, f"audit {row['id']}")


# ------------------------------------------------------------------------------------------------ right now
def at_rest(agent: api.Agent, plan: api.Plan) -> list[str]:
    """Sentences about why the agent does what it does now, and what has to happen for it to go on."""
    until = f", until {agent.until}" if agent.until else ""
    reason = f": {agent.reason}" if agent.reason else ""
    said = [f"it is {agent.state}{reason}{until}"]
    if agent.desired != "running":
        said.append(f"it is meant to be {agent.desired}")
    if agent.state is AgentState.HELD and agent.turn is not None:
        said.append(f"turn {agent.turn} is frozen in the middle, and goes on from there once it is released")
    if agent.inbox_depth and agent.state in _DEAF:
        wait = "message waits" if agent.inbox_depth == 1 else "messages wait"
        said.append(f"{agent.inbox_depth} {wait} for it meanwhile")
    if agent.state is AgentState.IDLE and not agent.inbox_depth:
        said.append("its inbox is empty: a message wakes it")
    if plan.steps:
        step = plan.steps[0]
        said.append(f"the next step is to {step.kind.replace('_', ' ')}: {step.reason}")
    if plan.outcome.startswith(("failed", "waiting")) and plan.outcome not in agent.reason:
        said.append(f"the last pass ended as {plan.outcome}")
    return said


_DEAF = frozenset({
    AgentState.HELD, AgentState.NAPPING, AgentState.PARKED, AgentState.STOPPED, AgentState.CRASHED,
    AgentState.STARTING,
})  # fmt: skip
