"""The stream of events of the control API."""

from __future__ import annotations

import asyncio

import pytest

from reconciler.control.server import ControlServer
from reconciler.control.sse import Parser
from tests.contract.control_kit import session
from tests.fakes.objects import VIEWER_SECRET, an_event
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, error, until

pytestmark = pytest.mark.asyncio


async def test_the_stream_replays_after_the_last_event_and_goes_on_live(
    control: Api, services: FakeServices
) -> None:
    async with control.stream("/v1/stream", headers={"Last-Event-ID": "1"}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        parser, frames = Parser(), []
        services.events.live.put_nowait(an_event(4, "message.sent", text="line\r\none\u2028"))
        services.events.live.put_nowait(None)
        async for chunk in answer.content.iter_any():
            frames += parser.feed(chunk)
    assert [(f.id, f.event) for f in frames] == [
        ("2", "agent.state"),
        ("3", "agent.state"),
        ("4", "message.sent"),
    ]
    assert '"line\\r\\none\u2028"' in frames[2].data


async def test_silence_is_filled_with_pings_and_closing_the_server_ends_streams_at_once(
    control: Api, server: ControlServer, services: FakeServices
) -> None:
    async with control.stream("/v1/stream?after=3") as answer:
        assert await answer.content.readuntil(b": ping\n\n")
        async with asyncio.timeout(1):
            await server.close()
            assert await answer.content.read() is not None
    assert services.events.ended == 1


async def test_a_reader_that_is_told_to_resync_is_let_go(control: Api, services: FakeServices) -> None:
    services.events.live.put_nowait(an_event(9, "resync"))
    async with control.stream("/v1/stream") as answer, asyncio.timeout(2):
        assert b"event: resync\n" in await answer.content.read()


async def test_a_stream_needs_a_session_and_ends_with_it(ui: Api, services: FakeServices) -> None:
    assert (await ui.call("GET", "/v1/stream")).status == 401
    async with ui.stream("/v1/stream", headers=session(VIEWER_SECRET)) as answer:
        await answer.content.readuntil(b": ping\n\n")
        del services.accounts.live[VIEWER_SECRET]
        async with asyncio.timeout(2):
            await answer.content.read()


async def test_a_client_that_goes_away_frees_its_stream(
    control: Api, server: ControlServer, services: FakeServices
) -> None:
    async with control.stream("/v1/stream") as answer:
        await answer.content.readuntil(b"\n\n")
        assert len(server._streams) == 1
        answer.close()
    await until(lambda: len(server._streams) == 0)
    assert services.events.ended == 1


async def test_a_bug_in_the_stream_ends_it_without_an_envelope_in_the_middle(
    control: Api, services: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    services.events.fail = ZeroDivisionError()
    services.events.live.put_nowait(None)
    async with control.stream("/v1/stream") as answer:
        assert await answer.content.read() == b"retry: 1000\n\n"
    assert "ZeroDivisionError" in capsys.readouterr().out


async def test_a_wrong_last_event_id_is_refused(control: Api) -> None:
    for text in ("x", "-1", "1" * 30):
        answer = await control.call("GET", "/v1/stream", headers={"Last-Event-ID": text})
        assert error(answer) == (400, "invalid")
