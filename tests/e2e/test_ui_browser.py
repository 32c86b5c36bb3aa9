"""The pages in Chromium over a fake hived: live, by keyboard, on a telephone, within the policy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from reconciler.model.states import AgentState, ProposalState
from tests.fakes.controlapi import LOGIN_TOKEN
from tests.fakes.controldata import World
from tests.fakes.controlworlds import believable, hostile, many
from tests.fakes.hiveui import RunningUi, running_ui

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHROMIUM = "/usr/bin/chromium"
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
TABLET, SMALL = {"width": 768, "height": 1024}, {"width": 1024, "height": 768}
PAGES = (
    "/",
    "/approvals",
    "/approvals?show=history",
    "/approvals/12",
    "/approvals/13",
    "/approvals/10",
    "/approvals/8",
    "/agents/hm1nd",
    "/agents/smith/inbox",
    "/agents/smith/spec",
    "/agents/smith/generations",
    "/agents/hm1nd/logs",
    "/agents/smith/why",
    "/agents/hm1nd/lines/3",
    "/messages",
    "/messages/5",
    "/questions",
    "/events",
    "/audit",
    "/stats",
    "/agents/hm1nd/stats",
    "/help",
    "/login",
    "/nothing",
)


class Watched:
    """A page with everything that should not happen on it."""

    def __init__(self, ui: RunningUi, page: Page) -> None:
        self.ui, self.fake, self.page = ui, ui.fake, page
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("request", lambda r: self.foreign.append(r.url) if not r.url.startswith(ui.url) else None)

    async def goto(self, path: str) -> Page:
        await self.page.goto(self.ui.url + path)
        return self.page

    async def live(self, path: str) -> Page:
        """Open it and wait until its stream stands; a mark shows later that it was not loaded anew."""
        await self.goto(path)
        await self.ready()
        await self.page.evaluate("window.stillHere = true")
        return self.page

    async def ready(self) -> None:
        """The scripts of a page that was just come to run."""
        await expect(self.page.locator("html")).to_have_attribute("data-stream", "up")

    async def was_not_reloaded(self) -> bool:
        return bool(await self.page.evaluate("window.stillHere === true"))


Opened = Callable[..., AbstractAsyncContextManager[Watched]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest.fixture
def opened(chromium: Browser) -> Opened:
    @asynccontextmanager
    async def open_page(
        world: Callable[[datetime], World] = believable, *, size: Any = WIDE, **more: Any
    ) -> AsyncIterator[Watched]:
        async with running_ui(world(datetime.now(UTC))) as ui:
            context = await chromium.new_context(viewport=size, **more)
            await log_in(context, ui)
            yield Watched(ui, await context.new_page())
            await context.close()

    return open_page


async def log_in(context: BrowserContext, ui: RunningUi) -> None:
    for name, value in ui.cookie().items():
        await context.add_cookies([{"name": name, "value": value, "url": ui.url}])


@pytest.mark.parametrize("world", [believable, hostile], ids=["believable", "hostile"])
@pytest.mark.parametrize("size", [WIDE, SMALL, TABLET, NARROW], ids=["wide", "small", "tablet", "narrow"])
async def test_no_page_breaks_the_policy_asks_elsewhere_or_is_wider_than_the_window(
    opened: Opened, world: Callable[[datetime], World], size: dict[str, int]
) -> None:
    async with opened(world, size=size) as watched:
        watched.page.on("dialog", lambda dialog: watched.errors.append(f"dialog {dialog.message}"))
        for path in PAGES:
            page = await watched.goto(path)
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], f"{path} is {width} px wide"
        noise = [e for e in watched.errors if "404 (Not Found)" not in e]
        assert noise == []
        assert watched.foreign == []


async def test_logging_in_by_a_link_and_out_again(opened: Opened) -> None:
    async with opened() as watched:
        await watched.page.context.clear_cookies()
        page = await watched.goto("/approvals")
        await expect(page.get_by_text("hive login")).to_be_visible()
        await watched.goto(f"/login/{LOGIN_TOKEN}")
        await page.get_by_role("button", name="Log in to this hive").click()
        await expect(page).to_have_url(f"{watched.ui.url}/")
        cookie = next(c for c in await page.context.cookies())
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        await page.get_by_role("button", name="Log out").click()
        await expect(page).to_have_url(f"{watched.ui.url}/login")


async def test_the_dashboard_moves_without_a_reload(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        fake = watched.fake
        fake.world.say(0, "smith", "operator", "the build is green")
        fake.emit("message.sent", "smith")
        await expect(page.locator("#flow")).to_contain_text("the build is green")
        fake.world.agents["scout"] = fake.world.agents["scout"].model_copy(
            update={"state": AgentState.THINKING, "state_since": fake.world.ago(0)}
        )
        fake.emit("agent.state", "scout")
        await expect(page.locator("#agent-scout")).to_contain_text("thinking")
        await expect(page.locator("#rail")).to_contain_text("thinking")
        fake.move(13, ProposalState.CANCELLED)
        await expect(page).to_have_title("(3) Hive · hive")
        await expect(page.locator("#needs")).not_to_contain_text("herald")
        assert await watched.was_not_reloaded()
        assert watched.errors == []


async def test_what_is_typed_opened_and_focused_stays_when_the_page_moves(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        await page.locator("#need-p12 summary").click()
        note = page.locator("#deny-12")
        await note.fill("half a sen")
        watched.fake.world.add_proposal(14, "scout", 0)
        watched.fake.emit("proposal.state", "scout")
        await expect(page.locator("#need-p14")).to_be_visible()
        await expect(note).to_be_visible()
        await expect(note).to_have_value("half a sen")
        await expect(note).to_be_focused()


async def test_a_message_is_sent_without_a_reload_and_the_field_is_empty_again(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        await page.locator("#compose-to").select_option("scout")
        await page.locator("#compose-body").fill("all well?")
        await page.locator("#compose-body").press("Enter")
        await expect(page.locator("#flow .messages")).to_contain_text("all well?")
        await expect(page.locator("#compose-body")).to_have_value("")
        await expect(page.locator("#compose")).to_contain_text("Sent to scout.")
        assert await watched.was_not_reloaded()
        await page.locator("#compose-body").fill("two\nlines")
        await page.locator("#compose-body").press("Shift+Enter")
        assert len(watched.fake.calls) == 1


async def test_a_refusal_stands_beside_the_form_and_keeps_the_text(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/agents/scout")
        await page.locator("#prompt-body").fill("/modle opus")
        await page.locator("#prompt-body").press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("/modle is not a command")
        await expect(page.locator("#prompt-body")).to_have_value("/modle opus")
        assert watched.fake.calls == []


async def test_the_prompt_line_knows_its_commands(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/agents/hm1nd")
        prompt = page.locator("#prompt-body")
        await page.keyboard.press("/")
        await expect(prompt).to_be_focused()
        await prompt.type("/mo")
        await expect(page.locator("#commands li:visible")).to_have_count(1)
        await prompt.press("Tab")
        await expect(prompt).to_have_value("/model ")
        await prompt.type("haiku")
        await prompt.press("Enter")
        await expect(page.locator("#agent-side")).to_contain_text("→ haiku from the next turn on")
        await prompt.fill("/clear")
        await prompt.press("Enter")
        await expect(page.locator("#transcript li")).to_have_count(0)
        assert watched.fake.calls == [
            ("POST", "/v1/agents/hm1nd/model", {"model": "haiku", "dry_run": False})
        ]


async def test_the_transcript_grows_live_and_a_result_joins_its_call(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/agents/hm1nd")
        waiting = page.locator("#transcript li.open")
        await expect(waiting).to_have_count(1)
        rows = await page.locator("#transcript > li").count()
        world = watched.fake.world
        world.line(
            "hm1nd", 41, 0, "tool_result", id="u3", text="abc123 first", is_error=False, duration_ms=31
        )
        world.line("hm1nd", 41, 0, "text", text="Smith lacks the input.")
        watched.fake.emit("turn.event", "hm1nd")
        await expect(page.locator("#transcript")).to_contain_text("Smith lacks the input.")
        await expect(waiting).to_have_count(0)
        assert await page.locator("#transcript > li").count() == rows + 1
        assert await watched.was_not_reloaded()


def _talkative(now: datetime) -> World:
    world = believable(now)
    world.transcripts["scout"] = []
    for number in range(450):
        world.line("scout", 1, 500 - number, "note", text=f"note {number}.")
    return world


async def test_the_view_sticks_to_the_bottom_until_the_reader_scrolls_up(opened: Opened) -> None:
    async with opened(_talkative) as watched:
        page = await watched.live("/agents/scout")
        world, at_end = watched.fake.world, "s => s.scrollHeight - s.scrollTop - s.clientHeight < 40"
        scroll = page.locator("#scroll")
        world.line("scout", 1, 0, "note", text="one more")
        watched.fake.emit("turn.event", "scout")
        await expect(page.get_by_text("one more")).to_be_in_viewport()
        assert await scroll.evaluate(at_end)
        await scroll.hover()
        await page.mouse.wheel(0, -900)
        await expect(page.get_by_text("one more")).not_to_be_in_viewport()
        for number in range(3):
            world.line("scout", 1, 0, "note", text=f"unseen {number}")
        watched.fake.emit("turn.event", "scout")
        newer = page.locator("#newer")
        await expect(newer).to_have_text("3 new ↓")
        assert not await scroll.evaluate(at_end)
        await newer.click()
        await expect(newer).to_be_hidden()
        await expect(page.get_by_text("unseen 2")).to_be_in_viewport()


async def test_scrolling_up_brings_older_lines(opened: Opened) -> None:
    async with opened(_talkative) as watched:
        page = await watched.live("/agents/scout")
        await expect(page.locator("#transcript > li")).to_have_count(200)
        await page.locator("#scroll").evaluate("s => s.scrollTop = 0")
        await expect(page.locator("#transcript > li")).to_have_count(400)
        await page.locator("#scroll").evaluate("s => s.scrollTop = 0")
        await expect(page.locator("#transcript > li")).to_have_count(450)
        texts = await page.locator("#transcript > li").all_inner_texts()
        assert [int(re.sub(r"\D", "", text)) for text in texts] == list(range(450))


async def test_approving_by_keyboard_shows_the_log_and_the_five_words_live(opened: Opened) -> None:
    async with opened() as watched:
        page, fake = await watched.live("/approvals/12"), watched.fake
        await page.keyboard.press("a")
        await expect(page.locator("#approve")).to_be_focused()
        assert fake.calls == []
        await page.keyboard.press("Enter")
        await expect(page.locator("#body")).to_contain_text("Build log")
        await watched.ready()
        await page.evaluate("window.stillHere = true")
        fake.move(12, ProposalState.BUILDING)
        fake.log(12, "building smith")
        await expect(page.locator("#log")).to_contain_text("building smith")
        await expect(page.locator(".progress .now")).to_have_text(re.compile("building"))
        fake.move(12, ProposalState.ACTIVATING)
        fake.move(12, ProposalState.DEPLOYED, generation=15)
        await expect(page.locator(".progress .done")).to_have_count(5)
        await expect(page.locator("#decision")).to_contain_text("generation 15 is running")
        assert await watched.was_not_reloaded()
        assert watched.errors == []


async def test_denying_by_keyboard_begins_with_the_note(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/approvals/12")
        await page.keyboard.press("d")
        await page.keyboard.type("adj [] not the shell")
        assert watched.fake.calls == []
        await page.locator("#deny").click()
        await expect(page.locator("#decision")).to_contain_text("denied")
        assert watched.fake.calls[0][2] == {"dry_run": False, "note": "adj [] not the shell"}


async def test_another_browsers_decision_takes_the_buttons_away(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/approvals/12")
        watched.fake.move(12, ProposalState.SUPERSEDED)
        await expect(page.locator("#approve")).to_have_count(0)
        await expect(page.locator("#decision")).to_contain_text("superseded")


async def test_a_stale_page_says_so(opened: Opened) -> None:
    async with opened(java_script_enabled=False) as watched:
        page = await watched.goto("/approvals/12")
        watched.fake.move(12, ProposalState.SUPERSEDED)
        await page.locator("#approve").click()
        await expect(page.get_by_role("heading", name="This page was stale")).to_be_visible()
        await page.get_by_role("link", name="Look at it again").click()
        await expect(page.locator("#decision")).to_contain_text("superseded")


async def test_reading_and_deciding_work_without_a_script(opened: Opened) -> None:
    async with opened(java_script_enabled=False) as watched:
        page = await watched.goto("/")
        await page.locator("#need-p12 .button.primary").click()
        await page.get_by_role("link", name="the last approved").click()
        await page.locator("#note").fill("fine")
        await page.locator("#approve").click()
        await expect(page.locator("#decision")).to_contain_text("approved")
        await watched.goto("/agents/scout")
        await page.locator("#prompt-body").fill("hello scout")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_text("Sent.")).to_be_visible()
        await watched.goto("/questions")
        await page.get_by_label("mirror-b (older, signed)").check()
        await page.get_by_role("button", name="Answer").click()
        await expect(page.get_by_text("Answered.")).to_be_visible()
        assert [call[1] for call in watched.fake.calls] == [
            "/v1/proposals/12/approve",
            "/v1/messages",
            "/v1/questions/1/answer",
        ]


async def test_the_keyboard_goes_through_pages_rows_and_files(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        await page.keyboard.press("j")
        await expect(page.locator("#need-p12")).to_have_class(re.compile("here"))
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile("/approvals/12$"))
        await watched.ready()
        await page.keyboard.press("g")
        await page.keyboard.press("m")
        await expect(page).to_have_url(re.compile("/messages$"))
        await watched.live("/approvals/13")
        for key, file in (("j", 1), ("j", 2), ("k", 1)):
            await page.keyboard.press(key)
            await expect(page.locator(f"#file-{file}")).to_have_class(re.compile("here"))
        await page.keyboard.press("]")
        await expect(page).to_have_url(re.compile("base=approved"))
        await watched.ready()
        await page.keyboard.press("?")
        await expect(page.locator("#keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#keys")).to_be_hidden()


async def test_the_filter_works_while_typing_and_stays_when_the_table_moves(opened: Opened) -> None:
    async with opened(many) as watched:
        page = await watched.live("/")
        await page.keyboard.press("/")
        await page.keyboard.type("worker-01")
        rows = page.locator("#agents tbody tr:visible")
        await expect(rows).to_have_count(10)
        agents = watched.fake.world.agents
        agents["worker-010"] = agents["worker-010"].model_copy(update={"status": "moved"})
        watched.fake.emit("agent.state", "worker-010")
        await expect(page.locator("#agent-worker-010")).to_contain_text("moved")
        await expect(rows).to_have_count(10)


async def test_a_lost_connection_is_a_line_that_goes_away_and_nothing_is_missed(opened: Opened) -> None:
    async with opened() as watched:
        page, fake = await watched.live("/"), watched.fake
        await fake.stop()
        await expect(page.locator("#offline")).to_contain_text(
            re.compile("hived is away since .* reconnecting")
        )
        fake.world.say(0, "scout", "operator", "said while you were away")
        fake.world.event("message.sent", "scout")
        await fake.start(watched.ui.settings.socket)
        await expect(page.locator("#offline")).to_be_hidden()
        await expect(page.locator("#flow")).to_contain_text("said while you were away")
        assert await watched.was_not_reloaded()


async def test_an_ended_session_is_said_with_the_way_back(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        watched.fake.sessions.clear()
        watched.fake.cut_streams()
        await expect(page.locator("#offline")).to_contain_text("Your session has ended")
        await expect(page.locator("#offline a")).to_have_attribute("href", "/login")


async def test_two_tabs_share_one_stream_and_both_move(opened: Opened) -> None:
    async with opened() as watched:
        first = await watched.live("/")
        second = await first.context.new_page()
        await second.goto(watched.ui.url + "/")
        await expect(second.locator("html")).to_have_attribute("data-stream", "up")
        assert watched.fake.streams == 1
        watched.fake.world.say(0, "smith", "operator", "to both of you")
        watched.fake.emit("message.sent", "smith")
        for page in (first, second):
            await expect(page.locator("#flow")).to_contain_text("to both of you")
        await first.close()
        watched.fake.world.say(0, "smith", "operator", "to the one that is left")
        watched.fake.emit("message.sent", "smith")
        await expect(second.locator("#flow")).to_contain_text("to the one that is left")


async def test_the_theme_is_the_systems_until_one_is_chosen(opened: Opened) -> None:
    async with opened(color_scheme="light") as watched:
        page = await watched.live("/")
        ground = "getComputedStyle(document.body).backgroundColor"
        assert await page.evaluate(ground) == "rgb(244, 246, 249)"
        await page.locator("#theme").click()
        assert await page.evaluate(ground) == "rgb(11, 16, 22)"
        await watched.goto("/audit")
        assert await page.evaluate(ground) == "rgb(11, 16, 22)"


async def test_times_go_on_without_moving_anything(opened: Opened) -> None:
    async with opened() as watched:
        page = await watched.live("/")
        clock = page.locator("#agent-hm1nd time").first
        row = page.locator("#agent-smith")
        before, place = await clock.inner_text(), await row.bounding_box()
        await expect(clock).not_to_have_text(before)
        assert await row.bounding_box() == place
        assert urlsplit(page.url).path == "/"
