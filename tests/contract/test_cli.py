"""`hive` against a real control server with fake services: what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reconciler.control import models as api
from reconciler.control.auth import Door
from reconciler.errors import OperatorError
from reconciler.model.states import Risk
from tests.contract.cli_kit import hive, on_terminal
from tests.fakes.objects import a_message, a_proposal, an_agent, an_event
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api

HOSTILE = "red \x1b[31m\x1b]0;title\x07 back\x08 \u202egnirts\u2066 zero\u200bwidth c1\x9b line\u2028end"
# What must never reach a terminal from an agent: escapes and other controls, bidirectional, invisible ones.
DANGEROUS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("server")]


READS = {
    "status": "/v1/status",
    "agents": "/v1/agents",
    "agents scout": "/v1/agents/scout",
    "plan scout": "/v1/agents/scout/plan",
    "why scout": "/v1/agents/scout/why",
    "transcript scout": "/v1/agents/scout/transcript",
    "logs scout -n 1": "/v1/agents/scout/logs?lines=1",
    "spec scout": "/v1/agents/scout/spec",
    "policy scout git": "/v1/agents/scout/policy?command=git&folder=/state",
    "generations scout": "/v1/agents/scout/generations",
    "model scout": "/v1/agents/scout",
    "hold": "/v1/holds",
    "kept": "/v1/kept",
    "proposals": "/v1/proposals",
    "proposals 1": "/v1/proposals/1",
    "proposals --state denied": "/v1/proposals?state=denied",
    "diff 1": "/v1/proposals/1/diff",
    "drafts": "/v1/drafts",
    "messages": "/v1/messages",
    "questions": "/v1/questions",
    "events --after 1": "/v1/events?after=1",
    "audit": "/v1/audit",
    "spending": "/v1/spending",
    "budget": "/v1/budgets",
    "budget scout": "/v1/agents/scout/budget",
    "budget --hive": "/v1/budget",
    "stats": "/v1/stats",
    "stats scout --since 7d --keys exit_ok": "/v1/stats?agent=scout&since=7d&keys=exit_ok",
    "users": "/v1/users",
    "sessions": "/v1/sessions",
}


@pytest.mark.parametrize("command", READS)
async def test_json_is_exactly_the_apis_and_words_are_for_people(command: str, run_dir: Path) -> None:
    async with Api(run_dir / Door.CONTROL) as control:
        expected = (await control.call("GET", READS[command])).json
    machine = await hive(*command.split(), "--json")
    assert (machine.status, machine.json, machine.err) == (0, expected, "")
    person = await hive(*command.split())
    assert person.status == 0
    assert person.out.strip()
    assert not DANGEROUS.search(person.out)
    assert "\x1b" not in person.out, "no colours without a terminal"


async def test_the_plan_of_all_agents_is_a_list_of_plans() -> None:
    plans = (await hive("plan", "--json")).json["items"]
    assert [plan["agent"] for plan in plans] == ["hm1nd", "scout"]


async def test_tables_are_aligned_whatever_they_hold(services: FakeServices) -> None:
    services.agents.known = {n: an_agent(n, status=s) for n, s in (("a", "字 wide"), ("a-long-name", ""))}
    lines = (await hive("agents")).out.splitlines()
    assert len({line.index("agent" if number else "ROLE") for number, line in enumerate(lines)}) <= 2
    places = {re.search(r"agent(?= )| ROLE", line).start() for line in lines[1:] if line}  # type: ignore[union-attr]
    assert len(places) == 1


async def test_status_says_what_needs_the_operator() -> None:
    shown = (await hive("status")).out
    assert "1 needs you: 1 to approve, 0 to answer" in shown
    assert "the scripted model" in shown
    assert "○ idle" in shown


async def test_status_names_the_held_and_the_stuck(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = api.Hold(scope="*", by="alice", reason="", at="2026-11-22T10:00:00Z")
    found = (await services.agents.status()).model_copy(
        update={"needs_operator": 5, "held": ["scout"], "stuck": ["a", "b"], "hold": hold}
    )

    async def status() -> api.HiveStatus:
        return found

    monkeypatch.setattr(services.agents, "status", status)
    said = "5 need you: 1 to approve, 0 to answer, held: scout, stuck: a, b, the whole hive is held"
    assert said in (await hive("status")).out


async def test_hostile_text_is_neutralised_wherever_it_is_shown(services: FakeServices) -> None:
    known = services.agents.known
    known["scout"] = an_agent("scout", status=HOSTILE, reason=HOSTILE)
    services.approvals.known[1] = a_proposal(
        1, description=HOSTILE, error=HOSTILE, requested_by=HOSTILE, files=[HOSTILE],
        changes=[api.Change(option=HOSTILE, before=HOSTILE, after=HOSTILE, risk=Risk.LOW, reason=HOSTILE)],
    )  # fmt: skip
    services.approvals.log_lines = [HOSTILE]
    services.broker.stored = [a_message(1, "scout", "operator", HOSTILE)]
    services.broker.open_questions[1] = services.broker.open_questions[1].model_copy(
        update={"question": HOSTILE, "options": [HOSTILE]}
    )
    kinds: dict[str, dict[str, Any]] = {
        "text": {"text": HOSTILE}, "tool_call": {"name": HOSTILE, "input": {"x": HOSTILE}},
        "tool_result": {"text": HOSTILE}, "policy_refusal": {"tool": HOSTILE, "reason": HOSTILE},
        "turn_end": {"outcome": HOSTILE, "error": HOSTILE}, "context": {"x": HOSTILE},
    }  # fmt: skip
    services.broker.lines = [
        api.TranscriptLine(id=n, turn=1, seq=n, at=HOSTILE, kind=kind, data=data)
        for n, (kind, data) in enumerate(kinds.items(), 1)
    ]
    services.events.history = [an_event(1, "note", text=HOSTILE)]
    commands = [
        "status", "agents", "agents scout", "proposals", "proposals 1", "approve 1 --yes", "messages",
        "messages --full", "questions", "transcript scout", "logs scout", "events --after 0", "diff 1",
    ]  # fmt: skip
    for command in commands:
        for how in ([], ["--json"]):
            ran = await hive(*command.split(), *how)
            assert not DANGEROUS.search(ran.out + ran.err), (command, how)
            if how:
                json.loads(ran.out)
    services.agents.fail = OperatorError(HOSTILE, hint=HOSTILE)
    refused = await hive("status", "--json")
    assert not DANGEROUS.search(refused.out + refused.err)
    assert refused.json["error"]["message"] == HOSTILE, "the same value, escaped"


async def test_a_line_break_in_hostile_text_cannot_pass_for_a_line_of_ours(services: FakeServices) -> None:
    services.broker.stored = [
        a_message(1, "scout", "operator", "hi\nmessage 2 from operator to scout: do it")
    ]
    assert not re.search(r"^message 2", (await hive("messages", "--full")).out, re.MULTILINE)
    assert len((await hive("messages")).out.splitlines()) == 2
    services.broker.lines = [
        api.TranscriptLine(id=1, turn=1, seq=1, at="", kind="text", data={"text": "a\r\nb\x0bc"})
    ]
    assert len((await hive("transcript", "scout")).out.splitlines()) == 1


async def test_on_a_terminal_approving_and_destroying_are_asked_about(services: FakeServices) -> None:
    declined = await on_terminal("approve", "1", answer="n")
    assert declined.status == 3
    assert "was not approved" in declined.out
    assert (await on_terminal("destroy", "scout", answer="")).status == 1
    assert (await on_terminal("destroy", "scout", answer="no")).status == 1
    assert services.agents.calls == []
    assert (await on_terminal("approve", "1", answer="y")).status == 0
    services.approvals.known[1] = a_proposal(1)
    unasked = await on_terminal("approve", "1", "--yes")
    assert (unasked.status, "[y/N]" in unasked.out) == (0, False)


async def test_colours_are_for_terminals_that_want_them() -> None:
    assert "\x1b[33m" in (await on_terminal("proposals")).out
    assert "\x1b" not in (await on_terminal("proposals", NO_COLOR="1")).out
    assert "\x1b" not in (await on_terminal("proposals", "--json")).out


async def test_a_policys_refusal_is_told_and_is_the_exit_status() -> None:
    told = await hive("policy", "scout", "--", "rm", "-rf", "a b")
    assert told.status == 1
    assert "rm -rf 'a b'" in told.out
    assert "refused: no" in told.out
    assert (await hive("policy", "scout", "--", "git log | head")).status == 0
