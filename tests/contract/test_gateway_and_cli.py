"""What the genuine Claude Code CLI sends passes the gateway; what is refused it gives up at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.gateway.messages import Added
from reconciler.model.days import local_day
from tests.integration.gateway_kit import SECRET, WAIT_S, Lab, lab_folder, policy, until
from tests.support.needs import needs_root

ROOT = Path(__file__).parents[2]
NOBODY = 65534
CLI = next(ROOT.glob(".venv-harness/lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"), None)

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.integration,
    pytest.mark.skipif(CLI is None, reason="no Claude Code CLI: run `make deps`"),
    needs_root,
]


class Inside:
    """The CLI as a harness runs it: as another user, with a port of 127.0.0.1 that leads to model.sock."""

    def __init__(self, lab: Lab, url: str) -> None:
        self.lab, self.url = lab, url
        self.home = lab.root / "home"

    async def turn(self, prompt: str, *arguments: str) -> dict[str, Any]:
        """The result of one turn."""
        process = await asyncio.create_subprocess_exec(
            str(CLI), "--print", "--output-format", "json", "--setting-sources", "", "--strict-mcp-config",
            "--system-prompt", "You are `scout`.", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.home, user=NOBODY, group=NOBODY, extra_groups=[], env={
                "HOME": str(self.home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(self.home),
                "CLAUDE_CODE_TMPDIR": str(self.home), "ANTHROPIC_API_KEY": "dummy",
                "ANTHROPIC_BASE_URL": self.url, "DISABLE_TELEMETRY": "1", "DISABLE_AUTOUPDATER": "1",
                "DISABLE_ERROR_REPORTING": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "2",
            },
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(prompt.encode()), WAIT_S)
        assert out, err.decode()
        result: dict[str, Any] = json.loads(out)
        return result


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@pytest_asyncio.fixture
async def inside() -> AsyncIterator[Inside]:
    with lab_folder() as lab:
        forwarding: set[asyncio.Task[None]] = set()

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            out, back = await asyncio.open_unix_connection(lab.socket())
            for source, target in ((reader, back), (out, writer)):
                forwarding.add(asyncio.create_task(_pipe(source, target)))

        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        made = Inside(lab, f"http://127.0.0.1:{port}")
        made.home.mkdir()
        os.chown(made.home, NOBODY, NOBODY)
        yield made
        server.close()
        await asyncio.gather(*forwarding)
        shutil.rmtree(made.home)


async def test_turns_with_every_model_and_with_changing_tools_pass(inside: Inside) -> None:
    lab = inside.lab
    async with lab.scripted({"text": "hi"}), lab.served() as client:
        results = [
            await inside.turn("one", "--model", "haiku", "--tools", "Read"),
            await inside.turn("two", "--model", "sonnet", "--tools", "Bash,Read", "--continue"),
            await inside.turn(
                "three", "--model", "opus", "--tools", "Bash", "--continue", "--effort", "high"
            ),
            await inside.turn("four", "--model", "fable", "--tools", "", "--continue"),
            await inside.turn("five", "--model", "haiku"),
        ]
        assert [result["result"] for result in results] == ["hi"] * 5
        assert lab.refusals == []
        spent = {row.model: row for row in await client.spending("2000-01-01")}
        assert len(spent) == 4
        assert spent["claude-haiku-5-5"].requests == 2
        told = results[0]["total_cost_usd"] + results[4]["total_cost_usd"]
        # the CLI counts the same tokens at the same prices; each request is rounded up to a micro-dollar
        assert abs(spent["claude-haiku-5-5"].usd_micro - told * 1e6) <= 2
        assert all(dict(seen.headers)["x-api-key"] == SECRET for seen in lab.seen)


async def test_counting_tokens_passes(inside: Inside) -> None:
    async with inside.lab.scripted({"text": "hi"}), inside.lab.served():
        assert (await inside.turn("/context", "--model", "haiku"))["is_error"] is False
        assert {seen.path for seen in inside.lab.seen} == {"/v1/messages/count_tokens?beta=true"}


@pytest.mark.parametrize(("limits", "words"), [
    ({"models": ("opus",)}, "the model 'claude-haiku-5-5' is not allowed"),
    ({"budget_tokens_turn": 10}, "refused by budget"),
])  # fmt: skip
async def test_a_refusal_ends_the_turn_at_once_with_its_words(
    inside: Inside, limits: dict[str, Any], words: str
) -> None:
    lab = inside.lab
    async with lab.scripted({"text": "hi"}), lab.served(policy(**limits)):
        result = await inside.turn("one", "--model", "haiku")
        assert (result["is_error"], result["api_error_status"]) == (True, 403)
        assert words in result["result"]
        assert len(lab.refusals) == 1


async def test_a_day_that_is_used_up_ends_the_turn_in_words_and_a_raise_lets_the_conversation_go_on(
    inside: Inside,
) -> None:
    lab = inside.lab
    step = {"text": "hi", "usage": {"input_tokens": 1000, "output_tokens": 50_000}}
    small = policy(budget_usd_day=0.0255)
    async with lab.scripted(step), lab.served(small) as client:
        first = await inside.turn("one", "--model", "haiku")
        assert (first["is_error"], first["result"]) == (False, "hi")
        second = await inside.turn("two", "--model", "haiku", "--continue")
        assert (second["is_error"], second["api_error_status"]) == (True, 403)
        assert "refused by budget: $0.02" in second["result"]
        assert "of this agent's $0.0255 for today are spent" in second["result"]
        assert lab.refusals[-1].closure == client.closures["scout"]
        more = Added(day=local_day(time.time()), usd_micro=1_000_000)
        await client.configure([small.model_copy(update={"added": more})])
        again = await inside.turn("four", "--model", "haiku", "--continue")
        assert again["result"] == "hi"
        assert b"one" in lab.seen[-1].body
        assert client.spent_micro(more.day)["scout"] > 50_000


async def test_a_stream_that_is_cut_and_tried_again_is_paid_each_time_and_never_beyond_the_budget(
    inside: Inside,
) -> None:
    lab = inside.lab
    cut = {"text": "word " * 50, "cut": 3, "usage": {"input_tokens": 1000, "output_tokens": 500}}
    async with lab.scripted(cut), lab.served(policy(budget_usd_day=0.05)) as client:
        result = await inside.turn("one", "--model", "haiku")
        assert result["is_error"] is True
        messages = [seen for seen in lab.seen if "count_tokens" not in seen.path]
        await until(lambda: len(lab.usage) == len(messages))
        assert not any(event.certain for event in lab.usage)
        assert sum(client.spent_micro(local_day(time.time())).values()) <= 50_000
        assert (
            sum(event.usd_micro for event in lab.usage) == client.spent_micro(local_day(time.time()))["scout"]
        )


@pytest.mark.parametrize("served", [True, False])
async def test_a_retired_model_that_the_cli_replaces_without_a_word_is_told(
    inside: Inside, served: bool
) -> None:
    lab = inside.lab
    models = ("claude-opus-4-1", "opus") if served else ("claude-opus-4-1", "haiku")
    asked = policy(models=models, turn=7, asked_model="claude-opus-4-1")
    async with lab.scripted({"text": "hi"}), lab.served(asked):
        result = await inside.turn("one", "--model", "claude-opus-4-1")
        await until(lambda: len(lab.models) == 1)
        told = lab.models[0]
        assert (told.turn, told.asked, told.requested) == (7, "claude-opus-4-1", "claude-opus-5-5")
        if served:
            assert result["result"] == "hi"
        else:
            assert "this turn was given 'claude-opus-4-1'" in result["result"]
            assert lab.seen == []


async def test_the_cli_asks_no_other_model_on_the_side(inside: Inside) -> None:
    """Were it to use a small model for a title or a summary, an agent without haiku would be refused."""
    lab = inside.lab
    async with lab.scripted({"text": "hi"}), lab.served(policy(models=("opus",), asked_model="opus")):
        for prompt in ("one", "/compact"):
            result = await inside.turn(
                prompt, "--model", "opus", *([] if prompt == "one" else ["--continue"])
            )
            assert result["is_error"] is False, result
        assert {json.loads(seen.body)["model"] for seen in lab.seen} == {"claude-opus-5-5"}
        assert lab.models == []
        assert {refusal.reason for refusal in lab.refusals} <= {"request"}  # a beta it can do without
