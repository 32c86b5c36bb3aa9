"""The way of a request through the gateway: what is stripped, added, refused, passed on, counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from reconciler.gateway.deadlines import Bounds, Deadlines
from reconciler.store.ledger import Ledger
from tests.integration.gateway_kit import MODEL, SECRET, Lab, body, lab_folder, policy, until
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio
NOBODY = 65534
USAGE = {
    "input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 50_000,
    "cache_creation_input_tokens": 1000,
}  # fmt: skip
USAGE_USD_MICRO = 100 * 0.1 + 20 * 0.5 + 50_000 * 0.01 + 1000 * 0.125


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_folder() as made:
        yield made


# -------------------------------------------------------------------------------------- the credential
async def test_the_agents_credentials_are_stripped_and_the_operators_added_and_kept(
    lab: Lab,
) -> None:
    sent = [
        ("x-api-key", "agents-key"), ("Authorization", "Bearer agents-token"), ("Cookie", "a=agents-cookie"),
        ("Proxy-Authorization", "Basic agents-proxy"), ("X-Forwarded-For", "192.0.2.7"),
        ("Forwarded", "for=192.0.2.7"), ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "effort-2025-11-24"), ("x-claude-code-session-id", "s"),
    ]  # fmt: skip
    with structlog.testing.capture_logs() as logged:
        async with lab.scripted({"text": "hi"}), lab.served():
            answer = await lab.ask(body(stream=True), headers=sent, path="/v1/messages?beta=true")
            plain = await lab.ask(body("again"))
    headers = {name.lower(): value for name, value in lab.seen[0].headers}
    assert headers["x-api-key"] == SECRET
    assert headers["anthropic-beta"] == "effort-2025-11-24"
    assert not headers.keys() & {
        "authorization",
        "cookie",
        "proxy-authorization",
        "x-forwarded-for",
        "forwarded",
    }
    assert "agents-" not in json.dumps([seen.headers for seen in lab.seen])
    assert lab.seen[0].path == "/v1/messages?beta=true"
    kept = b"".join(path.read_bytes() for path in (lab.root / "state").rglob("*") if path.is_file())
    for place in (answer.text, plain.text, repr(answer.headers).encode(), kept, repr(logged).encode()):
        assert SECRET.encode() not in place
        assert b"agents-" not in place


async def test_an_upstream_that_repeats_the_credential_does_not_leak_it(lab: Lab) -> None:
    async def echo(request: web.Request) -> web.Response:
        told = {"type": "error", "error": {"type": "x", "message": request.headers["x-api-key"]}}
        return web.json_response(
            told, status=401, headers={"set-cookie": "a=b", "x-echo": request.headers["x-api-key"]}
        )

    app = web.Application()
    app.router.add_post("/v1/messages", echo)
    async with lab.upstream(app), lab.served():
        answer = await lab.ask()
    assert answer.status == 401
    assert SECRET not in repr(answer)
    assert "[redacted]" in answer.error[1]
    assert "Set-Cookie" not in answer.headers


async def test_a_changed_credential_is_read_anew_and_a_missing_one_is_an_error(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.served():
        await lab.ask()
        (lab.root / "credential").write_text("sk-ant-another-one")
        await lab.ask()
        (lab.root / "credential").unlink()
        answer = await lab.ask()
        assert [dict(seen.headers)["x-api-key"] for seen in lab.seen] == [SECRET, "sk-ant-another-one"]
        assert (answer.status, answer.error[0]) == (401, "authentication_error")
        assert [refusal.reason for refusal in lab.refusals] == ["credential"]
        assert len(lab.usage) == 2


# ----------------------------------------------------------------------------------------- who may ask
@needs_root
@pytest.mark.parametrize("offset", [1000, 1, 65536])
async def test_a_peer_of_any_other_uid_is_closed_unread(lab: Lab, offset: int) -> None:
    base = 1_048_576
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1])\n"
        "try:\n"
        "    s.sendall(b'HEAD / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(len(s.recv(100)))\n"
        "except ConnectionError: print(0)\n"
    )

    async def received(uid: int) -> int:
        def run() -> str:
            return subprocess.run(
                ["/usr/bin/python3", "-c", script, str(lab.socket())],
                capture_output=True, text=True, check=True, timeout=20, user=uid, group=uid, extra_groups=[],
            ).stdout  # fmt: skip

        return int(await asyncio.to_thread(run))

    async with lab.scripted({"text": "hi"}), lab.served(policy().model_copy(update={"uid_base": base})):
        found = lab.socket().stat()
        assert (found.st_uid, found.st_mode & 0o777) == (base, 0o600)
        lab.socket().chmod(0o666)  # so that the check is the gateway's, and not the file system's
        assert await received(base) > 0
        assert await received(base + offset) == 0
    assert lab.seen == []


# -------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/messages", 405), ("DELETE", "/v1/messages", 405), ("GET", "/", 404), ("POST", "/", 404),
    ("POST", "/v1/messages/batches", 404), ("POST", "/v1/files", 404), ("GET", "/v1/models", 404),
    ("POST", "/v1/messages/", 404), ("POST", "//v1/messages", 404), ("POST", "/v1/messages?beta=false", 404),
    ("POST", "/v1/messages?beta=true&x=1", 404), ("POST", "/v1/%6dessages", 404),
    ("POST", "/v1/complete", 404), ("OPTIONS", "/v1/messages", 405), ("HEAD", "/v1/messages", 405),
    ("GET", "/__log", 404),
])  # fmt: skip
async def test_no_other_endpoint_is_served(lab: Lab, method: str, path: str, status: int) -> None:
    async with lab.scripted({"text": "hi"}), lab.served(), lab.session() as session:
        from yarl import URL

        url = URL(f"http://model{path}", encoded=True)
        async with session.request(method, url, data=json.dumps(body()).encode()) as answer:
            assert answer.status == status
    assert lab.seen == []


async def test_head_of_the_root_says_that_somebody_is_there(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.served():
        assert (await lab.ask(b"", path="/", method="HEAD")).status == 200
    assert lab.seen == []


async def test_what_is_refused_reaches_neither_api_nor_ledger_but_the_host_hears_of_it(
    lab: Lab,
) -> None:
    refused: list[tuple[dict[str, Any] | bytes, list[tuple[str, str]], int]] = [
        (body(model="claude-opus-5-5"), [], 403),
        (body(tools=[{"type": "web_search_20250305", "name": "web_search"}]), [], 400),
        (body(mcp_servers=[{"type": "url", "url": "https://x", "name": "x"}]), [], 400),
        (body(), [("anthropic-beta", "files-api-2025-04-14")], 400),
        (b"{}" * 10, [], 400),
        (b"\x1f\x8b", [("content-encoding", "gzip")], 415),
        (b'{"x":"' + b"y" * (32 * 1024 * 1024) + b'"}', [], 413),
    ]
    async with lab.scripted({"text": "hi"}), lab.served(policy(models=("haiku",))) as client:
        for payload, headers, status in refused:
            answer = await lab.ask(payload, headers=headers)
            assert answer.status == status
            assert answer.error[1].startswith("hyperhive: ")
        await until(lambda: len(lab.refusals) == len(refused))
        assert lab.refusals[0].reason == "model"
        assert {refusal.reason for refusal in lab.refusals[1:]} == {"request"}
        assert await client.rows() == []
    assert lab.seen == []


async def test_the_spec_opens_server_side_things_one_by_one(lab: Lab) -> None:
    opened = policy(server_tools=("web_search", "mcp_servers", "mcp-client-2025-11-20"))
    payload = body(
        tools=[{"type": "web_search_20250305", "name": "web_search"}],
        mcp_servers=[{"type": "url", "url": "https://x", "name": "x"}],
    )
    async with lab.scripted({"text": "hi"}), lab.served(opened):
        answer = await lab.ask(payload, headers=[("anthropic-beta", "mcp-client-2025-11-20")])
        assert answer.status == 200
    assert dict(lab.seen[0].headers)["anthropic-beta"] == "mcp-client-2025-11-20"


async def test_a_changed_policy_is_in_force_with_the_next_request(lab: Lab) -> None:
    haiku = policy(models=("haiku",))
    async with lab.scripted({"text": "hi"}), lab.served(haiku) as client, lab.session() as session:
        async with session.post("http://model/v1/messages", json=body()) as answer:
            assert answer.status == 200
        await client.configure([policy(models=("opus",))])
        async with session.post("http://model/v1/messages", json=body()) as answer:
            assert answer.status == 403


# ------------------------------------------------------------------------------------------ passing on
async def test_a_body_of_several_megabytes_is_passed_on_whole(lab: Lab) -> None:
    raw = json.dumps(body("y" * 3_000_000)).encode()
    async with lab.scripted({"text": "hi"}), lab.served():
        assert (await lab.ask(raw)).status == 200
    assert lab.seen[0].body == raw


async def test_events_of_a_stream_are_passed_on_one_by_one_as_they_come(lab: Lab) -> None:
    first_arrived = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"event: ping\ndata: {}\n\n")
        await first_arrived.wait()  # nothing more before the agent has the first
        await response.write(b"event: ping\ndata: {}\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/messages", slowly)
    async with lab.upstream(app), lab.served(), lab.session() as session:
        with contextlib.suppress(aiohttp.ClientError):  # the stream has no end, so it is cut
            async with session.post("http://model/v1/messages", json=body(stream=True)) as answer:
                assert answer.content_type == "text/event-stream"
                assert await answer.content.readany() == b"event: ping\ndata: {}\n\n"
                first_arrived.set()
                assert await answer.content.readany() == b"event: ping\ndata: {}\n\n"


async def test_an_answer_arrives_byte_for_byte_whether_it_is_streamed_or_not(lab: Lab) -> None:
    async with lab.scripted({"thinking": "t" * 500, "text": "x" * 5000}), lab.served():
        for stream in (True, False):
            through = await lab.ask(body(stream=stream))
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(f"{lab.root}/upstream.sock")) as direct,
                direct.post("http://api/v1/messages", json=body(stream=stream)) as answer,
            ):
                assert await answer.read() == through.text
                assert answer.headers["request-id"] == through.headers["request-id"]


async def test_errors_and_limits_of_the_api_are_passed_on_as_they_are_and_cost_nothing(lab: Lab) -> None:
    error = {
        "status": 429,
        "type": "rate_limit_error",
        "message": "slow down",
        "headers": {"retry-after": "30"},
    }
    async with lab.scripted({"error": error}), lab.served() as client:
        answer = await lab.ask()
        assert (answer.status, answer.headers["retry-after"]) == (429, "30")
        assert answer.error == ("rate_limit_error", "slow down")
        await until(lambda: len(lab.limits) == 1)
        assert lab.limits[0].until is not None
        assert await client.spending("2000-01-01") == []
        assert await client.today() == {}


async def test_tokens_are_counted_by_the_api_and_cost_nothing(lab: Lab) -> None:
    counted = {"model": MODEL, "messages": [{"role": "user", "content": "hello" * 100}]}
    async with lab.scripted({"text": "hi"}), lab.served() as client:
        answer = await lab.ask(counted, path="/v1/messages/count_tokens?beta=true")
        assert json.loads(answer.text)["input_tokens"] > 100
        refused = await lab.ask({**counted, "model": "claude-2"}, path="/v1/messages/count_tokens")
        assert refused.status == 403
        assert await client.spending("2000-01-01") == []


async def test_an_api_that_cannot_be_reached_is_an_error_of_the_api_and_costs_nothing(lab: Lab) -> None:
    async with lab.served() as client:
        answer = await lab.ask()
        assert (answer.status, answer.error[0]) == (502, "api_error")
        assert await client.spending("2000-01-01") == []


async def test_a_silent_api_is_given_up_and_its_reservation_is_spent(lab: Lab) -> None:
    deadlines = Deadlines(first_byte_s=0.1, whole_s=0.1, drain_s=0)
    async with lab.scripted({"stall": {"seconds": 600}}), lab.served(deadlines=deadlines) as client:
        raw = json.dumps(body()).encode()
        answer = await lab.ask(raw)
        assert answer.status == 502
        assert "no answer" in answer.error[1]
        [row] = await client.spending("2000-01-01")
        assert (row.input_tokens, row.output_tokens) == (len(raw), 100)


# ----------------------------------------------------------------------------------------------- money
@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_is_settled_to_the_token(lab: Lab, stream: bool) -> None:
    async with lab.scripted({"text": "hi", "usage": USAGE}), lab.served(policy(turn=7)) as client:
        await lab.ask(body(stream=stream))
        [row] = await client.spending("2000-01-01")
        found = (row.input_tokens, row.output_tokens, row.cache_read_tokens, row.cache_write_tokens)
        assert (row.agent, row.model, row.requests) == ("scout", MODEL, 1)
        assert found == (100, 20, 50_000, 1000)
        assert row.usd_micro == USAGE_USD_MICRO
        [event] = lab.usage
        assert (event.turn, event.certain, event.usd_micro, event.row) == (7, True, USAGE_USD_MICRO, row)
        assert await client.today() == {"scout": (1120, USAGE_USD_MICRO / 1e6)}
        assert [spent.usd for spent in await client.rows()] == [USAGE_USD_MICRO / 1e6]


async def test_a_stream_that_is_cut_costs_its_known_input_and_the_longest_answer(lab: Lab) -> None:
    begun = asyncio.Event()

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        start = {"type": "message_start", "message": {"usage": {**USAGE, "output_tokens": 1}}}
        await response.write(b"data: " + json.dumps(start).encode() + b"\n\n")
        await begun.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/v1/messages", cut)
    async with lab.upstream(app), lab.served() as client, lab.session() as session:
        async with session.post(
            "http://model/v1/messages", json=body(stream=True, max_tokens=4000)
        ) as answer:
            await answer.content.readany()
            begun.set()
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
        await until(lambda: len(lab.usage) == 1)
        [row] = await client.spending("2000-01-01")
        assert (row.input_tokens, row.output_tokens, row.cache_read_tokens) == (100, 4000, 50_000)
        assert lab.usage[0].certain is False


async def test_a_stream_that_is_cut_before_it_told_anything_costs_its_reservation(lab: Lab) -> None:
    raw = json.dumps(body(stream=True, max_tokens=4000)).encode()
    async with lab.scripted({"cut": 0, "text": "x"}), lab.served() as client:
        with pytest.raises(aiohttp.ClientError):
            await lab.ask(raw)
        await until(lambda: len(lab.usage) == 1)
        [row] = await client.spending("2000-01-01")
        assert (row.input_tokens, row.output_tokens, row.cache_read_tokens) == (len(raw), 4000, 0)
        assert row.usd_micro == -(-(len(raw) * 125 + 4000 * 500) // 1000)


@pytest.mark.parametrize(("drain_s", "certain"), [(0.0, False), (20.0, True)])
async def test_when_the_agent_hangs_up_the_rest_is_read_for_the_price_if_it_comes_soon(
    lab: Lab, drain_s: float, certain: bool
) -> None:
    gone = asyncio.Event()

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        start = {"type": "message_start", "message": {"usage": {"input_tokens": 50, "output_tokens": 1}}}
        await response.write(b"data: " + json.dumps(start).encode() + b"\n\n")
        await gone.wait()
        with contextlib.suppress(ConnectionError):
            await response.write(b'data: {"type": "message_delta", "usage": {"output_tokens": 7}}\n\n')
            await response.write(b'data: {"type": "message_stop"}\n\n')
        return response

    app = web.Application()
    app.router.add_post("/v1/messages", half)
    async with lab.upstream(app), lab.served(deadlines=Deadlines(drain_s=drain_s)) as client:
        async with lab.session() as session:
            answer = await session.post("http://model/v1/messages", json=body(stream=True))
            await answer.content.readany()
            answer.close()
        if certain:
            gone.set()
        await until(lambda: len(lab.usage) == 1)
        gone.set()
        [row] = await client.spending("2000-01-01")
        assert (row.input_tokens, row.output_tokens) == (50, 7 if certain else 100)
        assert lab.usage[0].certain is certain


@pytest.mark.parametrize(("status", "charged"), [(200, [(50, 7)]), (529, [])])
async def test_an_answer_that_begins_after_the_agent_hung_up_is_read_for_its_price(
    lab: Lab, status: int, charged: list[tuple[int, int]]
) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def late(_: web.Request) -> web.StreamResponse:
        arrived.set()
        await gone.wait()
        usage = {"input_tokens": 50, "output_tokens": 7}
        return web.json_response({"usage": usage} if status == 200 else {}, status=status)

    app = web.Application()
    app.router.add_post("/v1/messages", late)
    async with lab.upstream(app), lab.served(deadlines=Deadlines(drain_s=20)) as client:
        async with lab.session() as session:
            asking = asyncio.create_task(session.post("http://model/v1/messages", json=body()))
            await arrived.wait()
            asking.cancel()
        gone.set()
        await until(lambda: len(lab.usage) == len(charged))
        rows = await client.spending("2000-01-01")
        assert [(row.input_tokens, row.output_tokens) for row in rows] == charged
    ledger = await Ledger.open(lab.root / "state/gateway")
    assert len(await ledger.spending(since="2000-01-01", after=("", "", ""), limit=9)) == len(charged)
    await ledger.close()


async def test_an_answer_is_given_even_if_the_ledger_cannot_be_written_any_more(lab: Lab) -> None:
    async with lab.scripted({"text": "hi"}), lab.served():
        assert (await lab.ask()).status == 200
        with structlog.testing.capture_logs() as logged, pytest.MonkeyPatch.context() as patched:
            patched.setattr("reconciler.store.ledger._settle", _full_disk)
            assert (await lab.ask(body(stream=True))).text.endswith(b'{"type":"message_stop"}\n\n')
        assert [entry["event"] for entry in logged] == ["ledger.unsettled"]
        assert (await lab.ask()).status == 200


async def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_a_turns_budget_shortens_the_answer_then_refuses_and_the_next_turn_begins_anew(
    lab: Lab,
) -> None:
    spent = {"input_tokens": 100, "output_tokens": 3000}
    narrow = policy(budget_tokens_turn=10_000, turn=1)
    payload = body(max_tokens=9_990)
    async with lab.scripted({"text": "hi", "usage": spent}), lab.served(narrow) as client:
        assert (
            await lab.ask(payload)
        ).status == 200  # bytes of the body and the answer fit only after counting
        assert (await lab.ask(payload)).status == 200
        asked = [json.loads(seen.body)["max_tokens"] for seen in lab.seen if seen.path == "/v1/messages"]
        assert asked[0] > 9_900
        assert 6_800 < asked[1] < 6_900
        assert (await lab.ask(payload)).status == 200
        refused = await lab.ask(payload)
        assert (refused.status, refused.error[0]) == (403, "permission_error")
        assert "refused by budget: 700 of 10000 tokens for this turn are left" in refused.error[1]
        await client.configure([narrow.model_copy(update={"turn": 2})])
        assert (await lab.ask(payload)).status == 200


async def test_a_days_budget_holds_for_requests_that_come_at_once(lab: Lab) -> None:
    """Each may cost 50 050 µ$ and more; only one fits, though none of them has cost anything yet."""
    step = {"text": "hi", "usage": {"output_tokens": 100_000, "input_tokens": 1}, "delay": 0.2}
    rich = policy(budget_usd_day=0.09)
    payload = body(max_tokens=100_000)
    async with lab.scripted(step), lab.served(rich) as client:
        answers = await asyncio.gather(*(lab.ask(payload) for _ in range(8)))
        assert min(answer.status for answer in answers) == 200
        [row] = await client.spending("2000-01-01")
        assert row.usd_micro <= 90_000 + 50_000 * (row.requests - 1)
        forwarded = [json.loads(seen.body)["max_tokens"] for seen in lab.seen if seen.path == "/v1/messages"]
        assert sum(forwarded) * 0.5 <= 90_000
        assert {refusal.reason for refusal in lab.refusals} == {"budget"}


# ---------------------------------------------------------------------------------------------- crowds
async def test_two_hundred_requests_at_once_are_all_answered_and_all_counted(lab: Lab) -> None:
    agents = ["scout", "smith", "hm1nd", "scribe"]
    for agent in agents:
        lab.agent_folder(agent)
    async with lab.scripted({"text": "hi", "usage": USAGE}), lab.served(*map(policy, agents)) as client:
        asked = [lab.ask(body(f"{n}", stream=n % 2 == 0), agent=agents[n % 4]) for n in range(200)]
        answers = await asyncio.gather(*asked)
        assert {answer.status for answer in answers} == {200}
        rows = await client.spending("2000-01-01")
        assert [row.requests for row in rows] == [50] * 4
        assert [row.usd_micro for row in rows] == [USAGE_USD_MICRO * 50] * 4
    assert len(lab.seen) == 200


async def test_an_agents_requests_beyond_its_bound_wait_and_then_are_refused(lab: Lab) -> None:
    refused = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await refused.wait()
        return web.json_response({"usage": {"input_tokens": 1, "output_tokens": 1}})

    app = web.Application()
    app.router.add_post("/v1/messages", slow)
    bounds, deadlines = Bounds(requests=1), Deadlines(place_s=0.1, drain_s=0)
    async with lab.upstream(app), lab.served(bounds=bounds, deadlines=deadlines):
        asked = [asyncio.create_task(lab.ask()) for _ in range(3)]
        await until(lambda: len(lab.refusals) == 2)
        refused.set()
        assert sorted(answer.status for answer in await asyncio.gather(*asked)) == [200, 529, 529]
        assert {refusal.reason for refusal in lab.refusals} == {"busy"}


async def test_a_bug_in_the_data_path_is_one_agents_error_and_the_gateway_lives_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reconciler.gateway.proxy as module

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    async with lab.scripted({"text": "hi"}), lab.served():
        with monkeypatch.context() as patched:
            patched.setattr(module, "screen", broken)
            with structlog.testing.capture_logs() as logged:
                assert (await lab.ask()).status == 500
        assert [entry["event"] for entry in logged] == ["request.bug"]
        assert (await lab.ask()).status == 200
