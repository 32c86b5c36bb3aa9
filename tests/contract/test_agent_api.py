"""The agent API on agent.sock: one uid only, roles, limits while bytes arrive, and sockets that come back."""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import wire
from harness.link import Link, Refused
from harness.outcomes import Verdict
from reconciler.control.agentcalls import AGENT_ROUTES, HELLO, AgentRoute
from reconciler.control.agentserver import CALLS_MAX, AgentServers
from reconciler.control.meters import RATES, Rate, TooManyError
from reconciler.errors import AgentError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor
from tests.contract.agents_kit import (
    BASE,
    BODIES,
    BOOT,
    HEADERS,
    KEY,
    MANAGER,
    SCOUT,
    called,
    path_of,
    socket_of,
)
from tests.fakes.objects import COMMIT
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, error, until

pytestmark = pytest.mark.asyncio


async def test_another_wire_version_is_told_so_everywhere(scout: Api) -> None:
    for route in AGENT_ROUTES:
        answer = await scout.call(route.method, path_of(route), headers={wire.WIRE_HEADER: "2"})
        assert error(answer) == (426, "wire-version"), route.path
    old = await scout.call("POST", "/v1/hello", {"wire": 7, "boot": BOOT})
    assert error(old) == (426, "wire-version")
    assert "version '7'" in old.json["error"]["message"]


async def test_hello_needs_no_headers_and_everything_else_does(
    servers: AgentServers, place: Path, services: FakeServices
) -> None:
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    async with Api(socket_of(place, SCOUT)) as bare:
        assert (await bare.call("POST", "/v1/hello", BODIES["Hello"])).status == 200
        assert error(await bare.call("GET", "/v1/inbox")) == (426, "wire-version")
        version = {wire.WIRE_HEADER: "1"}
        assert error(await bare.call("GET", "/v1/inbox", headers=version)) == (400, "invalid")
        forged = version | {wire.BOOT_HEADER: "cd" * 16}
        assert error(await bare.call("GET", "/v1/inbox", headers=forged)) == (409, "hello-first")
    assert [name for name, _ in services.broker.calls] == ["hello"]


async def test_a_hello_that_fails_makes_no_harness_known(scout: Api, services: FakeServices) -> None:
    services.broker.fail = TemporaryError("the leader is not known yet")
    other = {wire.BOOT_HEADER: "cd" * 16}
    hello = {"wire": 1, "boot": "cd" * 16}
    assert (await scout.call("POST", "/v1/hello", hello)).status == 503
    services.broker.fail = None
    assert error(await scout.call("GET", "/v1/inbox", headers=other)) == (409, "hello-first")
    assert (await scout.call("POST", "/v1/hello", hello)).status == 200
    assert (await scout.call("GET", "/v1/inbox", headers=other)).status == 200


async def test_who_calls_too_often_gets_429_says_when_to_come_again_and_is_told_of_once(
    services: FakeServices, place: Path
) -> None:
    told: list[tuple[str, str]] = []
    servers = AgentServers(
        services.bundle(),
        place / "run",
        place / "state",
        limited=lambda name, error: told.append((name, error.sort)),
    )
    burst = int(RATES["acts"].burst)
    for name in (SCOUT, MANAGER):
        await servers.serve(name, os.geteuid(), Role.AGENT)
    async with Api(socket_of(place, SCOUT), HEADERS) as api, Api(socket_of(place, MANAGER), HEADERS) as other:
        for one in (api, other):
            await one.call("POST", "/v1/hello", BODIES["Hello"])
        answers = [await api.call("POST", "/v1/status", BODIES["Status"]) for _ in range(burst + 20)]
        refused = [answer for answer in answers if answer.status != 200]
        assert 0 < len(refused) <= 20
        assert {error(answer) for answer in refused} == {(429, "too-many")}
        assert 1 <= int(refused[0].headers["Retry-After"]) <= 60
        assert "wait" in refused[0].json["error"]["hint"]
        written = [name for name, _ in services.broker.calls if name == "set_status"]
        assert len(written) == len(answers) - len(refused), "what is refused reaches no service"
        assert told == [(SCOUT, "acts")]
        assert (await api.call("GET", "/v1/agents")).status == 200, "looks are counted apart"
        assert (await other.call("POST", "/v1/status", BODIES["Status"])).status == 200, "so are agents"
        # A new socket is no new burst.
        await servers.drop(SCOUT)
        await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
        await api.call("POST", "/v1/hello", BODIES["Hello"])
        again = [await api.call("POST", "/v1/status", BODIES["Status"]) for _ in range(burst)]
        assert sum(answer.status == 200 for answer in again) < burst // 2
    await servers.close()


@pytest.mark.parametrize(
    ("to", "size", "agents", "sent"), [("manager", 60_000, 1, 20), ("*", 10, 40, 27), ("*", 10, 2, 300)]
)
async def test_long_texts_and_many_receivers_count_more(
    services: FakeServices, place: Path, to: str, size: int, agents: int, sent: int
) -> None:
    still = {sort: Rate(rate.burst, 1e-9) for sort, rate in RATES.items()}
    servers = AgentServers(services.bundle(), place / "run", place / "state", rates=still)
    for number in range(1, agents):
        await servers.serve(AgentName(f"other-{number}"), BASE, Role.AGENT)
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    async with Api(socket_of(place, SCOUT), HEADERS) as api:
        await api.call("POST", "/v1/hello", BODIES["Hello"])
        message = {"to": to, "body": "x" * size}
        answers = [
            await api.call("POST", "/v1/messages", message | {"key": f"key-{number:08}"})
            for number in range(sent + 10)
        ]
    await servers.close()
    assert [name for name, _ in services.broker.calls].count("send") == sent
    assert {error(answer) for answer in answers if answer.status != 200} == {(429, "too-many")}


async def test_the_harness_waits_where_nobody_waits_for_it_and_tells_the_model_where_one_does(
    scout: Api, services: FakeServices, place: Path
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        services.broker.fail = None

    welcome = wire.Welcome.model_validate((await scout.call("POST", "/v1/hello", BODIES["Hello"])).json)
    link = Link(socket_of(place, SCOUT), BOOT, welcome, on_welcome=lambda _: None, sleep=sleep)
    services.broker.fail = TooManyError("turns", 5.0, first=True)
    begun = await link.begin_turn(None, KEY)
    assert begun.turn
    assert max(slept) >= 2.0
    services.broker.fail = TooManyError("acts", 5.0, first=True)
    with pytest.raises(Refused, match=r"too many calls of this sort .*wait 5 s"):
        await link.post("status", wire.Status(text="busy"), wire.Done)
    await link.close()


async def test_the_agent_is_the_sockets_and_cannot_be_forged(scout: Api, services: FakeServices) -> None:
    forged = {"X-Hive-Agent": "hm1nd", "X-Hive-Session": "operator-secret"}
    await scout.call("POST", "/v1/messages", BODIES["SendMessage"], headers=forged)
    assert services.broker.calls[-1][1][0] == SCOUT
    answer = await scout.call("POST", "/v1/messages", BODIES["SendMessage"] | {"sender": "operator"})
    assert error(answer) == (400, "invalid")


@pytest.mark.parametrize("route", [r for r in AGENT_ROUTES if r.manager_only], ids=lambda r: r.path)
async def test_what_is_the_managers_is_refused_to_agents_in_words(
    route: AgentRoute, scout: Api, services: FakeServices
) -> None:
    before = len(services.agents.calls)
    body = BODIES.get(route.request.__name__) if route.request else None
    answer = await scout.call(route.method, path_of(route), body)
    assert error(answer) == (403, "forbidden")
    assert answer.json["error"]["message"] == "only the manager may do this, and scout is not the manager"
    assert (len(services.agents.calls), services.approvals.calls) == (before, [])


async def test_a_promoted_agent_may_more_without_a_new_socket(
    servers: AgentServers, scout: Api, place: Path
) -> None:
    assert (await scout.call("GET", "/v1/agents/hm1nd/logs")).status == 403
    await servers.serve(SCOUT, os.geteuid(), Role.MANAGER)
    assert (await scout.call("GET", "/v1/agents/hm1nd/logs")).status == 200


async def test_the_manager_steers_others_as_itself_and_not_itself(
    manager: Api, services: FakeServices
) -> None:
    for verb in ("start", "stop", "restart"):
        assert (await manager.call("POST", f"/v1/agents/scout/{verb}")).json == {"ok": True}
        assert services.agents.calls[-1][0] == verb
        assert services.agents.calls[-1][1][0] == Actor("agent:hm1nd", UserRole.OPERATOR)
        itself = await manager.call("POST", f"/v1/agents/hm1nd/{verb}")
        assert error(itself) == (403, "forbidden")
        assert f"cannot {verb} yourself" in itself.json["error"]["message"]
    assert len(services.agents.calls) == 3


async def test_an_agent_sees_itself_only_and_the_manager_all(scout: Api, manager: Api) -> None:
    assert [a["name"] for a in (await scout.call("GET", "/v1/agents")).json["agents"]] == ["scout"]
    assert [a["name"] for a in (await manager.call("GET", "/v1/agents")).json["agents"]] == ["hm1nd", "scout"]
    assert error(await scout.call("GET", "/v1/repos/hm1nd/bundle")) == (403, "forbidden")
    assert (await scout.call("GET", "/v1/repos/scout/bundle")).body == b"# v2 git bundle\n"
    assert (await manager.call("GET", "/v1/repos/scribe/bundle")).status == 200


async def test_only_the_manager_proposes_for_others(scout: Api, manager: Api, services: FakeServices) -> None:
    path = f"/v1/proposals?agent=smith&commit={COMMIT}"
    answer = await scout.call("POST", path, b"bundle")
    assert error(answer) == (403, "forbidden")
    assert "not of smith" in answer.json["error"]["message"]
    assert (await manager.call("POST", path, b"bundle")).status == 200
    assert [arguments[:2] for _, arguments in services.approvals.calls] == [("hm1nd", "smith")]


@pytest.mark.parametrize("commit", ["", "main", "HEAD", COMMIT[:12], COMMIT.upper(), "../x", COMMIT + "0"])
async def test_a_commit_is_a_full_id(scout: Api, services: FakeServices, commit: str) -> None:
    answer = await scout.call("POST", "/v1/proposals", b"bundle", params={"commit": commit})
    assert error(answer) == (400, "invalid")
    assert "not a full commit id" in answer.json["error"]["message"]
    assert services.approvals.uploaded == []


async def test_unknown_and_wrong_calls_are_told_apart(scout: Api, services: FakeServices) -> None:
    cases: list[tuple[str, str, object, int, str]] = [
        ("GET", "/v1/pty", None, 404, "not-found"),
        ("POST", "/v1/proposals/1/approve", {}, 404, "not-found"),
        ("GET", "/v1/../../etc/passwd", None, 404, "not-found"),
        ("GET", "/openapi.json", None, 404, "not-found"),
        ("GET", "/v1/messages", None, 405, "wrong-method"),
        ("POST", "/v1/leases/x/ack", None, 404, "not-found"),
        ("POST", "/v1/messages", b"no json", 400, "not-json"),
        ("POST", "/v1/messages", b"x" * 10_000_000, 413, "too-large"),
        ("POST", "/v1/messages", BODIES["SendMessage"] | {"body": "a\0b"}, 400, "invalid"),
        ("POST", "/v1/messages", BODIES["SendMessage"] | {"body": "x" * 70_000}, 400, "invalid"),
        ("POST", "/v1/nap", {"seconds": "5"}, 400, "invalid"),
        ("GET", "/v1/inbox?wait=181", None, 400, "invalid"),
        ("GET", "/v1/inbox?max=0", None, 400, "invalid"),
        ("GET", "/v1/inbox?agent=hm1nd", None, 400, "invalid"),
    ]
    before = list(services.broker.calls)
    for method, path, body, status, code in cases:
        assert error(await scout.call(method, path, body)) == (status, code), path
    assert services.broker.calls == before
    assert (await scout.call("GET", "/v1/inbox")).status == 200


async def test_numbers_that_are_no_json_do_not_enter_the_transcript(scout: Api) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"events": [{{"seq": 1, "at": "", "kind": "note", "data": {{"deep": [{number}]}}}}]}}'
        answer = await scout.call("POST", "/v1/turns/1/events", body.encode())
        assert error(answer) == (400, "not-json")
    large = {
        "events": [{"seq": 1, "at": "", "kind": "tool_call", "data": {"input": {"n": 10**30, "s": "a\0"}}}]
    }
    assert (await scout.call("POST", "/v1/turns/1/events", large)).status == 200


async def test_calls_of_one_agent_are_bounded_and_others_are_not_held_up(
    scout: Api, manager: Api, services: FakeServices
) -> None:
    services.broker.hold_inbox = asyncio.Event()
    held = [asyncio.create_task(scout.call("GET", "/v1/inbox?wait=60")) for _ in range(CALLS_MAX)]
    await until(lambda: len(services.broker.calls) == CALLS_MAX + 2)  # two hellos
    assert error(await scout.call("GET", "/v1/agents")) == (503, "busy")
    assert (await manager.call("GET", "/v1/agents")).status == 200
    services.broker.hold_inbox.set()
    assert {answer.status for answer in await asyncio.gather(*held)} == {200}


async def test_a_long_poll_ends_with_its_client_so_that_nothing_is_leased_to_the_dead(
    scout: Api, services: FakeServices
) -> None:
    services.broker.hold_inbox = asyncio.Event()
    waiting = asyncio.create_task(scout.call("GET", "/v1/inbox?wait=60"))
    await called(services, "inbox")
    waiting.cancel()
    async with asyncio.timeout(5):
        await services.broker.inbox_cancelled.wait()


async def test_errors_of_services_reach_the_agent_in_their_words(scout: Api, services: FakeServices) -> None:
    services.broker.fail = AgentError("you may not send to smith", code="forbidden", hint="send to manager")
    answer = await scout.call("POST", "/v1/messages", BODIES["SendMessage"])
    assert (answer.status, answer.json) == (403, services.broker.fail.as_json())


async def test_the_harnesss_own_link_speaks_with_this_server(
    servers: AgentServers, manager: Api, place: Path, services: FakeServices
) -> None:
    welcome = wire.Welcome.model_validate_json(
        (await manager.call("POST", "/v1/hello", BODIES["Hello"])).body
    )
    link = Link(socket_of(place, MANAGER), "cd" * 16, welcome, on_welcome=lambda _: None)
    try:
        assert (await link.inbox(0, 5)).lease is None  # its boot is unknown: it says hello by itself
        assert services.broker.hello_calls[-1].boot == "cd" * 16
        assert services.broker.calls[-1] == ("inbox", (MANAGER, "cd" * 16, 0.0, 5, None))
        begun = await link.begin_turn(None, KEY)
        event = wire.TurnEvent(seq=1, at="now", kind="text", data={"text": "hi"})
        assert await link.send_events(begun.turn, [event]) == 1
        await link.end_turn(begun.turn, Verdict(outcome="ok"))
        query = {"agent": "smith", "commit": COMMIT, "description": "why \xe4 & = ?"}
        assert (await link.upload("proposals", {"bundle": b"B"}, wire.Proposed, query)).proposal == 1
        parts = {"bundle": b"B", "state": b"T"}
        drafted = {"commit": COMMIT, "description": ""}
        assert (await link.upload("drafts/scribe/commit", parts, wire.Proposed, drafted)).proposal == 2
        assert services.approvals.calls[0][1][3] == "why \xe4 & = ?"
        assert (await link.bundle("scribe")).startswith(b"# v2")
        with pytest.raises(Refused, match="cannot stop yourself"):
            await link.post("agents/hm1nd/stop", None, wire.Done, repeatable=False)
    finally:
        await link.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
BOUNDARY = b"--b\r\n"
FORM_BITS = st.sampled_from([
    b"--b\r\n", b"--b--\r\n", b"\r\n", b'Content-Disposition: form-data; name="bundle"\r\n',
    b'Content-Disposition: form-data; name="state"\r\n', b"Content-Disposition: \xff;;name*=utf-8''%\r\n",
    b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"x" * 9000, b"data", b"\0",
])  # fmt: skip


def shaped(route: AgentRoute) -> st.SearchStrategy[object]:
    if route.request is None:
        return JSON
    plausible = BODIES[route.request.__name__]
    fields = {name: JSON | st.just(plausible.get(name)) for name in route.request.model_fields}
    return st.fixed_dictionaries({}, optional=fields)


async def test_no_body_whatever_makes_a_call_fail(manager: Api) -> None:
    loop = asyncio.get_running_loop()

    def attempts(route: AgentRoute) -> None:
        @settings(max_examples=15, suppress_health_check=list(HealthCheck))
        @given(body=shaped(route) | JSON | st.binary(max_size=40))
        def attempt(body: object) -> None:
            work = manager.call(route.method, path_of(route), body)
            answer = asyncio.run_coroutine_threadsafe(work, loop).result(10)
            assert answer.status < 500, answer.body
            assert answer.status == 200 or answer.code

        attempt()

    for route in AGENT_ROUTES:
        if route.method == "POST" and route is not HELLO:
            await asyncio.to_thread(attempts, route)


async def test_no_form_whatever_makes_a_call_fail(manager: Api, services: FakeServices) -> None:
    loop = asyncio.get_running_loop()
    path = f"/v1/drafts/scribe/commit?commit={COMMIT}"

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(bits=st.lists(FORM_BITS, max_size=10))
    def attempt(bits: list[bytes]) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        work = manager.call("POST", path, BOUNDARY + b"".join(bits), headers=kind)
        answer = asyncio.run_coroutine_threadsafe(work, loop).result(10)
        assert answer.status < 500, answer.body
        assert answer.status == 200 or answer.code

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # aiohttp warns of the headers that are wrong here on purpose
        await asyncio.to_thread(attempt)


async def test_an_agent_learns_how_it_is_seen_and_only_of_itself(scout: Api, services: FakeServices) -> None:
    services.agents.known["scout"] = services.agents.known["scout"].model_copy(
        update={"nap_until": "2026-01-01T00:00:00Z", "inbox_depth": 3}
    )
    answer = await scout.call("GET", "/v1/status")
    own = wire.OwnStatus.model_validate_json(answer.body)
    assert (own.nap_until, own.waiting, own.peers) == ("2026-01-01T00:00:00Z", 3, ["operator"])
    assert services.broker.asked_questions == {"agent": "scout", "state": "open", "limit": 20}
    assert ("get", ("scout",)) in services.agents.calls
    assert (await scout.call("GET", "/v1/status?agent=smith")).status == 400
