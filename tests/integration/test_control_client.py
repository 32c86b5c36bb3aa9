"""The client of the control API against sockets that answer well, badly, slowly or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from reconciler.control import models as api
from reconciler.control.client import ControlClient, OperatorError, PermanentError, TemporaryError
from tests.fakes.controlapi import OPERATOR_SECRET, VIEWER_SECRET, FakeControlApi
from tests.fakes.controlworlds import believable

pytestmark = pytest.mark.asyncio
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answers = Callable[[Handler], Awaitable[ControlClient]]


@pytest_asyncio.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeControlApi]:
    made = FakeControlApi(believable(datetime.now(UTC)))
    await made.start(tmp_path / "ui.sock")
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def client(fake: FakeControlApi, tmp_path: Path) -> AsyncIterator[ControlClient]:
    async with ControlClient(tmp_path / "ui.sock") as made:
        yield made.as_session(OPERATOR_SECRET)


@pytest_asyncio.fixture
async def answers(tmp_path: Path) -> AsyncIterator[Answers]:
    """A client of a server that answers everything with one handler."""
    runners, clients = [], []

    async def start(handler: Handler) -> ControlClient:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        runners.append(runner)
        await web.UnixSite(runner, str(tmp_path / "odd.sock")).start()
        clients.append(ControlClient(tmp_path / "odd.sock", deadline_s=0.3))
        return clients[-1]

    yield start
    for client in clients:
        await client.close()
    for runner in runners:
        await runner.cleanup()


async def test_every_read_comes_back_as_its_model(client: ControlClient) -> None:
    assert (await client.status()).agents == 5
    assert (await client.agents()).items[0].name == "archivist"
    assert (await client.agent("smith")).generation == 14
    assert (await client.spec("smith")).spec["model"] == "haiku"
    assert (await client.policy("smith", "git log | head")).allowed
    assert (await client.generations("smith")).items[0].current
    assert (await client.plan("smith")).steps == []
    assert (await client.why("smith")).chain
    assert (await client.transcript("hm1nd", after=3, limit=2)).items[0].id == 4
    assert (await client.logs("smith", lines=10)).lines
    assert all(m.sender == "scout" or m.to == "scout" for m in (await client.messages(agent="scout")).items)
    assert {p.state for p in (await client.proposals(state="pending")).items} == {"pending"}
    assert (await client.proposal(12)).agent == "smith"
    assert (await client.diff(12, base="approved")).base == "approved"
    assert (await client.build_log(10, after=3)).items[0].id == 4
    assert (await client.proposal_why(12)).chain[0].kind == "proposal"
    assert (await client.questions()).items[0].state == "open"
    assert (await client.drafts()).items[0].name == "herald"
    assert (await client.events(after=2, limit=1)).items[0].id == 3
    assert (await client.audit()).items
    assert (await client.session()).csrf == "csrf-operator"


async def test_writes_carry_their_body_and_the_session(client: ControlClient, fake: FakeControlApi) -> None:
    await client.send(api.NewMessage(to="scout", body="hello"))
    await client.act("scout", "stop", api.Act(note="for the night"))
    assert fake.calls == [
        (
            "POST",
            "/v1/messages",
            {"to": "scout", "body": "hello", "in_reply_to": None, "key": None, "dry_run": False},
        ),
        ("POST", "/v1/agents/scout/stop", {"dry_run": False, "note": "for the night"}),
    ]


async def test_an_error_of_hived_comes_back_as_it_was_raised(client: ControlClient) -> None:
    with pytest.raises(OperatorError) as told:
        await client.agent("nobody")
    assert (told.value.status, told.value.code, told.value.hint) == (
        404,
        "not-found",
        "`hive agents` lists them",
    )
    with pytest.raises(OperatorError) as told:
        await client.as_session("nonsense").status()
    assert told.value.code == "unauthenticated"
    with pytest.raises(OperatorError) as told:
        await client.as_session(VIEWER_SECRET).act("scout", "stop")
    assert told.value.status == 403


@pytest.mark.parametrize("name", ["a/b", "../agents", "a?b=c", "a#b", "ünï", "a%2fb", " "])
async def test_a_strange_name_stays_one_segment_of_the_address(answers: Answers, name: str) -> None:
    async def echo(request: web.Request) -> web.Response:
        body = {"error": {"code": "not-found", "message": request.match_info["path"], "hint": ""}}
        return web.json_response(body, status=404)

    with pytest.raises(OperatorError) as told:
        await (await answers(echo)).agent(name)
    assert told.value.message == f"v1/agents/{name}"


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_that_would_change_the_address_is_refused_here(client: ControlClient, name: str) -> None:
    with pytest.raises(OperatorError):
        await client.agent(name)


async def test_no_hived_is_told_as_away_with_what_to_do(tmp_path: Path) -> None:
    async with ControlClient(tmp_path / "none.sock") as client:
        with pytest.raises(TemporaryError) as told:
            await client.status()
    assert told.value.code == "unavailable"
    assert "none.sock" in told.value.message
    assert told.value.hint


async def test_a_silent_hived_ends_at_the_deadline(answers: Answers) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TemporaryError) as told:
        await (await answers(never)).status()
    assert told.value.code == "timeout"


@pytest.mark.parametrize(
    ("status", "text", "kind", "code"),
    [
        (200, "no json", PermanentError, "protocol"),
        (200, '{"items": 7}', PermanentError, "protocol"),
        (200, '{"items": [], "surprise": 1}', PermanentError, "protocol"),
        (500, "<html>", PermanentError, "protocol"),
        (404, "[]", OperatorError, "protocol"),
        (503, '{"error": {"code": "stopping", "message": "m", "hint": ""}}', TemporaryError, "stopping"),
        (500, '{"error": {"code": "bug", "message": "m"}}', PermanentError, "bug"),
    ],
)
async def test_an_answer_that_is_none_is_an_error_of_its_kind(
    answers: Answers, status: int, text: str, kind: type[Exception], code: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    with pytest.raises(kind) as told:
        await (await answers(answer)).agents()
    assert getattr(told.value, "code", None) == code


async def test_an_answer_without_end_is_cut(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.control.client.ANSWER_MAX_BYTES", 1 << 20)

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(b" " * 65536)
        return response

    with pytest.raises(PermanentError, match="larger than"):
        await (await answers(flood)).agents()


async def test_the_stream_replays_and_goes_on_live(client: ControlClient, fake: FakeControlApi) -> None:
    opened = asyncio.Event()
    seen = []
    async with asyncio.timeout(5), aclosing(client.stream(5, on_open=opened.set)) as events:
        async for event in events:
            seen.append((event.id, event.kind))
            if event.id == 7:
                fake.emit("message.sent", "scout")
            if event.id == 8:
                break
    assert opened.is_set()
    assert seen == [(6, "agent.state"), (7, "turn.begun"), (8, "message.sent")]


async def test_the_stream_ends_when_hived_ends_it(client: ControlClient, fake: FakeControlApi) -> None:
    async with asyncio.timeout(5):
        async with aclosing(client.stream(6)) as events:
            async for _ in events:
                fake.cut_streams()
        assert fake.streams == 0


async def test_a_stream_without_a_session_is_refused(client: ControlClient) -> None:
    with pytest.raises(OperatorError) as told:
        async with aclosing(client.as_session("x").stream()) as events:
            await anext(events)
    assert told.value.code == "unauthenticated"
