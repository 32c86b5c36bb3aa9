"""Budgets and models on the pages, in a browser without scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from reconciler.model.states import AgentState
from tests.fakes.controlapi import VIEWER_SECRET
from tests.fakes.controlworlds import believable
from tests.fakes.hiveui import Browser, running_ui

pytestmark = pytest.mark.asyncio
CSRF = {"csrf": "csrf-operator"}


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with running_ui(believable(datetime.now(UTC))) as ui, aiohttp.ClientSession() as http:
        yield Browser(ui, http)


async def text(browser: Browser, path: str) -> str:
    return " ".join((await (await browser.get(path)).text()).split())


async def test_the_dashboard_shows_what_the_hive_and_each_agent_spent_of_their_budgets(
    browser: Browser,
) -> None:
    page = await text(browser, "/")
    assert '<span class="strong">$1.20</span> of $5.00 today' in page
    assert "81 % of its budget of $1.00 for today" in page
    browser.ui.fake.world.budgets["*"] = browser.ui.fake.world.budget("*", spent=5, limit=5, state="reached")
    assert "used up" in await text(browser, "/fragments/budget")
    del browser.ui.fake.world.budgets["*"]
    assert "Raise" not in await text(browser, "/fragments/budget")


async def test_an_agents_page_shows_its_budget_and_why_it_waits(browser: Browser) -> None:
    world = browser.ui.fake.world
    page = await text(browser, "/agents/hm1nd")
    assert '<span class="strong">$0.81</span> of $1.00' in page
    assert "81 percent of today's budget spent" in page
    why = "budget: $0.98 of $1.00 for today are spent"
    world.budgets["hm1nd"] = world.budget(
        "hm1nd", spent=0.98, limit=1.0, state="reached", waits=True, reason=why, tokens_per_turn=50_000
    )
    world.agents["hm1nd"] = world.agents["hm1nd"].model_copy(
        update={"state": AgentState.PARKED, "reason": why, "until": world.ago(-18_000)}
    )
    side = await text(browser, "/fragments/agents/hm1nd/side")
    assert f'<p class="bad-text">{why}</p>' in side
    assert "goes on" in side
    assert "tokens a turn" in side
    assert "parked" in await text(browser, "/fragments/agents/hm1nd/head")
    assert "no limit of its own" in await text(browser, "/agents/scout")
    world.budgets["hm1nd"] = world.budgets["hm1nd"].model_copy(update={"waits_for": "hive"})
    assert '<a href="/#budget">the hive\'s budget</a>' in await text(browser, "/agents/hm1nd")


@pytest.mark.parametrize(("path", "call", "back", "typed"), [
    ("/agents/hm1nd/budget", "/v1/agents/hm1nd/budget/raise", "/agents/hm1nd?done=raised", "1.50"),
    ("/budget", "/v1/budget/raise", "/?done=raised", "$1,5"),
])  # fmt: skip
async def test_a_budget_is_raised_for_today(
    browser: Browser, path: str, call: str, back: str, typed: str
) -> None:
    answer = await browser.post(path, CSRF | {"usd": typed})
    assert (answer.status, answer.headers["Location"]) == (303, back)
    assert browser.ui.fake.calls == [("POST", call, {"dry_run": False, "usd": 1.5, "note": ""})]
    assert "Raised until midnight." in await text(browser, back)


@pytest.mark.parametrize("typed", ["", "0", "-1", "1e9", "nan", "five", "1.2.3", "0.0000001"])
async def test_what_is_no_amount_raises_nothing(browser: Browser, typed: str) -> None:
    answer = await browser.post("/agents/hm1nd/budget", CSRF | {"usd": typed})
    assert (answer.status, browser.ui.fake.calls) == (400, [])
    assert "is no amount of dollars" in await answer.text()


async def test_a_viewer_sees_budgets_and_models_and_no_forms(browser: Browser) -> None:
    browser.cookies = browser.ui.cookie(VIEWER_SECRET)
    page = await text(browser, "/agents/hm1nd")
    assert "of $1.00" in page
    assert 'action="/agents/hm1nd/budget"' not in page
    assert 'action="/agents/hm1nd/model"' not in page
    assert 'action="/budget"' not in await text(browser, "/")


def _model(browser: Browser, agent: str, **changes: Any) -> None:
    agents = browser.ui.fake.world.agents
    model = agents[agent].model.model_copy(update=changes)
    agents[agent] = agents[agent].model_copy(update={"model": model})


async def test_the_picker_offers_what_is_allowed_and_says_what_is_queued_and_who_switched(
    browser: Browser,
) -> None:
    page = await text(browser, "/agents/smith")
    for offered in ("haiku", "sonnet", "opus", "fable"):
        assert f'<option value="{offered}"' in page
    assert '<option value="sonnet" selected>' in page
    assert "as in agent.nix (haiku)" in page
    assert '→ <span class="mono">sonnet</span> from the next turn on' in page
    assert "by alice" in page
    _model(browser, "smith", allowed=["haiku"], override=None)
    page = await text(browser, "/agents/smith")
    assert '<option value="opus"' not in page


async def test_another_model_in_the_requests_and_one_that_is_not_served_are_shown(browser: Browser) -> None:
    _model(browser, "smith", other="claude-opus-5-5", problem="claude-opus-4-1 is not served by this host")
    page = await text(browser, "/agents/smith")
    assert 'turn name <span class="mono">claude-opus-5-5</span>' in page
    assert "claude-opus-4-1 is not served by this host" in page


async def test_the_prompt_line_switches_the_model_and_goes_back(browser: Browser) -> None:
    for typed in ("/model opus", "/model"):
        answer = await browser.post("/agents/smith/prompt", CSRF | {"body": typed})
        assert answer.status == 303
    sent = [body for _, path, body in browser.ui.fake.calls if path == "/v1/agents/smith/model"]
    assert sent == [{"dry_run": False, "model": "opus"}, {"dry_run": False, "model": None}]
