"""What the operator does through the web arrives at hived as it was meant, or not at all; with and without a
script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from reconciler.errors import OperatorError, TemporaryError
from reconciler.model.states import ProposalState
from tests.fakes.controlworlds import believable
from tests.fakes.hiveui import Browser, running_ui

pytestmark = pytest.mark.asyncio
CSRF = {"csrf": "csrf-operator"}
HTMX = {"HX-Request": "true"}


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with (
        running_ui(believable(datetime.now(UTC))) as ui,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        yield Browser(ui, http)


def digest(browser: Browser) -> str:
    return browser.ui.fake.world.proposals[12].digest or ""


async def test_approving_sends_the_digest_that_was_shown(browser: Browser) -> None:
    form = CSRF | {"digest": digest(browser), "note": " good \r\nwork "}
    answer = await browser.post("/approvals/12/approve", form)
    assert (answer.status, answer.headers["Location"]) == (303, "/approvals/12")
    body = {"digest": digest(browser), "note": "good \nwork", "now": False, "dry_run": False}
    assert browser.ui.fake.calls == [("POST", "/v1/proposals/12/approve", body)]


async def test_approving_now_says_so(browser: Browser) -> None:
    await browser.post("/approvals/12/approve", CSRF | {"digest": digest(browser), "now": "1"})
    assert browser.ui.fake.calls[0][2]["now"] is True


@pytest.mark.parametrize("why", ["another digest", "decided meanwhile"])
async def test_a_stale_page_decides_nothing_and_says_so(browser: Browser, why: str) -> None:
    shown = digest(browser)
    if why == "another digest":
        shown = "0" * 64
    else:
        browser.ui.fake.move(12, ProposalState.SUPERSEDED)
    before = browser.ui.fake.world.proposals[12]
    answer = await browser.post("/approvals/12/approve", CSRF | {"digest": shown})
    text = await answer.text()
    assert answer.status == 409
    assert "This page was stale" in text
    assert "Nothing was decided" in text
    assert 'href="/approvals/12"' in text
    assert browser.ui.fake.world.proposals[12] == before


async def test_denying_carries_the_note(browser: Browser) -> None:
    answer = await browser.post(
        "/approvals/12/deny", CSRF | {"note": "name the commands", "digest": "whatever"}
    )
    assert answer.headers["Location"] == "/approvals/12?done=denied"
    assert browser.ui.fake.calls == [
        ("POST", "/v1/proposals/12/deny", {"note": "name the commands", "dry_run": False})
    ]
    text = await (await browser.get("/approvals/12?done=denied")).text()
    assert "name the commands" in text
    assert "Denied. The proposer gets your note." in text


async def test_a_note_that_is_too_long_decides_nothing(browser: Browser) -> None:
    for verb in ("approve", "deny"):
        form = CSRF | {"note": "x" * 2001, "digest": digest(browser)}
        answer = await browser.post(f"/approvals/12/{verb}", form)
        assert answer.status == 400
        assert "2001 characters" in await answer.text()
    assert browser.ui.fake.calls == []


async def test_a_made_up_done_code_shows_nothing(browser: Browser) -> None:
    text = await (await browser.get("/approvals/12?done=<b>you+won</b>")).text()
    assert "you won" not in text


async def test_a_message_is_sent_as_typed(browser: Browser) -> None:
    body = "  first\r\n\r\nsecond <b>  "
    await browser.post("/messages", CSRF | {"to": "scout", "body": body, "re": "7"})
    sent = {"to": "scout", "body": "  first\n\nsecond <b>  ", "in_reply_to": 7, "key": None, "dry_run": False}
    assert browser.ui.fake.calls == [("POST", "/v1/messages", sent)]


async def test_a_strange_reply_number_counts_as_none(browser: Browser) -> None:
    for number in ("9" * 5000, "x", "-1", "\u0663"):
        await browser.post("/messages", CSRF | {"to": "scout", "body": "x", "re": number})
    assert [call[2]["in_reply_to"] for call in browser.ui.fake.calls] == [None] * 4


@pytest.mark.parametrize(
    "form", [{"to": "", "body": "x"}, {"to": "scout", "body": " \n"}, {"to": "scout"}, {}]
)
async def test_a_message_to_nobody_or_without_a_word_is_not_sent(
    browser: Browser, form: dict[str, str]
) -> None:
    answer = await browser.post("/messages", CSRF | form)
    assert answer.status == 400
    assert browser.ui.fake.calls == []


@pytest.mark.parametrize(
    ("line", "call"),
    [
        (
            "hello\nthere",
            (
                "/v1/messages",
                {"to": "scout", "body": "hello\nthere", "in_reply_to": None, "key": None, "dry_run": False},
            ),
        ),
        (
            "//x",
            (
                "/v1/messages",
                {"to": "scout", "body": "/x", "in_reply_to": None, "key": None, "dry_run": False},
            ),
        ),
        ("/cancel", ("/v1/agents/scout/cancel", {"dry_run": False, "note": ""})),
        ("/restart", ("/v1/agents/scout/restart", {"dry_run": False, "note": ""})),
        ("/compact", ("/v1/agents/scout/compact", {"dry_run": False, "note": ""})),
        ("/new-session", ("/v1/agents/scout/new-session", {"dry_run": False, "note": ""})),
        ("/model opus", ("/v1/agents/scout/model", {"model": "opus", "dry_run": False})),
        ("/model", ("/v1/agents/scout/model", {"model": None, "dry_run": False})),
    ],
)
async def test_the_prompt_line_sends_or_commands(
    browser: Browser, line: str, call: tuple[str, dict[str, object]]
) -> None:
    answer = await browser.post("/agents/scout/prompt", CSRF | {"body": line})
    assert answer.status == 303
    assert browser.ui.fake.calls == [("POST", *call)]


@pytest.mark.parametrize("line", ["/modle opus", "/approve 12", "/stop it", "  ", ""])
async def test_a_mistyped_command_sends_nothing(browser: Browser, line: str) -> None:
    answer = await browser.post("/agents/scout/prompt", CSRF | {"body": line})
    assert answer.status == 400
    assert browser.ui.fake.calls == []


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "cancel", "wake", "compact", "new-session"])
async def test_every_button_of_an_agent_calls_its_verb(browser: Browser, verb: str) -> None:
    answer = await browser.post(f"/agents/scout/act/{verb}", CSRF)
    assert answer.headers["Location"] == f"/agents/scout?done={verb}"
    assert browser.ui.fake.calls[0][1] == f"/v1/agents/scout/{verb}"


@pytest.mark.parametrize("verb", ["destroy", "approve", "STOP"])
async def test_there_is_no_button_for_other_verbs(browser: Browser, verb: str) -> None:
    assert (await browser.post(f"/agents/scout/act/{verb}", CSRF)).status in {404, 405}
    assert browser.ui.fake.calls == []


async def test_the_picker_sets_the_model_and_takes_it_back(browser: Browser) -> None:
    await browser.post("/agents/scout/model", CSRF | {"model": "opus"})
    await browser.post("/agents/scout/model", CSRF | {"model": ""})
    assert [call[2]["model"] for call in browser.ui.fake.calls] == ["opus", None]


async def test_an_answer_joins_chosen_options_and_words(browser: Browser) -> None:
    answer = await browser.http.post(
        f"{browser.ui.url}/questions/1/answer",
        data=[("csrf", "csrf-operator"), ("option", "1"), ("option", "2"), ("text", "and c")],
        headers={"Sec-Fetch-Site": "same-origin"},
        cookies=browser.cookies,
        allow_redirects=False,
    )
    assert answer.status == 303
    assert browser.ui.fake.calls == [
        ("POST", "/v1/questions/1/answer", {"text": "and c", "options": [1, 2], "dry_run": False})
    ]


@pytest.mark.parametrize(
    "form", [{}, {"text": "  "}, {"text": "x" * 8001}, {"option": "yes"}, {"option": "0"}]
)
async def test_no_answer_is_not_an_answer(browser: Browser, form: dict[str, str]) -> None:
    assert (await browser.post("/questions/1/answer", CSRF | form)).status == 400
    assert browser.ui.fake.calls == []


async def test_a_question_can_be_cancelled_and_a_message_read(browser: Browser) -> None:
    await browser.post("/questions/1/cancel", CSRF)
    await browser.post("/messages/7/read", CSRF)
    assert [call[1] for call in browser.ui.fake.calls] == ["/v1/questions/1/cancel", "/v1/messages/7/read"]


async def test_a_new_agent_leads_to_its_proposal(browser: Browser) -> None:
    answer = await browser.post("/agents", CSRF | {"name": " courier ", "description": "carries"})
    number = max(browser.ui.fake.world.proposals)
    assert answer.headers["Location"] == f"/approvals/{number}"
    sent = browser.ui.fake.calls[0][2]
    assert (sent["name"], sent["description"], sent["approve"]) == ("courier", "carries", True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "ünï", "a" * 40, "operator\n"])
async def test_a_name_that_is_none_is_refused_in_words(browser: Browser, name: str) -> None:
    count = len(browser.ui.fake.world.proposals)
    answer = await browser.post("/agents", CSRF | {"name": name})
    if name.strip() == "operator":
        return  # reserved names are hived's to refuse
    assert answer.status == 400
    assert "a-z" in await answer.text()
    assert len(browser.ui.fake.world.proposals) == count


async def test_the_script_gets_a_line_instead_of_a_page(browser: Browser) -> None:
    answer = await browser.post("/messages", CSRF | {"to": "scout", "body": "hi"}, headers=HTMX)
    text = await answer.text()
    assert answer.status == 200
    assert answer.headers["HX-Trigger"] == "hive:done"
    assert "Sent to scout." in text
    assert "<html" not in text


async def test_the_script_gets_errors_as_a_line_too(browser: Browser) -> None:
    answer = await browser.post("/messages", CSRF | {"to": "nobody", "body": "hi"}, headers=HTMX)
    text = await answer.text()
    assert answer.status == 404
    assert 'role="alert"' in text
    assert "nobody" in text
    assert "<html" not in text
    assert "HX-Trigger" not in answer.headers


async def test_the_script_of_an_ended_session_is_sent_to_the_login(browser: Browser) -> None:
    browser.ui.fake.sessions.clear()
    answer = await browser.post("/messages", CSRF | {"to": "scout", "body": "hi"}, headers=HTMX)
    assert (answer.status, answer.headers["HX-Redirect"]) == (401, "/login")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TemporaryError("hived is stopping", hint="a moment"), 503),
        (OperatorError("body is larger than 64 KiB", code="too-large"), 413),
        (OperatorError("not now <b>", hint="later"), 400),
    ],
)
async def test_a_refusal_of_hived_is_shown_in_its_words(
    browser: Browser, error: OperatorError, status: int
) -> None:
    browser.ui.fake.refuse = error
    answer = await browser.post("/messages", CSRF | {"to": "scout", "body": "hi"})
    text = await answer.text()
    assert answer.status == status
    assert error.message.replace("<", "&lt;").replace(">", "&gt;") in text
    assert error.hint in text
