"""Holding, releasing, rolling back, reviving and purging from the pages, in a browser without scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from reconciler.control import models as api
from reconciler.model.states import AgentState, Desired
from tests.fakes.controlapi import VIEWER_SECRET
from tests.fakes.controlworlds import held
from tests.fakes.hiveui import Browser, running_ui

pytestmark = pytest.mark.asyncio
CSRF = {"csrf": "csrf-operator"}


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with running_ui(held(datetime.now(UTC))) as ui, aiohttp.ClientSession() as http:
        yield Browser(ui, http)


async def text(browser: Browser, path: str) -> str:
    return await (await browser.get(path)).text()


@pytest.mark.parametrize(
    ("path", "call", "back", "words"),
    [
        (
            "/agents/scout/hold",
            "/v1/agents/scout/hold",
            "/agents/scout?done=hold",
            "Held: nothing of it runs",
        ),
        ("/agents/smith/release", "/v1/agents/smith/release", "/agents/smith?done=release", "Released"),
        ("/hold", "/v1/hold", "/?done=hold-all", "The whole hive is held."),
        ("/release", "/v1/release", "/?done=release-all", "Everything is released."),
    ],
)
async def test_holds_carry_their_reason_and_say_what_they_did(
    browser: Browser, path: str, call: str, back: str, words: str
) -> None:
    answer = await browser.post(path, CSRF | {"note": " looks odd\r\nto me "})
    assert (answer.status, answer.headers["Location"]) == (303, back)
    body = {"dry_run": False, "note": "looks odd\nto me"}
    assert browser.ui.fake.calls == [("POST", call, body)]
    assert words in await text(browser, back)


async def test_a_note_that_is_too_long_is_refused_before_anything_is_done(browser: Browser) -> None:
    answer = await browser.post("/hold", CSRF | {"note": "x" * 2001})
    assert (answer.status, browser.ui.fake.calls) == (400, [])
    assert "nothing was done" in await answer.text()


async def test_a_roll_back_is_shown_by_a_dry_run_and_done_by_the_button(browser: Browser) -> None:
    page = await text(browser, "/agents/smith/generations/12/rollback")
    assert "goes back to generation 12 from generation 14" in " ".join(page.split()).replace("</span>", "")
    settings = page[page.index('<table class="settings">') : page.index("</table>")]
    assert all(said in settings for said in ("opus", "haiku", "another model"))
    assert '<span class="risk elevated">' in settings
    assert "<code>main</code> of its repository" in page
    [(_, path, body)] = browser.ui.fake.calls
    assert (path, body["generation"], body["dry_run"]) == ("/v1/agents/smith/rollback", 12, True)
    answer = await browser.post("/agents/smith/generations/12/rollback", CSRF | {"note": "worse", "now": "1"})
    _, path, body = browser.ui.fake.calls[-1]
    assert body == {"generation": 12, "now": True, "note": "worse", "dry_run": False}
    made = max(browser.ui.fake.world.proposals)
    assert answer.headers["Location"] == f"/approvals/{made}"
    assert browser.ui.fake.world.proposals[made].rollback_of == 12


async def test_only_generations_that_came_up_are_offered(browser: Browser) -> None:
    page = await text(browser, "/agents/smith/generations")
    assert "/agents/smith/generations/12/rollback" in page
    assert "/agents/smith/generations/13/rollback" not in page, "it failed"
    assert "/agents/smith/generations/14/rollback" not in page, "it runs"
    assert (await browser.get("/agents/smith/generations/99/rollback")).status == 404


async def test_a_destroyed_agent_is_revived(browser: Browser) -> None:
    answer = await browser.post("/kept/herald-old/revive", CSRF)
    assert answer.headers["Location"] == "/agents/herald-old?done=revive"
    assert browser.ui.fake.calls[0][1] == "/v1/agents/herald-old/revive"


async def test_a_purge_needs_the_typed_name_and_hived_compares_it(browser: Browser) -> None:
    wrong = await browser.post("/kept/herald-old/purge", CSRF | {"confirm": "herald"})
    assert wrong.status == 400
    page = await wrong.text()
    assert "its name must be given" in page
    assert "<code>hive purge herald-old</code>" in page, "a hint names its command without backticks"
    right = await browser.post("/kept/herald-old/purge", CSRF | {"confirm": "herald-old "})
    assert right.headers["Location"] == "/?done=purge"
    assert browser.ui.fake.calls[-1][2] == {"confirm": "herald-old", "note": "", "dry_run": False}
    assert "Being purged" in await text(browser, "/fragments/kept")


async def test_a_viewer_is_shown_no_buttons_and_may_press_none(browser: Browser) -> None:
    viewer = Browser(browser.ui, browser.http, VIEWER_SECRET)
    for path in ("/", "/agents/smith", "/agents/smith/generations", "/kept/herald-old/purge"):
        page = await text(viewer, path)
        for act in ("/hold", "/release", "/rollback", "/revive", 'id="purge"'):
            assert f'{act}"' not in page, (path, act)
    answer = await viewer.post("/hold", {"csrf": "csrf-viewer"})
    assert answer.status == 403


@pytest.mark.parametrize("path", ["/hold", "/release", "/agents/smith/hold", "/kept/herald-old/purge"])
async def test_none_of_it_is_done_without_the_pages_token(browser: Browser, path: str) -> None:
    answer = await browser.post(path, {"confirm": "herald-old"})
    assert (answer.status, browser.ui.fake.calls) == (403, [])


async def test_the_page_of_a_destroyed_agent_says_so_and_offers_only_what_can_be_done(
    browser: Browser,
) -> None:
    agents = browser.ui.fake.world.agents
    gone = {"desired": Desired.DESTROYED, "state": AgentState.STOPPED, "held": False}
    agents["smith"] = agents["smith"].model_copy(update=gone)
    for path in ("/agents/smith", "/agents/smith/generations"):
        page = await text(browser, path)
        assert '<span class="word">destroyed</span>' in page
        assert 'action="/kept/smith/revive"' in page
        assert 'href="/kept/smith/purge"' in page
        for act in ("act/start", "act/stop", "smith/model", "smith/prompt", "smith/release", "/rollback"):
            assert f"{act}" not in page, (path, act)
    shown = await text(browser, "/agents/smith/generations")
    assert "</span> running</span>" not in shown, "its last generation does not run"


async def test_the_page_of_a_held_agent_tells_of_a_turn_that_is_frozen_in_the_middle(
    browser: Browser,
) -> None:
    agents = browser.ui.fake.world.agents
    agents["smith"] = agents["smith"].model_copy(update={"turn": 41})
    assert "is frozen in the middle" in await text(browser, "/agents/smith")
    agents["smith"] = agents["smith"].model_copy(update={"turn": None})
    assert "is frozen in the middle" not in await text(browser, "/agents/smith")


async def test_events_are_told_without_what_is_empty(browser: Browser) -> None:
    browser.ui.fake.emit("agent.state", "smith", state="idle", reason="", until=None, count=0)
    page = await text(browser, "/events")
    assert "state=idle  count=0" in page
    assert "until=null" not in page


# ------------------------------------------------------------------------------------------- circles, drafts
async def test_an_agents_page_says_with_whom_it_goes_in_a_circle(browser: Browser) -> None:
    browser.ui.fake.world.loops = [
        api.Loop(
            agents=["scout", "smith"],
            state="held",
            waiting=2,
            hops=49,
            since=browser.ui.fake.world.ago(900),
            until=None,
            last="<b>thanks</b>",
        )
    ]
    page = await text(browser, "/agents/scout")
    assert "In a circle" in page
    assert "2 held" in page
    assert "thanks" not in page
    assert "In a circle" not in await text(browser, "/agents/hm1nd")


async def test_a_draft_is_discarded_with_a_note(browser: Browser) -> None:
    assert "not proposed yet" in (await text(browser, "/")).lower()
    answer = await browser.post("/drafts/herald/discard", CSRF | {"note": "we have one"})
    assert answer.status == 303
    call = ("POST", "/v1/drafts/herald/discard", {"dry_run": False, "note": "we have one"})
    assert browser.ui.fake.calls == [call]
    page = await text(browser, "/?done=discarded")
    assert "The draft is discarded." in page
    assert "herald" not in page.split('id="drafts"')[1].split("</section>")[0]
