"""The control API on its two sockets: who may, what is refused and how, streams, and an honest document."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.control import edge
from reconciler.control.auth import Door, Ids
from reconciler.control.call import Route
from reconciler.control.client import SESSION_HEADER, ControlClient
from reconciler.control.routes import ROUTES
from reconciler.control.server import ControlServer
from reconciler.errors import OperatorError, PermanentError, TemporaryError
from reconciler.model.states import UserRole
from tests.contract.control_kit import BODIES, body_of, name_of, path_of, session
from tests.fakes.objects import OPERATOR_SECRET, VIEWER_SECRET
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, as_user, error, get, until
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio

STRANGER, OPERATORS, UI = 54321, 54322, 54323


@needs_root
async def test_a_stranger_cannot_open_the_sockets_and_their_owners_can(
    services: FakeServices, run_dir: Path
) -> None:
    server = ControlServer(services.bundle(), run_dir, Ids(OPERATORS, UI, UI))
    await server.start()
    try:
        control, ui = run_dir / "control.sock", run_dir / "ui.sock"
        modes = [(f.stat().st_mode & 0o777, f.stat().st_uid, f.stat().st_gid) for f in (control, ui)]
        assert modes == [(0o660, 0, OPERATORS), (0o600, UI, UI)]
        request = get("/v1/status")
        assert await as_user(control, request, uid=STRANGER, gid=STRANGER) == "PermissionError\n"
        assert await as_user(ui, request, uid=STRANGER, gid=STRANGER) == "PermissionError\n"
        member = await as_user(control, request, uid=STRANGER, gid=STRANGER, groups=[OPERATORS])
        assert member.startswith("HTTP/1.1 200")
        browser = get("/v1/status", f"{SESSION_HEADER}: {VIEWER_SECRET}")
        assert (await as_user(ui, browser, uid=UI, gid=UI)).startswith("HTTP/1.1 200")
    finally:
        await server.close()


@needs_root
async def test_with_open_files_the_kernels_word_about_the_peer_still_decides(
    services: FakeServices, run_dir: Path
) -> None:
    server = ControlServer(services.bundle(), run_dir, Ids(OPERATORS, UI, UI))
    await server.start()
    try:
        for door in Door:
            (run_dir / door).chmod(0o666)
        request = get("/v1/status", f"{SESSION_HEADER}: {OPERATOR_SECRET}")
        for door in Door:
            answer = await as_user(run_dir / door, request, uid=STRANGER, gid=STRANGER)
            assert answer.startswith("HTTP/1.1 403")
            assert '"forbidden"' in answer
        assert (await as_user(run_dir / Door.UI, request, uid=0, gid=0)).startswith("HTTP/1.1 403")
        member = await as_user(run_dir / Door.UI, request, uid=STRANGER, gid=STRANGER, groups=[OPERATORS, UI])
        assert member.startswith("HTTP/1.1 403")
        assert services.agents.calls == []
    finally:
        await server.close()


async def test_a_second_hived_takes_the_sockets_over_and_the_first_does_not_take_them_away(
    services: FakeServices, run_dir: Path
) -> None:
    own = Ids(os.getegid(), os.geteuid(), os.getegid())
    first = ControlServer(services.bundle(), run_dir, own)
    second = ControlServer(services.bundle(), run_dir, own)
    await first.start()
    await second.start()
    await first.close()
    async with Api(run_dir / Door.CONTROL) as api:
        assert (await api.call("GET", "/v1/status")).status == 200
    await second.close()
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_every_route_asks_for_its_role_on_the_web_servers_socket(route: Route, ui: Api) -> None:
    if route.special == "stream":
        return  # tested below: it does not end by itself
    nobody = await ui.call(route.method, path_of(route), body_of(route))
    viewer = await ui.call(route.method, path_of(route), body_of(route), headers=session(VIEWER_SECRET))
    operator = await ui.call(route.method, path_of(route), body_of(route), headers=session(OPERATOR_SECRET))
    if Door.UI not in route.doors:
        assert [a.status for a in (nobody, viewer, operator)] == [403, 403, 403]
        return
    if route.role is None:
        assert [a.status for a in (nobody, viewer, operator)] == [200, 200, 200]
        return
    assert (nobody.status, nobody.code) == (401, "unauthenticated")
    if route.role is UserRole.OPERATOR:
        assert (viewer.status, viewer.code) == (403, "forbidden")
    else:
        assert viewer.status in {200, 404}
    assert operator.status in {200, 404}, operator.body


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_the_operator_reaches_every_route_of_control_sock(route: Route, control: Api) -> None:
    if route.special == "stream":
        return
    answer = await control.call(route.method, path_of(route), body_of(route))
    if Door.CONTROL not in route.doors:
        assert (answer.status, answer.code) == (403, "forbidden")
    else:
        assert answer.status in {200, 404}, answer.body


async def test_the_actor_is_who_the_socket_proves(services: FakeServices, control: Api, ui: Api) -> None:
    act = "/v1/agents/scout/stop"
    await control.call("POST", act, {"dry_run": True}, headers={"X-Hive-Actor": "operator:mallory"})
    await ui.call("POST", act, {"note": "tired"}, headers=session(OPERATOR_SECRET))
    (_, (unix, *first)), (_, (browser, *second)) = services.agents.calls
    assert [str(getattr(a, "name", "")) for a in (unix, browser)] == ["unix:root", "operator:olga"]
    assert [getattr(a, "dry_run", None) for a in (first[1], second[1])] == [True, False]


async def test_a_wrong_or_ended_session_is_nobody(ui: Api) -> None:
    for secret in ("wrong", "x" * 500, "\u00e9"):
        answer = await ui.call("GET", "/v1/status", headers=session(secret))
        assert (answer.status, answer.code) == (401, "unauthenticated")
    assert (await ui.call("POST", "/v1/logout", headers=session(VIEWER_SECRET))).json == {"ok": True}
    assert (await ui.call("GET", "/v1/session", headers=session(VIEWER_SECRET))).status == 401


async def test_only_the_login_itself_tells_the_secret(ui: Api) -> None:
    answer = await ui.call("POST", "/v1/login", {"token": "tok"}, headers=session("a session that has ended"))
    assert answer.json["session"] == OPERATOR_SECRET
    assert (await ui.call("GET", "/v1/session", headers=session(OPERATOR_SECRET))).json["session"] is None
    assert (await ui.call("POST", "/v1/login", {"token": "used"})).status == 401


async def test_wrong_requests_are_told_what_is_wrong_and_where(control: Api, services: FakeServices) -> None:
    cases: list[tuple[str, str, object, int, str, str]] = [
        ("POST", "/v1/messages", b"{not json", 400, "not-json", "not JSON"),
        ("POST", "/v1/messages", b"\xff\xfe", 400, "not-json", "not JSON"),
        ("POST", "/v1/messages", b"[" * 100_000, 400, "not-json", "not JSON"),
        ("POST", "/v1/messages", b'{"to": "scout", "body": "\\ud800"}', 400, "not-json", "not JSON"),
        ("POST", "/v1/messages", b"", 400, "invalid", "to: "),
        ("POST", "/v1/messages", {"to": "scout", "body": ["x"]}, 400, "invalid", "body: "),
        ("POST", "/v1/messages", {"to": "scout", "body": "a\0b"}, 400, "invalid", "body: text must not hold"),
        ("POST", "/v1/messages", {"to": "scout", "body": "x", "cc": "y"}, 400, "invalid", "cc: "),
        (
            "POST",
            "/v1/messages",
            {"to": "a", "body": "x", "in_reply_to": 2**70},
            400,
            "invalid",
            "in_reply_to",
        ),
        ("POST", "/v1/agents", {"name": "x", "bash_allow": ["a", 1]}, 400, "invalid", "bash_allow.1: "),
        ("GET", "/v1/agents/..%2f..", None, 400, "invalid", "not an agent name"),
        ("GET", "/v1/agents/" + "a" * 40, None, 400, "invalid", "not an agent name"),
        ("GET", "/v1/agents/manager", None, 400, "invalid", "reserved"),
        ("GET", "/v1/agents/nobody", None, 404, "not-found", "nobody"),
        ("GET", "/v1/proposals/x", None, 404, "not-found", "'x'"),
        ("GET", "/v1/proposals/0", None, 404, "not-found", "'0'"),
        ("GET", "/v1/proposals/99999999999999999999", None, 404, "not-found", "999"),
        ("GET", "/v1/messages?limit=0", None, 400, "invalid", "limit: "),
        ("GET", "/v1/messages?limit=-1", None, 400, "invalid", "limit: "),
        ("GET", "/v1/messages?limit=٣", None, 400, "invalid", "limit: "),
        ("GET", "/v1/messages?limit=1&limit=2", None, 400, "invalid", "2 times"),
        ("GET", "/v1/messages?colour=red", None, 400, "invalid", "colour"),
        ("GET", "/v1/proposals?state=lost", None, 400, "invalid", "state: "),
        ("GET", "/v1/proposals/1/diff?base=main", None, 400, "invalid", "base: "),
        ("GET", "/v1/nothing", None, 404, "not-found", "there is no GET /v1/nothing"),
        ("DELETE", "/v1/agents/scout", None, 405, "wrong-method", "there is no DELETE"),
        ("GET", "/v1/agents/scout/stop", None, 405, "wrong-method", "there is no GET"),
        ("POST", "/v1/agents/scout/attachments", {"x": 1}, 400, "invalid", "takes no body"),
    ]
    for method, path, body, status, code, words in cases:
        answer = await control.call(method, path, body)
        assert error(answer) == (status, code), (path, body, answer.body)
        assert words in answer.json["error"]["message"], answer.body
    assert [name for name, _ in services.broker.calls] == []
    hint = (await control.call("DELETE", "/v1/agents/scout")).json["error"]["hint"]
    assert hint == "this path takes: GET"


async def test_a_message_of_ten_megabytes_is_refused_and_the_daemon_goes_on(
    control: Api, services: FakeServices
) -> None:
    big = {"to": "scout", "body": "x" * 10_000_000}
    assert error(await control.call("POST", "/v1/messages", big)) == (413, "too-large")

    async def pieces() -> AsyncIterator[bytes]:  # without a length that could be looked at first
        for _ in range(100):
            yield b"x" * 100_000

    async with control._http.post("http://hive/v1/messages", data=pieces()) as answer:
        assert answer.status == 413
    assert (await control.call("GET", "/v1/status")).status == 200
    assert services.broker.stored == []


async def test_errors_of_services_keep_their_code_status_and_hint(
    control: Api, services: FakeServices
) -> None:
    for failure, status in (
        (OperatorError("no", code="conflict", hint="look again"), 409),
        (TemporaryError("busy", after_s=2.5), 503),
        (PermanentError("broken"), 500),
    ):
        services.agents.fail = failure
        answer = await control.call("GET", "/v1/status")
        assert (answer.status, answer.json) == (status, failure.as_json())
    services.agents.fail = TemporaryError("busy", after_s=2.5)
    assert (await control.call("GET", "/v1/status")).headers["Retry-After"] == "3"


async def test_a_bug_gets_a_number_that_stands_in_the_log_and_tells_nothing_else(
    control: Api, services: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    services.agents.fail = ZeroDivisionError("secret detail")
    answer = await control.call("GET", "/v1/status")
    assert error(answer) == (500, "bug")
    assert b"secret" not in answer.body
    found = re.search(r"number ([0-9a-f]{8})", answer.json["error"]["message"])
    assert found is not None
    logged = capsys.readouterr().out
    assert found[1] in logged
    assert "ZeroDivisionError" in logged
    services.agents.fail = TimeoutError()  # a service's own, not the server's deadline
    assert error(await control.call("GET", "/v1/status")) == (500, "bug")


async def test_an_answer_of_another_kind_than_the_table_promises_is_a_bug(
    control: Api, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.agents, "status", services.agents.all)
    assert error(await control.call("GET", "/v1/status")) == (500, "bug")


async def test_a_body_that_does_not_come_meets_its_deadline(
    server: ControlServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "BODY_READ_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(str(run_dir / Door.CONTROL))
    writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{")
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readuntil(b"\r\n")
    writer.close()


async def test_a_service_that_does_not_come_back_meets_its_deadline(
    services: FakeServices, run_dir: Path
) -> None:
    services.agents.gate = asyncio.Event()
    hasty = [replace(route, deadline_s=0.05) for route in ROUTES]
    own = Ids(os.getegid(), os.geteuid(), os.getegid())
    server = ControlServer(services.bundle(), run_dir, own, routes=hasty)
    await server.start()
    async with Api(run_dir / Door.CONTROL) as api:
        assert error(await api.call("GET", "/v1/status")) == (504, "timeout")
    await server.close()


async def test_bytes_that_are_no_http_do_not_stop_the_server_or_fill_the_log(
    control: Api, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for garbage in (
        b"\0\1\2\3\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"\x16\x03\x01\r\n\r\n",
    ):
        reader, writer = await asyncio.open_unix_connection(str(run_dir / Door.CONTROL))
        writer.write(garbage)
        async with asyncio.timeout(5):
            assert (await reader.read(1000)).startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
        writer.close()
    assert (await control.call("GET", "/v1/status")).status == 200
    assert caplog.records == []


async def test_a_write_that_has_begun_is_ended_although_its_client_has_gone(
    services: FakeServices, server: ControlServer, run_dir: Path
) -> None:
    services.agents.gate = asyncio.Event()
    _, writer = await asyncio.open_unix_connection(str(run_dir / Door.CONTROL))
    writer.write(b"POST /v1/agents/scout/stop HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
    await until(lambda: services.agents.calls != [])
    task = next(iter(server._running._tasks))
    writer.close()
    http = server._open[0].runner.server
    assert http is not None
    await until(lambda: http.connections == [])  # the server has noticed
    services.agents.gate.set()
    assert (await task).name == "scout"


async def test_the_typed_client_and_the_server_understand_each_other(
    server: ControlServer, run_dir: Path, services: FakeServices
) -> None:
    async with ControlClient(run_dir / Door.CONTROL) as client:
        assert [agent.name for agent in (await client.agents()).items] == ["hm1nd", "scout"]
        with pytest.raises(OperatorError) as caught:
            await client.agent("nobody")
        assert (caught.value.status, caught.value.code) == (404, "not-found")
        services.events.live.put_nowait(None)
        assert [event.id async for event in client.stream(0)] == [1, 2, 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
WRITES = [route for route in ROUTES if route.request is not None]


def shaped(route: Route) -> st.SearchStrategy[object]:
    """JSON with the route's own field names, so that more than the first check is reached."""
    assert route.request is not None
    plausible = {
        name: JSON | st.just(BODIES.get(route.request.__name__, {}).get(name))
        for name in route.request.model_fields
    }
    return JSON | st.fixed_dictionaries({}, optional=plausible)


def attempts(api: Api, route: Route, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(body=shaped(route) | st.binary(max_size=40))
    def attempt(body: object) -> None:
        work = api.call(route.method, path_of(route), body)
        answer = asyncio.run_coroutine_threadsafe(work, loop).result(10)
        assert answer.status < 500, answer.body
        assert answer.status == 200 or answer.code

    return attempt


async def test_no_body_whatever_makes_a_route_fail(server: ControlServer, run_dir: Path) -> None:
    loop = asyncio.get_running_loop()
    async with Api(run_dir / Door.CONTROL) as control, Api(run_dir / Door.UI) as ui:
        for route in WRITES:
            api = control if Door.CONTROL in route.doors else ui
            await asyncio.to_thread(attempts(api, route, loop))
