"""Figures on the web: pages without a script, JSON, and what a monitor reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from reconciler.control import models as api
from tests.fakes.controlworlds import believable
from tests.fakes.hiveui import Browser, RunningUi, running_ui

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def ui() -> AsyncIterator[RunningUi]:
    async with running_ui(believable(datetime.now(UTC))) as running:
        yield running


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


async def test_the_hives_page_shows_every_agent_and_the_span_that_was_asked_for(
    ui: RunningUi, http: aiohttp.ClientSession
) -> None:
    browser = Browser(ui, http)
    text = await (await browser.get("/stats?since=7d")).text()
    assert 'href="/stats?since=7d" aria-current="page"' in text
    for name in ui.fake.world.agents:
        assert f'href="/agents/{name}/stats"' in text
    odd = await (await browser.get("/stats?since=9d'")).text()
    assert 'href="/stats?since=24h" aria-current="page"' in odd, "what is no span counts as none"


async def test_an_agents_page_says_which_figures_are_its_containers_word(
    ui: RunningUi, http: aiohttp.ClientSession
) -> None:
    text = await (await Browser(ui, http).get("/agents/hm1nd/stats")).text()
    rows = {
        m[1]: m[0]
        for m in re.finditer(r'<tr><th class="c-key".*?mono">(\w+)</span>.*?</tr>', text, re.DOTALL)
    }
    assert "only as true as the agent" in rows["tool_Bash"]
    assert "only as true as the agent" not in rows["usd"]
    assert rows["usd"].count("<td") == 4


async def test_the_json_is_hiveds_and_so_are_its_errors(ui: RunningUi, http: aiohttp.ClientSession) -> None:
    browser = Browser(ui, http)
    answer = await browser.get("/api/stats?agent=smith&keys=usd&points=1")
    found = api.Stats.model_validate_json(await answer.text())
    assert [(one.agent, one.key) for one in found.series] == [("smith", "usd")]
    for path, status, code in (
        ("/api/stats?agent=nobody", 404, "not-found"),
        ("/api/stats?keys=nothing", 400, "invalid"),
        ("/api/stats?self=1", 400, "invalid"),
        ("/api/stats?keys=usd&keys=rss", 400, "invalid"),
    ):
        answer = await browser.get(path)
        assert (answer.status, answer.content_type) == (status, "application/json"), path
        assert (await answer.json())["error"]["code"] == code
    stranger = await Browser(ui, http, secret=None).get("/api/stats")
    assert (stranger.status, (await stranger.json())["error"]["code"]) == (401, "unauthenticated")


SAMPLE = re.compile(
    r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-z_]+="(\\\\|\\"|\\n|[^"\\\n])*",?)*\})? -?[0-9.e+-]+(Inf)?'
)


async def test_a_monitor_reads_metrics_with_the_token_and_a_person_with_a_session(
    ui: RunningUi, http: aiohttp.ClientSession
) -> None:
    monitor = Browser(ui, http, secret=None)
    by_token = await monitor.get("/metrics", headers={"Authorization": "Bearer right"})
    assert by_token.status == 200
    assert by_token.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = await by_token.text()
    assert await (await Browser(ui, http).get("/metrics")).text() == text
    lines = text.splitlines()
    assert "# TYPE hyperhive_turns_total counter" in lines
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)
    assert r'hyperhive_turns_total{agent="a\"b\\c\nd",outcome="ok"} 0.5' in lines, "a label stays one label"


async def test_metrics_are_for_nobody_else(ui: RunningUi, http: aiohttp.ClientSession) -> None:
    monitor = Browser(ui, http, secret=None)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic cmlnaHQ="}):
        answer = await monitor.get("/metrics", headers=headers)
        assert answer.status == 401, headers
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "hyperhive_" not in await answer.text()
    stale = await Browser(ui, http, secret="gone").get("/metrics")
    assert stale.status == 401
    elsewhere = await monitor.get(
        "/metrics", headers={"Authorization": "Bearer right", "Host": "hive.example:7000"}
    )
    assert elsewhere.status == 403, "a name that was pointed at this address"


async def test_a_token_that_is_no_text_is_a_wrong_token_and_no_failure(ui: RunningUi) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ui.settings.port)
    host = f"localhost:{ui.settings.port}".encode()
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: " + host + b"\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
    async with asyncio.timeout(20):
        assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
