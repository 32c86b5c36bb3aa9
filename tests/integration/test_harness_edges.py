"""The edges of the harness: the first hello, PID 1, the model's port, the tools."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator

from harness.forward import Forwarder
from harness.hello import say_hello
from harness.link import Link
from harness.programs import AgentPrograms
from harness.tools import Status, Tool, ToolContext, agent_tools, manager_tools
from harness.tools.tool import arguments_schema
from harness.trees import Trees
from harness.wire import WIRE_VERSION, Welcome
from reconciler.effects.containers import proc
from tests.fakes.agenthost import FakeHost, Refusal, welcome

BOOT = "0123456789abcdef" * 2
REPO = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    played = FakeHost(tmp_path, welcome())
    await played.start()
    yield played
    await played.stop()


# ------------------------------------------------------------------------------------------------ hello


@pytest.mark.asyncio
async def test_the_first_hello_waits_for_a_host_that_is_late_and_says_each_trouble_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = FakeHost(tmp_path, welcome())
    host.refuse["hello"] = Refusal(409, "conflict", "not approved yet")
    pauses: list[float] = []
    loop = asyncio.get_running_loop()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            asyncio.run_coroutine_threadsafe(host.start(), loop).result(10)
        if len(pauses) == 5:
            host.refuse.clear()

    answer = await asyncio.to_thread(say_hello, str(host.path), BOOT, WIRE_VERSION, sleep)
    await host.stop()
    assert Welcome.model_validate_json(answer) == host.told
    assert pauses == sorted(pauses)
    assert max(pauses) <= 1.0
    told = capsys.readouterr().err
    assert told.count("the host is away") == 1
    assert told.count("not approved yet") == 1


# ------------------------------------------------------------------------------------------------ PID 1


_WAITING = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("up", flush=True)
signal.pause()
"""


def split(code: str) -> subprocess.Popen[str]:
    program = f"from harness.init import split_off_init\nsplit_off_init()\n{code}"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPO)


def test_the_exit_status_of_the_harness_is_that_of_the_container() -> None:
    with split("raise SystemExit(7)") as process:
        assert process.wait(10) == 7
    with split("import os\nos.kill(os.getpid(), 9)") as process:
        assert process.wait(10) == 137


def test_a_stop_signal_is_passed_on_even_if_it_comes_at_once() -> None:
    with split(_WAITING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 3


def test_the_first_process_is_seen_to_listen_to_the_stop_signal() -> None:
    """Else whoever stops a container waits for it to be up until a deadline, each time."""
    with split(_WAITING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        deadline = time.monotonic() + 5
        while not proc.minds(process.pid, signal.SIGTERM):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 3


# ------------------------------------------------------------------------------------------------ forward


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def forwarding(socket: Path, *, hold_s: float = 30.0) -> AsyncIterator[tuple[int, list[int]]]:
    """A forwarder to the socket: its port, and a list that grows with every block from the other side."""
    moved: list[int] = []
    async with Forwarder(socket, lambda: moved.append(1), hold_s=hold_s).serving(0) as port:
        yield port, moved


@pytest.mark.asyncio
async def test_bytes_go_both_ways_and_count_as_a_sign_of_life(tmp_path: Path) -> None:
    upstream = await asyncio.start_unix_server(_echo, tmp_path / "model.sock")
    async with forwarding(tmp_path / "model.sock") as (port, moved), upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 300_000)
        assert await reader.readexactly(300_000) == b"x" * 300_000
        assert moved
        writer.close()


@pytest.mark.asyncio
async def test_a_connection_is_held_while_the_gateway_is_away(tmp_path: Path) -> None:
    async with forwarding(tmp_path / "model.sock") as (port, _moved):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"early")
        await writer.drain()
        async with await asyncio.start_unix_server(_echo, tmp_path / "model.sock"):
            assert await reader.readexactly(5) == b"early"
            writer.close()


@pytest.mark.asyncio
async def test_a_gateway_that_stays_away_ends_the_connection(tmp_path: Path) -> None:
    async with forwarding(tmp_path / "model.sock", hold_s=0.05) as (port, _moved):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.asyncio
async def test_the_65th_connection_is_closed_at_once(tmp_path: Path) -> None:
    async with forwarding(tmp_path / "model.sock", hold_s=5.0) as (port, _moved):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 2) == b""
        for _reader, open_writer in [*held, (reader, writer)]:
            open_writer.close()


# ------------------------------------------------------------------------------------------------ tools


@contextlib.asynccontextmanager
async def toolbox(host: FakeHost, folder: Path) -> AsyncIterator[dict[str, Tool]]:
    link = Link(host.path, BOOT, host.told, on_welcome=lambda _: None)
    trees = Trees(
        "scout", folder / "config", folder / "agents", AgentPrograms(os.environ, prefix=()), link.bundle
    )
    status = Status("scout", "agent", "haiku", 3, "s", ("operator",), (50, 200), ("git *",))
    context = ToolContext(link, trees, lambda: status)
    try:
        await link.hello()
        yield {tool.name: tool for tool in (*agent_tools(context), *manager_tools(context))}
    finally:
        await link.close()


def told(answer: dict[str, object]) -> tuple[str, bool]:
    """Text and error flag of a tool's answer."""
    content = answer["content"]
    assert isinstance(content, list)
    return content[0]["text"], bool(answer["is_error"])


@pytest.mark.asyncio
async def test_the_tools_are_those_of_the_role_with_valid_closed_schemas(
    host: FakeHost, tmp_path: Path
) -> None:
    async with toolbox(host, tmp_path) as tools:
        assert " ".join(tools) == (
            "recv send ask_operator nap set_status get_status propose "
            "request_spawn request_spawn_draft request_spawn_commit request_apply_commit "
            "start stop restart list_agents get_logs"
        )
        for tool in tools.values():
            Draft202012Validator.check_schema(tool.schema)
            assert tool.schema["additionalProperties"] is False
            assert tool.limit_s <= 20 or tool.name == "recv"


@pytest.mark.asyncio
async def test_each_tool_is_one_call_and_says_what_became_of_it(host: FakeHost, tmp_path: Path) -> None:
    async with toolbox(host, tmp_path) as tools:
        assert told(await tools["ask_operator"].call({"question": "why?"}))[0].startswith(
            "asked as question 7"
        )
        assert (
            "woken before 2026-01-01T00:00:00Z (60 s from now)"
            in told(await tools["nap"].call({"seconds": 60}))[0]
        )
        for seconds in (0, 86_401, -1, 1.5, "60", True):
            text, failed = told(await tools["nap"].call({"seconds": seconds}))
            assert failed
            assert "1 to 86400 whole seconds" in text
        assert told(await tools["set_status"].call({"text": "busy"})) == ("set", False)
        assert told(await tools["request_spawn"].call({"name": "scribe"}))[0].startswith("proposal 11 for")
        assert told(await tools["start"].call({"name": "smith"})) == ("start of smith is on its way", False)
        assert told(await tools["list_agents"].call({})) == ("there are no agents", False)
        assert told(await tools["get_logs"].call({"name": "smith"})) == ("log of smith", False)
        status = told(await tools["get_status"].call({}))[0].split("\n")
        for line in (
            "context: 50 of 200 tokens (25 %)",
            "nap until: 2026-01-01T00:01:00Z, after this turn",
            "budget today: $1.2500 left of $5.00, until 2026-01-02T00:00:00Z",
            "inbox: 2 waiting",
            "question 7 is open: why?",
            "may send to: manager, operator",
            "allowed shell commands: git *",
            "network.allow: none",
        ):
            assert line in status
        kinds = [kind for kind, _ in host.calls]
        assert kinds == ["questions", "nap", "status", "spawns", "start"]


@pytest.mark.asyncio
async def test_whatever_goes_wrong_is_an_answer_with_the_reason(host: FakeHost, tmp_path: Path) -> None:
    async with toolbox(host, tmp_path) as tools:
        assert told(await tools["send"].call({"to": "smith", "body": "x"})) == (
            "send failed: scout may not send to smith (see send.allow)",
            True,
        )
        assert "no turn" in told(await tools["recv"].call({}))[0]
        assert told(await tools["propose"].call({"commit": "main", "description": ""}))[1]
        words, is_error = told(await tools["send"].call({"to": "operator", "body": "\ud800"}))
        assert (words, is_error) == ("sent as message 1", False)
        assert host.sent[0].body == "\N{REPLACEMENT CHARACTER}"
        assert "send failed" in told(await tools["send"].call({"to": "operator", "body": "x" * 70_000}))[0]


@pytest.mark.asyncio
async def test_a_tool_that_takes_too_long_is_given_up() -> None:
    async def hangs(_arguments: object) -> str:
        await asyncio.Event().wait()
        return ""

    tool = Tool("slow", "", arguments_schema({}), hangs, limit_s=0.01)
    assert told(await tool.call({})) == ("slow took longer than 0 s and was given up", True)
