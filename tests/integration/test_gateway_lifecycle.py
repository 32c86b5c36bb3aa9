"""Gateway and hived come and go: sockets, policies, and money survive what either of them goes through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import structlog
from aiohttp import web

from reconciler.errors import TemporaryError
from reconciler.gateway.app import control_path, ledger_dir
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.messages import VERSION, AskSpending, DropAgent, Hello, SetAgent
from reconciler.gateway.packets import Packets
from reconciler.store.ledger import Ledger
from tests.integration.gateway_kit import MODEL, WAIT_S, Lab, body, lab_folder, policy, until
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio
ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_folder() as made:
        yield made


# --------------------------------------------------------------------------------- hived away and back
async def test_requests_go_on_while_hived_is_away_and_it_learns_what_they_cost(
    lab: Lab,
) -> None:
    async with lab.scripted({"text": "hi", "usage": {"output_tokens": 5}}), lab.gateway():
        async with lab.client(policy(turn=1)):
            assert (await lab.ask()).status == 200
            inode = lab.socket().stat().st_ino
        assert (await lab.ask()).status == 200
        async with lab.client(policy(turn=1)) as client:
            assert lab.socket().stat().st_ino == inode, "the socket in place is kept"
            assert [row.requests for row in await client.rows()] == [2]
            assert (await lab.ask()).status == 200
            await until(lambda: len(lab.usage) == 2)
            assert [row.requests for row in await client.rows()] == [3]


async def test_a_stream_that_is_under_way_survives_hived(lab: Lab) -> None:
    may_end = asyncio.Event()
    async with lab.upstream(_slow_until(may_end)), lab.gateway(), contextlib.AsyncExitStack() as stack:
        async with lab.client(policy()):
            session = await stack.enter_async_context(lab.session())
            answer = await session.post("http://model/v1/messages", json=body(stream=True))
            await answer.content.readany()
        async with lab.client(policy()) as client:
            may_end.set()
            assert b"message_stop" in await answer.read()
            await until(lambda: len(lab.usage) == 1)
            assert [row.output_tokens for row in await client.rows()] == [4]


async def test_a_hived_that_has_not_read_its_rows_yet_cuts_nobody_off(lab: Lab) -> None:
    may_end = asyncio.Event()
    async with lab.upstream(_slow_until(may_end)), lab.gateway(), contextlib.AsyncExitStack() as stack:
        async with lab.client(policy()):
            session = await stack.enter_async_context(lab.session())
            answer = await session.post("http://model/v1/messages", json=body(stream=True))
            await answer.content.readany()
        client = GatewayClient(lab.root / "run", on_usage=lab.usage.append)
        running = asyncio.create_task(client.run())
        await until(lambda: client._connection is not None and bool(client._connection.held))
        for _ in range(3):  # answers come in order: whatever it asked for by itself is done by now
            await client.spending("2026-01-01")
        assert not client.connected
        may_end.set()
        assert b"message_stop" in await answer.read()
        await until(lambda: len(lab.usage) == 1)
        await client.configure([policy()])
        await until(lambda: client.connected)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_an_agent_that_is_dropped_is_cut_off_even_if_hived_goes_away_meanwhile(lab: Lab) -> None:
    never = asyncio.Event()
    async with lab.upstream(_slow_until(never)), lab.gateway(), contextlib.AsyncExitStack() as stack:
        async with lab.client(policy()):
            session = await stack.enter_async_context(lab.session())
            answer = await session.post("http://model/v1/messages", json=body(stream=True))
            await answer.content.readany()
        packets = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        await packets.send(DropAgent(id=1, agent="scout").model_dump_json().encode())
        await until(lambda: not _somebody_listens(lab.socket()))
        next_one = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
        never.set()
        packets.close()
        next_one.close()


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _slow_until(may_end: asyncio.Event) -> web.Application:
    """A model whose answer begins at once and ends with the event."""

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n')
        await may_end.wait()
        await response.write(b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n')
        await response.write(b'data: {"type":"message_stop"}\n\n')
        return response

    app = web.Application()
    app.router.add_post("/v1/messages", slow)
    return app


async def test_hived_brings_the_gateway_to_exactly_what_shall_be(lab: Lab) -> None:
    lab.agent_folder("smith")
    async with lab.scripted({"text": "hi"}), lab.gateway():
        async with lab.client(policy("scout"), policy("smith")) as client:
            assert (await lab.ask(agent="smith")).status == 200
            await client.configure([policy("scout")])
            assert not lab.socket("smith").exists()
            assert (await lab.ask()).status == 200
        async with lab.client() as client:
            with pytest.raises(aiohttp.ClientError):
                await lab.ask()
            lab.socket().unlink()
            await client.configure([policy("scout")])
            assert (await lab.ask()).status == 200


async def test_an_agent_without_a_run_directory_is_a_problem_of_its_own_until_there_is_one(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.gateway(), AsyncExitStack() as stack:
        with structlog.testing.capture_logs() as logged:
            client = await stack.enter_async_context(lab.client(policy("scout"), policy("late")))
        assert list(client.problems) == ["late"]
        assert {line["log_level"] for line in logged} == {"info"}
        assert (await lab.ask()).status == 200
        lab.agent_folder("late")
        await client.configure([policy("scout"), policy("late")])
        assert client.problems == {}
        assert (await lab.ask(agent="late")).status == 200


async def test_a_socket_that_somebody_removed_is_made_again(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.gateway(), lab.client(policy()) as client:
        lab.socket().unlink()
        await client.configure([policy()])
        assert (await lab.ask()).status == 200
    async with lab.scripted({"text": "hi"}), lab.gateway():
        async with lab.client(policy()):
            pass
        lab.socket().unlink()
        async with lab.client(policy()):
            assert (await lab.ask()).status == 200


# -------------------------------------------------------------------------------- the gateway restarts
async def test_a_request_that_comes_while_the_gateway_restarts_waits_for_it(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), contextlib.AsyncExitStack() as stack:
        async with lab.gateway():
            client = await stack.enter_async_context(lab.client(policy()))
            assert (await lab.ask()).status == 200
        await until(lambda: not client.connected)
        waiting = asyncio.create_task(lab.ask())
        with pytest.raises(TemporaryError):
            await client.spending("2000-01-01")
        assert [row.requests for row in await client.rows()] == [1], "what was known stays known"
        async with lab.gateway():
            assert (await waiting).status == 200
            await until(lambda: client.connected)
            await until(lambda: len(lab.usage) == 2)
            assert [row.requests for row in await client.rows()] == [2]


@contextlib.asynccontextmanager
async def process(lab: Lab) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The gateway as the program that a host runs."""
    config = lab.root / "config.json"
    config.write_text(lab.config.model_dump_json())
    command = [sys.executable, "-m", "reconciler.gateway", "--config", str(config)]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)  # noqa: ASYNC220 - it returns at once
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        await asyncio.to_thread(running.wait, WAIT_S)
        assert running.stderr is not None
        running.stderr.close()


async def test_a_killed_gateway_charges_what_was_under_way_once_and_serves_again(lab: Lab) -> None:
    begun = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        begun.set()
        await asyncio.sleep(600)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/messages", silent)
    raw = json.dumps(body()).encode()
    async with lab.upstream(app), contextlib.AsyncExitStack() as stack:
        async with process(lab) as running:
            client = await stack.enter_async_context(lab.client(policy()))
            lost = asyncio.create_task(lab.ask(raw))
            await begun.wait()
            running.kill()
            with pytest.raises(aiohttp.ClientError):
                await lost
            await until(lambda: not client.connected)  # it may notice later than the agent
        for _ in range(2):
            async with process(lab) as running:
                await until(lambda: client.connected)
                [row] = await client.spending("2000-01-01")
                assert (row.requests, row.input_tokens, row.output_tokens) == (1, len(raw), 100)
                running.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(running.wait, WAIT_S) == 0
            await until(lambda: not client.connected)


async def test_the_program_says_in_one_line_why_it_cannot_start(lab: Lab) -> None:
    (lab.root / "state/gateway").rmdir()
    (lab.root / "state/gateway").write_text("in the way")
    async with process(lab) as running:
        assert await asyncio.to_thread(running.wait, WAIT_S) == 1
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()


# ---------------------------------------------------------------------------------- the control socket
@needs_root
async def test_only_root_and_the_gateways_own_user_may_control_it(lab: Lab) -> None:
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(10); s.connect(sys.argv[1])\n"
        "try:\n"
        "    s.send(sys.argv[2].encode()); print(len(s.recv(1000)))\n"
        "except ConnectionError: print(0)\n"
    )
    hello = Hello(id=1, version=VERSION).model_dump_json()

    def received(uid: int) -> int:
        return int(subprocess.run(
            ["/usr/bin/python3", "-c", script, str(control_path(lab.config)), hello],
            capture_output=True, text=True, check=True, timeout=20, user=uid, group=uid, extra_groups=[],
        ).stdout)  # fmt: skip

    async with lab.gateway():
        path = control_path(lab.config)
        await until(path.exists)
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o666)
        assert await asyncio.to_thread(received, 65534) == 0
        assert await asyncio.to_thread(received, 0) > 0


@pytest.mark.parametrize(
    "text",
    [b"no json", b"{}", b'{"op":"set","id":1}', b"[]", b"\xff", b'{"op":"drop","id":1,"agent":"../x"}'],
)
async def test_what_is_no_request_ends_the_connection_and_nothing_else(lab: Lab, text: bytes) -> None:
    async with lab.scripted({"text": "hi"}), lab.gateway():
        await until(control_path(lab.config).exists)
        stranger = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        await stranger.send(text)
        with pytest.raises(Exception, match="gone"):
            await stranger.receive()
        stranger.close()
        async with lab.client(policy()):
            assert (await lab.ask()).status == 200


async def test_a_descriptor_that_is_no_listening_socket_is_refused(lab: Lab) -> None:
    async with lab.gateway():
        await until(control_path(lab.config).exists)
        packets = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        ends = socket.socketpair()
        request = SetAgent(id=1, policy=policy(), socket="x").model_dump_json().encode()
        with (lab.root / "credential").open("rb") as file:
            for fds in ([file.fileno()], [ends[0].fileno()], []):
                await packets.send(request, fds)
                told = json.loads((await packets.receive())[0])
                assert "socket" in told["error"]
        packets.close()
        for end in ends:
            end.close()


async def test_a_second_hived_takes_over_from_the_first(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.gateway(), lab.client(policy()):
        packets = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        await packets.send(Hello(id=1, version=VERSION).model_dump_json().encode())
        assert json.loads((await packets.receive())[0])["held"].keys() == {"scout"}
        packets.close()


async def test_another_version_of_the_protocol_is_refused_in_words(lab: Lab) -> None:
    async with lab.gateway():
        await until(control_path(lab.config).exists)
        packets = await Packets.connect(str(control_path(lab.config)), timeout_s=WAIT_S)
        await packets.send(Hello(id=1, version=99).model_dump_json().encode())
        assert "version" in json.loads((await packets.receive())[0])["error"]
        packets.close()


async def test_spending_of_any_length_comes_in_pages(lab: Lab) -> None:
    from reconciler.store.ledger import Ceilings, Cost, Entry, Tokens

    ledger = await Ledger.open(ledger_dir(lab.config))
    for day in range(10, 31):
        for agent in range(12):
            entry = Entry(f"a{agent}", f"2026-10-{day}", MODEL, "t")
            reserved = await ledger.reserve(entry, Cost(Tokens(1, 1), 1), Ceilings())
            assert isinstance(reserved, int)
            await ledger.settle(reserved, None)
    await ledger.close()
    async with lab.gateway():
        client = GatewayClient(lab.root / "run")
        await client.configure([])
        running = asyncio.create_task(client.run())
        await until(lambda: client.connected)
        assert len(await client.spending("2026-10-01")) == 252
        assert len(await client.spending("2026-10-30")) == 12
        assert len(await client.rows()) == 252
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert AskSpending(id=1, since="2026-10-01").after == ("", "", "")
