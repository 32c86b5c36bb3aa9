"""Bundles and drafts that agents send, and what is left of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from harness import wire
from reconciler.control.agentserver import AgentServers
from tests.contract.agents_kit import (
    HEADERS,
    SCOUT,
    form,
    post_form,
    socket_of,
)
from tests.fakes.objects import COMMIT
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, error, until

pytestmark = pytest.mark.asyncio


async def test_what_a_crash_left_of_uploads_is_removed(services: FakeServices, place: Path) -> None:
    left = place / "state" / "incoming" / "abc"
    left.mkdir(parents=True)
    (left / "bundle").write_bytes(b"half")
    AgentServers(services.bundle(), place / "run", place / "state")
    assert list(left.parent.iterdir()) == []
    assert left.parent.stat().st_mode & 0o777 == 0o700


async def test_a_bundle_arrives_as_a_file_that_is_gone_afterwards(scout: Api, services: FakeServices) -> None:
    path = f"/v1/proposals?commit={COMMIT}&description=a%20bit%20%C3%A4"
    answer = await scout.call("POST", path, b"# v2 git bundle\n\0\xff")
    assert answer.json == {"proposal": 1, "state": "examining"}
    assert services.approvals.uploaded == [b"# v2 git bundle\n\0\xff"]
    assert services.approvals.calls == [("propose_bundle", ("scout", "scout", COMMIT, "a bit \xe4"))]
    assert not services.approvals.seen_paths[0].exists()


async def test_a_bundle_over_the_limit_is_refused_while_it_arrives(
    scout: Api, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BUNDLE_MAX_BYTES", 1000)
    path = f"/v1/proposals?commit={COMMIT}"
    assert error(await scout.call("POST", path, b"x" * 1001)) == (413, "too-large")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    async with scout._http.post(f"http://hive{path}", data=pieces()) as answer:
        assert answer.status == 413
    assert error(await scout.call("POST", path, b"")) == (400, "invalid")
    assert services.approvals.uploaded == []
    assert (await scout.call("POST", path, b"x" * 1000)).status == 200


async def test_an_upload_that_is_cut_off_leaves_nothing(
    scout: Api, services: FakeServices, place: Path
) -> None:
    _, writer = await asyncio.open_unix_connection(str(socket_of(place, SCOUT)))
    head = [f"POST /v1/proposals?commit={COMMIT} HTTP/1.1", "Host: h", "Content-Length: 1000"]
    head += [f"{name}: {value}" for name, value in HEADERS.items()]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\nhalf")
    incoming = place / "state" / "incoming"
    await until(lambda: list(incoming.glob("*/bundle")) != [])
    writer.close()
    await until(lambda: list(incoming.iterdir()) == [])
    assert services.approvals.calls == []


async def test_a_draft_is_a_form_of_two_parts(
    manager: Api, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/drafts/scribe/commit?commit={COMMIT}&description=notes"
    answer = await post_form(manager, path, form(bundle=b"B" * 200_000, state=b"T\0"))
    assert answer.json == {"proposal": 2, "state": "examining"}
    assert services.approvals.uploaded == [b"B" * 200_000, b"T\0"]
    assert services.approvals.calls == [("propose_draft", ("hm1nd", "scribe", COMMIT, "notes"))]
    monkeypatch.setattr(wire, "STATE_TAR_MAX_BYTES", 10)
    wrong: list[tuple[aiohttp.FormData, int, str]] = [
        (form(bundle=b"b"), 400, "lacks the part state"),
        (form(bundle=b"b", state=b"s", more=b"m"), 400, "no part 'more'"),
        (form(bundle=b"b", state=b"s" * 11), 413, "larger"),
    ]
    for data, status, words in wrong:
        refused = await post_form(manager, path, data)
        assert (refused.status, words in refused.json["error"]["message"]) == (status, True), refused.body
    assert error(await manager.call("POST", path, b"plain")) == (400, "invalid")
    assert len(services.approvals.calls) == 1


async def test_at_most_two_uploads_of_an_agent_at_once(scout: Api, place: Path) -> None:
    path = f"/v1/proposals?commit={COMMIT}"
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"begin"
        await release.wait()
        yield b"end"

    async def upload() -> int:
        async with scout._http.post(f"http://hive{path}", data=slow()) as answer:
            return answer.status

    held = [asyncio.create_task(upload()) for _ in range(2)]
    await until(lambda: len(list((place / "state" / "incoming").glob("*/bundle"))) == 2)
    third = await scout.call("POST", path, b"x")
    assert error(third) == (503, "busy")
    release.set()
    assert await asyncio.gather(*held) == [200, 200]
