"""What the pages show, without any script: in a believable hive, an empty one, a large one and a hostile
one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from html.parser import HTMLParser

import aiohttp
import pytest
from yarl import URL

from reconciler.control import models as api
from reconciler.model.states import ProposalState
from tests.fakes.controldata import World
from tests.fakes.controlworlds import believable, empty, frozen, held, hostile, many
from tests.fakes.hiveui import Browser, running_ui

pytestmark = pytest.mark.asyncio

PAGES = (
    "/",
    "/?q=smith",
    "/approvals",
    "/approvals?show=history",
    "/approvals/8",
    "/approvals/9",
    "/approvals/10",
    "/approvals/10?show=diff&base=approved",
    "/approvals/11",
    "/approvals/12",
    "/approvals/13",
    "/agents/hm1nd",
    "/agents/hm1nd?before=5",
    "/agents/hm1nd/inbox",
    "/agents/smith/generations",
    "/agents/hm1nd/logs",
    "/agents/hm1nd/spec",
    "/agents/hm1nd/why",
    "/agents/hm1nd/lines/2",
    "/agents/smith/generations/12/rollback",
    "/messages",
    "/messages?agent=scout",
    "/messages/2",
    "/questions",
    "/events",
    "/events?kind=turn.begun&agent=hm1nd",
    "/audit",
    "/stats",
    "/stats?since=7d",
    "/agents/hm1nd/stats",
    "/help",
)
PARTS = (
    "/fragments/rail?at=hive",
    "/fragments/needs",
    "/fragments/agents",
    "/fragments/budget",
    "/fragments/flow",
    "/fragments/drafts",
    "/fragments/kept",
    "/fragments/whole",
    "/fragments/approvals",
    "/fragments/approvals/12/decision",
    "/fragments/approvals/12/body",
    "/fragments/approvals/10/log?after=2",
    "/fragments/approvals/10/build",
    "/fragments/agents/hm1nd/transcript?after=0",
    "/fragments/agents/hm1nd/transcript?before=9",
    "/fragments/agents/hm1nd/head",
    "/fragments/agents/hm1nd/side",
    "/fragments/agents/hm1nd/inbox",
    "/fragments/agents/smith/generations",
    "/fragments/agents/hm1nd/logs",
    "/fragments/messages",
    "/fragments/questions",
    "/fragments/events",
    "/fragments/audit",
    "/fragments/stats",
    "/fragments/agents/hm1nd/stats",
)
Opened = Callable[[Callable[[datetime], World]], AbstractAsyncContextManager[Browser]]


@pytest.fixture
def opened() -> Opened:
    """A logged-in browser on a world."""

    @asynccontextmanager
    async def open_world(world: Callable[[datetime], World]) -> AsyncIterator[Browser]:
        async with (
            running_ui(world(datetime.now(UTC))) as ui,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        ):
            yield Browser(ui, http)

    return open_world


class Outline(HTMLParser):
    """Tags, ids and what should not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str | None] = []
        self.styles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if "id" in named:
            self.ids.append(named["id"] or "")
        self.handlers += [name for name in named if name.startswith("on") or name == "style"]
        if tag == "script":
            self.scripts.append(named.get("src"))
        if tag in {"style", "iframe", "object", "embed", "base"}:
            self.styles += 1


def check(text: str, path: str) -> None:
    outline = Outline()
    outline.feed(text)
    assert not outline.handlers, f"{path}: {outline.handlers}"
    assert not outline.styles, path
    assert all(src and src.startswith("/static/") for src in outline.scripts), f"{path}: {outline.scripts}"
    assert len(set(outline.ids)) == len(outline.ids), f"{path}: an id twice in {sorted(outline.ids)}"


@pytest.mark.parametrize(
    "world", [believable, hostile, held, frozen], ids=["believable", "hostile", "held", "frozen"]
)
async def test_every_page_and_part_is_well_made_and_holds_no_foreign_markup(
    opened: Opened, world: Callable[[datetime], World]
) -> None:
    async with opened(world) as browser:
        for path in PAGES + PARTS:
            answer = await browser.get(path)
            text = await answer.text()
            assert answer.status == 200, f"{path}: {answer.status} {text[-600:]}"
            check(text, path)
            assert "<img" not in text, path
            assert "alert(1)</script" not in text, path
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b\u00ad]", text), path
            assert "{{" not in text.replace("{{ 7*7 }}", ""), path


async def test_hostile_text_is_shown_and_not_dropped(opened: Opened) -> None:
    async with opened(hostile) as browser:
        for path in ("/", "/messages", "/approvals/12", "/agents/hm1nd", "/questions", "/agents/hm1nd/logs"):
            text = await (await browser.get(path)).text()
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, path
            assert "⟪U+202E⟫" in text, path
            assert "⟪ESC⟫" in text, path


async def test_the_dashboard_says_first_what_needs_the_operator(opened: Opened) -> None:
    async with opened(believable) as browser:
        text = await (await browser.get("/")).text()
    assert "<title>(4) Hive · hive</title>" in text
    assert text.index('id="needs"') < text.index('id="agents"') < text.index('id="flow"')
    for said in ("Review", "scout</a> asks", "scribe</a> crashed", "elevated", "napping 😴", "reading smith"):
        assert said in text
    assert "manager" in text
    assert "61%" in text


async def test_an_empty_hive_says_how_to_make_the_first_thing(opened: Opened) -> None:
    async with opened(empty) as browser:
        pages = {
            path: await (await browser.get(path)).text()
            for path in ("/", "/approvals", "/messages", "/questions")
        }
        for path in ("/events", "/audit", "/approvals?show=history"):
            assert (await browser.get(path)).status == 200
    assert "<title>Hive · hive</title>" in pages["/"]
    assert "Nothing needs you" in pages["/"]
    assert "hive new" in pages["/"]
    assert "hive propose" in pages["/approvals"]
    assert "hive send" in pages["/messages"]
    assert "No open question" in pages["/questions"]


async def test_a_message_is_in_the_same_state_on_its_own_page_as_in_the_list(opened: Opened) -> None:
    async with opened(believable) as browser:
        world = browser.ui.fake.world
        words = {"queued": "waiting", "leased": "in turn", "acked": "taken", "read": "read"}
        for message in world.messages:
            is_seen = message.state in {"read", "acked"}
            word = ("read" if is_seen else "unread") if message.to == "operator" else words[message.state]
            text = await (await browser.get(f"/messages/{message.id}")).text()
            head = text[text.index('class="letter-head"') :]
            assert word in re.sub(r"<[^>]+>", "", head[: head.index("</p>")])


async def test_300_agents_are_one_page_and_can_be_filtered_without_a_script(opened: Opened) -> None:
    async with opened(many) as browser:
        text = await (await browser.get("/")).text()
        found = await (await browser.get("/?q=worker-00+thinking")).text()
        none = await (await browser.get("/?q=nobody")).text()
    assert text.count('data-row data-text="') == 300
    assert 0 < found.count('data-row data-text="') < 10
    assert "No agent matches" in none


async def test_an_approval_shows_all_that_the_operator_decides_on(opened: Opened) -> None:
    async with opened(believable) as browser:
        text = await (await browser.get("/approvals/12")).text()
    order = ["review-head", "review-settings", "review-decide", "review-body", "review-chain"]
    places = [text.index(f'"{name}"') for name in order]
    assert places == sorted(places)
    assert "model <code>haiku</code> → <code>opus</code>, shell + <code>nix build .*</code>" in text
    assert "runs builds of whatever the work tree holds" in text
    for base in ("running", "approved", "proposal"):
        assert f"/approvals/12?base={base}" in text
    assert "Give smith the model opus" in text
    digest = browser.ui.fake.world.proposals[12].digest
    assert f'name="digest" value="{digest}"' in text


async def test_what_was_approved_shows_its_log_in_the_place_of_the_diff(opened: Opened) -> None:
    async with opened(believable) as browser:
        text = await (await browser.get("/approvals/10")).text()
        diff = await (await browser.get("/approvals/10?show=diff")).text()
    for word in ("approved", "building", "activating", "probing", "deployed"):
        assert f'<span class="word">{word}</span>' in text
    assert "hello after 131 ms" in text
    assert 'class="diff"' not in text
    assert 'class="diff"' in diff


async def test_an_invalid_proposal_shows_the_error_and_no_buttons(opened: Opened) -> None:
    async with opened(believable) as browser:
        text = await (await browser.get("/approvals/8")).text()
    assert "unexpected end of file" in text
    assert 'id="approve"' not in text


async def test_staged_files_of_a_new_agent_are_listed(opened: Opened) -> None:
    async with opened(believable) as browser:
        text = await (await browser.get("/approvals/13")).text()
    assert "/state/notes.md" in text
    assert "/state/templates/daily.md" in text


async def test_a_transcript_can_be_read_backwards_without_a_script(opened: Opened) -> None:
    def long(now: datetime) -> World:
        world = believable(now)
        world.transcripts["scout"] = []
        for number in range(450):
            world.line("scout", 1, 500 - number, "note", text=f"note {number}.")
        return world

    async with opened(long) as browser:
        seen, path = [], "/agents/scout"
        for _ in range(3):
            text = await (await browser.get(path)).text()
            seen += re.findall(r"note (\d+)\.", text)
            older = re.search(r'href="(/agents/scout\?before=\d+)"', text)
            path = older[1] if older else path
    assert sorted(map(int, seen)) == list(range(450))


async def test_lines_after_a_cursor_come_with_the_next_cursor(opened: Opened) -> None:
    async with opened(believable) as browser:
        lines = browser.ui.fake.world.transcripts["hm1nd"]
        answer = await browser.get(f"/fragments/agents/hm1nd/transcript?after={lines[-3].id}")
        text = await answer.text()
        waiting = lines[-1].id
        assert answer.headers["X-Cursor"] == str(waiting - 1)
        assert f'id="l-{waiting}"' in text


@pytest.mark.parametrize(
    "path",
    [
        "/agents/-x",
        "/agents/UPPER",
        "/agents/" + "a" * 40,
        "/agents/nobody",
        "/approvals/0",
        "/approvals/x",
        "/approvals/99",
        "/approvals/" + "9" * 30,
        "/messages/999999",
        "/agents/hm1nd/lines/99999",
        "/agents/smith/passwd",
    ],
)
async def test_an_address_of_nothing_says_so(opened: Opened, path: str) -> None:
    async with opened(believable) as browser:
        answer = await browser.get(path)
        text = await answer.text()
    assert answer.status == 404
    assert "There is nothing here" in text
    check(text, path)


@pytest.mark.parametrize(
    "query",
    [
        "before=-1",
        "before=x",
        "before=" + "9" * 40,
        "after=1e9",
        "agent=../x",
        "kind=%00",
        "base=evil",
        "q=%ff",
    ],
)
async def test_a_strange_query_counts_as_none(opened: Opened, query: str) -> None:
    async with opened(believable) as browser:
        for path in ("/", "/messages", "/events", "/audit", "/approvals/12", "/agents/hm1nd", "/approvals"):
            assert (await browser.get(f"{path}?{query}")).status == 200


async def test_a_gateway_that_is_away_is_said_on_the_dashboard(opened: Opened) -> None:
    async with opened(believable) as browser:
        browser.ui.fake.world.gateway_connected = False
        assert "gateway not connected" in await (await browser.get("/")).text()


async def test_a_hive_that_is_away_is_said_with_since_when_and_comes_back_by_itself(opened: Opened) -> None:
    async with opened(believable) as browser:
        await browser.ui.fake.stop()
        first = await browser.get("/approvals/12")
        text = await first.text()
        assert first.status == 503
        assert first.headers["Retry-After"] == "5"
        assert '<meta http-equiv="refresh" content="5">' in text
        assert "The hive is away" in text
        since = re.search(r'datetime="([^"]+)"', text)
        again = await (await browser.get("/")).text()
        assert since is not None
        assert since[1] in again
        await browser.ui.fake.start(browser.ui.settings.socket)
        assert (await browser.get("/approvals/12")).status == 200


async def test_the_page_of_an_absent_hive_links_to_no_other_host(opened: Opened) -> None:
    async with opened(believable) as browser:
        await browser.ui.fake.stop()
        url = URL(f"{browser.ui.url}//evil.example/x", encoded=True)
        async with browser.http.get(url, cookies=browser.cookies) as answer:
            text = await answer.text()
    assert answer.status == 503
    assert "//evil" not in text


async def test_a_page_that_fails_shows_a_reference_and_nothing_else(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("ui.pages.messages.by_need", broken)
    monkeypatch.setattr("ui.pages.audit.json.dumps", broken)
    async with opened(believable) as browser:
        answer = await browser.get("/audit")
        text = await answer.text()
    assert answer.status == 500
    assert "secret inside" not in text
    assert re.search(r"under [0-9a-f]{8}", text)


def building(now: datetime) -> World:
    """A build under way, with one that waits behind it."""
    world = believable(now)
    moved = {"state": ProposalState.BUILDING, "decided_by": "operator", "decided_at": world.ago(60)}
    done = (ProposalState.EXAMINING, ProposalState.PENDING, ProposalState.APPROVED)
    steps = [api.Progress(state=state, at=world.ago(60)) for state in done]
    for number in (12, 13):
        world.proposals[number] = world.proposals[number].model_copy(update={**moved, "progress": steps})
    world.builds[12] = api.BuildProgress(
        queued=False, built=3, expected=12, running=["hive-smith", "<b>"], elapsed_s=42.4, left_s=61.0
    )
    world.builds[13] = api.BuildProgress(
        queued=True, built=0, expected=0, running=[], elapsed_s=0, left_s=None
    )
    return world


async def test_a_build_under_way_says_how_far_it_is_and_what_is_left(opened: Opened) -> None:
    async with opened(building) as browser:
        for path in ("/approvals/12", "/fragments/approvals/12/build"):
            text = await (await browser.get(path)).text()
            check(text, path)
            assert "3 of 12</span> built" in text
            assert 'aria-label="3 of 12 built"' in text
            assert "hive-smith, &lt;b&gt;" in text
            assert "0:42</time>" in text
            assert re.search(r"about <time[^>]*>01:0[01]</time> left", text)
        assert "other builds have all slots" in await (await browser.get("/approvals/13")).text()
        ended = await (await browser.get("/fragments/approvals/10/build")).text()
        assert "built" not in ended


# ------------------------------------------------------------------------------------------ holds, kept state
async def test_what_is_held_or_in_trouble_needs_the_operator_and_says_why(opened: Opened) -> None:
    async with opened(held) as browser:
        text = await (await browser.get("/")).text()
        assert "is held: writes to everybody at once" in text
        assert "cannot be brought to what it should be: cannot write" in text
        assert 'action="/agents/smith/release"' in text
        assert "act/wake" not in text, "a hold does not end by waking"
        head = await (await browser.get("/agents/smith")).text()
        assert 'action="/agents/smith/release"' in head
        assert 'id="verb-hold"' not in head


async def test_a_held_hive_is_one_thing_and_its_agents_are_not_released_one_by_one(opened: Opened) -> None:
    async with opened(frozen) as browser:
        text = await (await browser.get("/fragments/needs")).text()
        assert "The whole hive is held: the disk is full" in text
        assert 'action="/release"' in text
        assert "/agents/smith/release" not in text
        assert "is held by itself too" in text, "the hold of the hive does not hide its own"
        head = await (await browser.get("/agents/hm1nd")).text()
        assert 'action="/agents/hm1nd/release"' not in head
        assert "It goes on when" in head


async def test_what_is_kept_is_revived_at_once_and_purged_after_its_name_was_typed(opened: Opened) -> None:
    async with opened(held) as browser:
        text = await (await browser.get("/")).text()
        assert 'action="/kept/herald-old/revive"' in text
        assert 'href="/kept/herald-old/purge"' in text
        assert "/kept/tmp/" not in text, "it is being purged already"
        page = await (await browser.get("/kept/herald-old/purge")).text()
        assert 'pattern="herald-old"' in page
        assert (await browser.get("/kept/nobody/purge")).status == 404


async def test_accidents_of_the_day_stand_beside_the_transcript(opened: Opened) -> None:
    async with opened(held) as browser:
        side = await (await browser.get("/fragments/agents/scribe/side")).text()
        assert "out of memory (crash 2 in a row)" in side
        assert "restore tags" in side
        assert "should run" not in side, "a start is no accident"
