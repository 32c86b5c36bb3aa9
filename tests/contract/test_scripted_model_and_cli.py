"""The genuine Claude Code CLI takes the scripted server for the Messages API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from reconciler.scripted.scenario import Scenario
from reconciler.scripted.server import Log, ScriptedModel
from tests.support.needs import needs_root

ROOT = Path(__file__).parents[2]
NOBODY = 65534
TURN_S = 60.0
CLI = next(ROOT.glob(".venv-harness/lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"), None)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CLI is None, reason="no Claude Code CLI: run `make deps`"),
    needs_root,
]

BASH = {"tools": [{"name": "Bash", "input": {"command": "echo $((6 * 7))", "description": "multiply"}}]}
SCENARIOS = [
    {"name": "tool", "when": {"agent": "scout", "prompt": "^multiply$", "tools": ["Bash"]}, "steps": [
        {"thinking": "I let the shell do it.", "text": "One moment.", **BASH},
        {"capture": {"product": "^(\\d+)$"}, "text": "It is ${product}."}]},
    {"name": "again", "when": {"prompt": "^again$"}, "steps": [{"text": "A second turn.\nOf two lines."}]},
    {"name": "refused", "when": {"prompt": "^forbidden$"}, "steps": [
        {"tools": [{"name": "Bash", "input": {"command": "touch /tmp/x | sh"}}]},
        {"expect": "error", "text": "I was refused."}]},
    {"name": "full", "when": {"prompt": "^overload$"}, "steps": [
        {"error": {"status": 529, "type": "overloaded_error", "message": "Overloaded"}}]},
    {"name": "cut", "when": {"prompt": "^cut$"}, "steps": [
        {"cut": 4, "text": "The first half of it, which is longer than one piece of the stream is."}]},
    {"name": "long", "when": {"prompt": "^long$"}, "steps": [
        {"stop_reason": "max_tokens", "text": "part one"}, {"text": "part two"}]},
]  # fmt: skip


@dataclass
class Turn:
    status: int
    events: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def texts(self) -> list[str]:
        said = [event["message"]["content"] for event in self.events if event["type"] == "assistant"]
        return [block["text"] for content in said for block in content if block["type"] == "text"]


class Lab:
    """A scripted server on a port of 127.0.0.1, and turns of the CLI as `nobody` in a home of its own."""

    def __init__(self, url: str, log: Log, home: Path) -> None:
        self.url, self.log, self.home = url, log, home

    async def turn(self, prompt: str, *arguments: str) -> Turn:
        process = await asyncio.create_subprocess_exec(
            str(CLI), "--print", "--verbose", "--output-format", "stream-json", "--model", "haiku",
            "--tools", "Bash", "--allowedTools", "Bash(echo *)", "--setting-sources", "",
            "--strict-mcp-config",
            "--system-prompt", "You are `scout`, an agent.", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.home, user=NOBODY, group=NOBODY, extra_groups=[], env={
                "HOME": str(self.home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(self.home),
                "CLAUDE_CODE_TMPDIR": str(self.home), "ANTHROPIC_API_KEY": "dummy",
                "ANTHROPIC_BASE_URL": self.url,
                "DISABLE_TELEMETRY": "1", "DISABLE_AUTOUPDATER": "1", "DISABLE_ERROR_REPORTING": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_MAX_RETRIES": "1",
            },
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(prompt.encode()), TURN_S)
        events = [json.loads(line) for line in out.splitlines()]
        assert events, err.decode()
        return Turn(process.returncode or 0, events)

    def steps(self) -> list[tuple[str, str]]:
        return [(entry["scenario"], entry["step"]) for entry in self.log.after(0)]


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[Lab]:
    log = Log()
    model = ScriptedModel([Scenario.model_validate(scenario) for scenario in SCENARIOS], log)
    runner = web.AppRunner(model.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    home = Path(tempfile.mkdtemp(prefix="scripted-"))
    os.chown(home, NOBODY, NOBODY)
    yield Lab(f"http://127.0.0.1:{runner.addresses[0][1]}", log, home)
    await runner.cleanup()
    shutil.rmtree(home)


@pytest.mark.asyncio
async def test_a_streamed_turn_with_a_tool_and_the_next_turn_of_the_same_session(lab: Lab) -> None:
    turn = await lab.turn("multiply")
    assert (turn.status, turn.result["is_error"], turn.result["result"]) == (0, False, "It is 42.")
    assert turn.texts == ["One moment.", "It is 42."]
    assert turn.result["usage"]["output_tokens"] == sum(
        e["answer"]["usage"]["output_tokens"] for e in lab.log.after(0)
    )
    again = await lab.turn("again", "--continue")
    assert again.result["result"] == "A second turn.\nOf two lines."
    assert lab.steps() == [("tool", "steps[0]"), ("tool", "steps[1]"), ("again", "steps[0]")]
    assert all(entry["streaming"] and entry["agent"] == "scout" for entry in lab.log.after(0))


@pytest.mark.asyncio
async def test_a_refused_call_reaches_the_branch_that_expects_it(lab: Lab) -> None:
    turn = await lab.turn("forbidden")
    assert turn.result["result"] == "I was refused."
    assert [denied["tool_name"] for denied in turn.result["permission_denials"]] == ["Bash"]


@pytest.mark.asyncio
async def test_an_error_is_retried_with_the_same_answer_and_then_told(lab: Lab) -> None:
    turn = await lab.turn("overload")
    assert (turn.status, turn.result["api_error_status"]) == (1, 529)
    assert lab.steps() == [("full", "steps[0]")] * 2


@pytest.mark.asyncio
async def test_what_the_cli_asks_when_an_answer_ended_too_early_is_the_next_step(lab: Lab) -> None:
    turn = await lab.turn("long")
    assert (turn.status, turn.result["is_error"]) == (0, False)
    assert lab.steps() == [("long", "steps[0]"), ("long", "steps[1]")]


@pytest.mark.asyncio
async def test_a_stream_that_breaks_each_time_is_at_last_asked_for_in_one_piece(lab: Lab) -> None:
    turn = await lab.turn("cut")
    assert turn.result["result"] == "The first half of it, which is longer than one piece of the stream is."
    assert [entry["streaming"] for entry in lab.log.after(0)][-1] is False


@pytest.mark.asyncio
async def test_counting_tokens_is_answered(lab: Lab) -> None:
    turn = await lab.turn("/context")
    assert turn.status == 0
    assert {entry["path"] for entry in lab.log.after(0)} == {"/v1/messages/count_tokens"}
