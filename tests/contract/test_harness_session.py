"""The contract between `harness.session` and the genuine Claude Code CLI, through claude-agent-sdk.

Each test is one sentence of what the rest of the harness relies on. The CLI runs as uid 1000 in a container
of its own; the model is scripted.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.outcomes import classify
from tests.contract.harness_session_kit import Session, calls, plays, session
from tests.fakes.container import command_of, needs_container, processes_of_agent

pytestmark = [needs_container, pytest.mark.asyncio]


def refused(message: str) -> dict[str, Any]:
    """How the gateway says no."""
    return {"status": 403, "type": "permission_error", "message": message}


async def test_a_turn_ends_with_a_good_result_and_says_what_the_context_holds(tmp_path: Path) -> None:
    async with session(tmp_path, plays("hello", {"thinking": "hm", "text": "hello to you"})) as talk:
        facts = await talk.run("hello there")
        assert classify(facts).outcome == "ok"
        assert talk.of("text") == [{"text": "hello to you"}]
        assert talk.of("context")[0]["window_tokens"] == 1_000_000
        assert talk.of("context")[0]["used_tokens"] > 0


async def test_a_denied_call_does_not_run_and_its_reason_reaches_the_model(tmp_path: Path) -> None:
    plan = plays(
        "go",
        calls("Bash", command="touch /state/x"),
        calls("Read", file_path="/etc/passwd"),
        calls("Bash", command="git --version"),
    )
    async with session(tmp_path, plan) as talk:
        assert classify(await talk.run("go")).outcome == "ok"
        assert not (tmp_path / "state/x").exists()
        refused, outside, allowed = talk.of("tool_result")
        assert "'touch /state/x' matches no allowed pattern" in refused["text"]
        assert "/etc/passwd is outside" in outside["text"]
        assert allowed["text"].startswith("git version")
        assert len(talk.of("policy_refusal")) == 2
        assert "matches no allowed pattern" in talk.model.said()


async def test_a_tool_of_ours_is_called_in_this_process_with_checked_arguments(tmp_path: Path) -> None:
    plan = plays(
        "go", calls("mcp__hyperhive__send", to="operator", body="hi"), calls("mcp__hyperhive__send", to=5)
    )
    async with session(tmp_path, plan) as talk:
        assert classify(await talk.run("go")).outcome == "ok"
        assert talk.sent == [{"to": "operator", "body": "hi"}]
        assert [one["is_error"] for one in talk.of("tool_result")] == [False, True]


async def test_an_interrupt_ends_a_request_and_a_running_tool_and_the_session_goes_on(tmp_path: Path) -> None:
    slow = plays("slow", {"stall": {"seconds": 600}})
    tool = plays("tool", calls("Bash", command="sleep 600"))
    async with session(tmp_path, slow, tool, plays("fine", {"text": "ok"})) as talk:
        for prompt in ("slow", "tool"):
            seen = len(talk.model.requests)
            await talk.begin(prompt)
            if prompt == "tool":
                await talk.until_event("tool_call")
            await asyncio.wait_for(_requested(talk, seen), 30)
            await talk.order(interrupt=True)
            facts = await talk.end()
            assert classify(facts).outcome == "cancelled"
            assert facts.result is not None
            assert (facts.result.terminal_reason or "").startswith("aborted")
        assert classify(await talk.run("fine")).outcome == "ok"
        assert not [pid for pid in processes_of_agent(talk.process) if "sleep" in command_of(pid)]


async def _requested(talk: Session, before: int) -> None:
    while len(talk.model.requests) == before:  # noqa: ASYNC110 - a log without an event
        await asyncio.sleep(0.01)


async def test_a_killed_cli_leaves_nothing_behind_and_the_next_turn_remembers(tmp_path: Path) -> None:
    plans = [
        plays("remember", {"text": "The word is tulip."}),
        plays("work", calls("Bash", command="sleep 600")),
        plays("what", {"text": "tulip"}),
    ]
    async with session(tmp_path, *plans) as talk:
        await talk.run("remember")
        await talk.begin("work")
        await talk.until_event("tool_call")
        for pid in processes_of_agent(talk.process):
            if "stream-json" in command_of(pid):
                os.kill(pid, signal.SIGKILL)
        facts = await talk.end()
        assert (facts.result, classify(facts).outcome) == (None, "crashed")
        assert "-9" in facts.gone
        assert processes_of_agent(talk.process) == []
        assert classify(await talk.run("what was it")).outcome == "ok"
        assert "The word is tulip." in talk.model.said()


async def test_a_closed_session_is_resumed_with_its_history_and_another_model(tmp_path: Path) -> None:
    plans = [plays("remember", {"text": "The word is tulip."}), plays("what", {"text": "tulip"})]
    async with session(tmp_path, *plans) as talk:
        await talk.run("remember")
        await talk.do(close=True)
        assert processes_of_agent(talk.process) == []
        await talk.do(model="claude-opus-5")
        await talk.run("what was it")
        assert "The word is tulip." in talk.model.said()
        assert talk.model.requests[-1]["model"] == "claude-opus-5"
        await talk.do(model="claude-haiku-4-5")
        await talk.run("what was it")
        assert talk.model.requests[-1]["model"] == "claude-haiku-4-5"


async def test_a_live_session_takes_another_model_and_knows_what_was_said_before(tmp_path: Path) -> None:
    plans = [plays("remember", {"text": "The word is tulip."}), plays("what", {"text": "tulip"})]
    async with session(tmp_path, *plans) as talk:
        await talk.run("remember")
        before = processes_of_agent(talk.process)
        await talk.do(model="claude-opus-5")
        assert classify(await talk.run("what was it")).outcome == "ok"
        assert talk.model.requests[-1]["model"] == "claude-opus-5"
        assert "The word is tulip." in talk.model.said()
        assert talk.of("model") == [{"model": "claude-opus-5"}]
        assert processes_of_agent(talk.process) == before  # the same process, which was not started anew


async def test_an_api_failure_is_told_by_its_status(tmp_path: Path) -> None:
    limited = {
        "status": 429,
        "type": "rate_limit_error",
        "message": "try again in 90 s",
        "headers": {"retry-after": "3600"},
    }
    plans = [
        plays("busy", {"error": limited}),
        plays("broken", {"error": {"status": 500}}),
        plays("spent", {"error": refused("refused by budget: $0.0010 of $1 for today are left")}),
        plays("dear", {"error": refused("the model claude-opus-5 is not allowed here; allowed: haiku")}),
        plays("stranger", {"error": {"status": 401, "type": "authentication_error", "message": "who"}}),
    ]
    async with session(tmp_path, *plans) as talk:
        verdict = classify(await talk.run("busy"))
        assert (verdict.outcome, verdict.retry_after_s) == ("rate_limited", 90.0)
        assert classify(await talk.run("broken")).outcome == "unavailable"
        assert classify(await talk.run("stranger")).outcome == "auth"
        assert classify(await talk.run("spent")).outcome == "budget"
        assert classify(await talk.run("dear")).outcome == "model_refused"


async def test_a_model_that_says_nothing_is_given_up_after_the_stall_limit(tmp_path: Path) -> None:
    async with session(tmp_path, plays("slow", {"stall": {"seconds": 600}}), HIVE_STALL_S="2") as talk:
        facts = await talk.run("slow")
        assert facts.stalled
        assert classify(facts).outcome == "stalled"
