"""The browser's stream: hints without content, replay through both hops, hived's absence told, a quick
end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from reconciler.control.sse import Frame, Parser
from tests.fakes.controldata import HOSTILE
from tests.fakes.controlworlds import believable
from tests.fakes.hiveui import RunningUi, running_ui
from tests.fakes.unixhttp import until
from ui import stream
from ui.keys import STREAMS

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def ui() -> AsyncIterator[RunningUi]:
    async with running_ui(believable(datetime.now(UTC))) as running:
        yield running


class Reader:
    """Frames of one stream, one at a time."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self._parser = Parser()
        self._frames: list[Frame] = []

    async def next(self) -> Frame:
        async with asyncio.timeout(10):
            while not self._frames:
                chunk = await self.answer.content.readany()
                if not chunk:
                    raise EOFError
                self._frames += self._parser.feed(chunk)
        return self._frames.pop(0)


@asynccontextmanager
async def opened(ui: RunningUi, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{ui.url}/stream{query}", cookies=ui.cookie(), headers=headers) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        yield Reader(answer)


async def settled(ui: RunningUi, streams: int) -> None:
    """Until hived has so many streams."""
    await until(lambda: ui.fake.streams == streams)


async def test_an_event_is_passed_on_as_a_hint_without_its_text(ui: RunningUi) -> None:
    async with opened(ui, "?after=7") as reader:
        await settled(ui, 1)
        ui.fake.emit("message.sent", "scout", body=HOSTILE)
        frame = await reader.next()
    assert (frame.id, frame.event) == ("8", "hive")
    assert json.loads(frame.data) == {"kind": "message.sent", "agent": "scout"}


async def test_a_reconnect_replays_what_was_missed(ui: RunningUi) -> None:
    async with opened(ui, "?after=1", **{"Last-Event-ID": "5"}) as reader:
        assert [(await reader.next()).id for _ in range(2)] == ["6", "7"]


@pytest.mark.parametrize("text", ["-1", "x", "9" * 40, "9" * 5000, "1e3", "٣"])
async def test_a_strange_position_counts_as_none(ui: RunningUi, text: str) -> None:
    async with opened(ui, "?after=" + text) as reader:
        await settled(ui, 1)
        ui.fake.emit("hive.status")
        assert (await reader.next()).id == "8"


async def test_a_restart_of_hived_is_told_and_loses_nothing(ui: RunningUi) -> None:
    async with opened(ui, "?after=7") as reader:
        await settled(ui, 1)
        await ui.fake.stop()
        away = await reader.next()
        ui.fake.world.event("turn.begun", "scout")
        await ui.fake.start(ui.settings.socket)
        back, missed = await reader.next(), await reader.next()
    assert away.event == "away"
    assert datetime.fromisoformat(json.loads(away.data)["since"]).tzinfo is not None
    assert back.event == "back"
    assert (missed.id, json.loads(missed.data)["kind"]) == ("8", "turn.begun")


async def test_a_session_that_ends_ends_the_stream_with_a_word(ui: RunningUi) -> None:
    async with opened(ui, "?after=7") as reader:
        await settled(ui, 1)
        ui.fake.sessions.clear()
        ui.fake.cut_streams()
        events = [(await reader.next()).event, (await reader.next()).event]
        with pytest.raises(EOFError):
            await reader.next()
    assert events == ["away", "logout"]


async def test_stopping_the_server_ends_streams_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with running_ui(believable(datetime.now(UTC))) as running:
        http = aiohttp.ClientSession()
        answer = await http.get(f"{running.url}/stream", cookies=running.cookie())
        await settled(running, 1)
        begun = loop.time()
    assert loop.time() - begun < 3
    answer.close()
    await http.close()


async def test_a_browser_that_leaves_frees_its_stream(ui: RunningUi) -> None:
    async with opened(ui):
        await settled(ui, 1)
        assert ui.app[STREAMS].count == 1
    await until(lambda: ui.app[STREAMS].count == 0)


async def test_streams_are_bounded(ui: RunningUi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STREAMS_MAX", 1)
    async with opened(ui):
        await settled(ui, 1)
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{ui.url}/stream", cookies=ui.cookie()) as second,
        ):
            assert second.status == 503


async def test_silence_is_broken_by_pings(ui: RunningUi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_S", 0.05)
    monkeypatch.setattr(stream, "_LOOK_S", 0.05)
    async with opened(ui) as reader, asyncio.timeout(5):
        heard = b""
        while heard.count(b": ping\n\n") < 3:
            heard += await reader.answer.content.readany()
