"""The web server's locks: headers, Host, Origin, session, token, limits; on every page, errors too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from tests.fakes.controlapi import LOGIN_TOKEN, OPERATOR_SECRET, VIEWER_SECRET
from tests.fakes.controlworlds import believable
from tests.fakes.hiveui import Browser, RunningUi, running_ui
from ui.security import CONTENT_SECURITY_POLICY

pytestmark = pytest.mark.asyncio
HTML = "/", "/approvals/12", "/agents/hm1nd", "/login", "/nothing", "/agents/nobody", "/approvals/999"
OTHERS = "/static/x/app.js", "/static/x/none.js", "/static/../app.py", "/fragments/rail", "/favicon.ico"
WRITES = {
    "/messages": {"to": "scout", "body": "hi"},
    "/agents": {"name": "new"},
    "/agents/scout/act/stop": {},
    "/agents/scout/model": {"model": "opus"},
    "/agents/scout/prompt": {"body": "hi"},
    "/approvals/12/approve": {"digest": "x"},
    "/approvals/12/deny": {"note": "x"},
    "/approvals/12/cancel": {},
    "/questions/1/answer": {"text": "x"},
    "/questions/1/cancel": {},
    "/messages/1/read": {},
    "/messages/1/redeliver": {},
    "/logout": {},
}


@pytest_asyncio.fixture
async def ui() -> AsyncIterator[RunningUi]:
    async with running_ui(believable(datetime.now(UTC))) as running:
        yield running


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@pytest.fixture
def browser(ui: RunningUi, http: aiohttp.ClientSession) -> Browser:
    return Browser(ui, http)


@pytest.mark.parametrize("path", HTML + OTHERS)
@pytest.mark.parametrize("known", [True, False], ids=["logged in", "unknown"])
async def test_every_answer_has_the_headers(
    ui: RunningUi, http: aiohttp.ClientSession, path: str, *, known: bool
) -> None:
    answer = await Browser(ui, http, OPERATOR_SECRET if known else None).get(path)
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] in {"no-store", "no-cache"}
    assert "Server" not in answer.headers


async def test_a_hashed_file_is_kept_for_ever_and_only_it(browser: Browser) -> None:
    page = await (await browser.get("/")).text()
    address = page.split('<script src="')[1].split('"')[0]
    answer = await browser.get(address)
    assert answer.status == 200
    assert "immutable" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    "path",
    ["/static/x/..%2f..%2fapp.py", "/static/x/%2e%2e/app.py", "/static/x//etc/passwd", "/static/x/app.py"],
)
async def test_static_names_are_no_paths(browser: Browser, path: str) -> None:
    from yarl import URL

    url = URL(browser.ui.url + path, encoded=True)
    async with browser.http.get(url, allow_redirects=False) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost", "localhost:1", "evil.example:7000", "127.0.0.1"]
)
async def test_a_host_that_is_not_ours_is_refused(browser: Browser, host: str) -> None:
    for path in ("/", "/login", "/static/x/app.js", "/stream"):
        answer = await browser.get(path, headers={"Host": host})
        assert answer.status == 403
        assert "--allow-host" in await answer.text()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
async def test_the_names_of_this_machine_are_ours(browser: Browser, name: str) -> None:
    answer = await browser.get("/login", headers={"Host": f"{name}:{browser.ui.settings.port}"})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "OWN"}, True),
        ({"Sec-Fetch-Site": "", "Origin": "OWN"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"}, False),
        ({"Sec-Fetch-Site": "none", "Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "", "Origin": "null"}, False),
        ({"Sec-Fetch-Site": "", "Origin": ""}, False),
        ({"Sec-Fetch-Site": "", "Origin": "http://localhost:1"}, False),
        ({"Sec-Fetch-Site": "", "Origin": "https://localhost"}, False),
        ({"Sec-Fetch-Site": "", "Origin": "http://["}, False),
    ],
)
async def test_a_form_of_another_site_is_refused(
    browser: Browser, headers: dict[str, str], *, allowed: bool
) -> None:
    sent = {name: browser.ui.url if value == "OWN" else value for name, value in headers.items()}
    data = {"csrf": "csrf-operator", "to": "scout", "body": "hi"}
    answer = await browser.post("/messages", data, headers=sent)
    assert answer.status == (303 if allowed else 403)
    assert len(browser.ui.fake.calls) == (1 if allowed else 0)


@pytest.mark.parametrize("path", ["/login", "/static/x/app.js", "/favicon.ico"])
async def test_a_form_to_an_open_page_is_refused_and_no_bug(
    ui: RunningUi, http: aiohttp.ClientSession, path: str
) -> None:
    answer = await Browser(ui, http, None).post(path, {"csrf": ""})
    assert answer.status == 401


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("token", [None, "", "csrf-viewer", "csrf-operato", "csrf-operator "])
async def test_no_write_without_the_token(browser: Browser, path: str, token: str | None) -> None:
    answer = await browser.post(path, WRITES[path] | ({} if token is None else {"csrf": token}))
    assert answer.status == 403
    assert "nothing was changed" in await answer.text()
    assert browser.ui.fake.calls == []


@pytest.mark.parametrize("path", WRITES)
async def test_no_write_without_a_session(ui: RunningUi, http: aiohttp.ClientSession, path: str) -> None:
    for secret in (None, "ended-session-ended-session"):
        answer = await Browser(ui, http, secret).post(path, WRITES[path] | {"csrf": "csrf-operator"})
        assert answer.status == 401
    assert ui.fake.calls == []


@pytest.mark.parametrize("path", [p for p in WRITES if p != "/logout"])
async def test_a_viewer_may_not_write(ui: RunningUi, http: aiohttp.ClientSession, path: str) -> None:
    answer = await Browser(ui, http, VIEWER_SECRET).post(path, WRITES[path] | {"csrf": "csrf-viewer"})
    assert answer.status == 403
    assert ui.fake.calls == []


@pytest.mark.parametrize("path", ["/", "/approvals/12", "/agents/hm1nd", "/questions", "/messages"])
async def test_a_viewer_is_shown_no_form_but_logging_out(
    ui: RunningUi, http: aiohttp.ClientSession, path: str
) -> None:
    page = await (await Browser(ui, http, VIEWER_SECRET).get(path)).text()
    assert page.count('method="post"') == 1
    assert 'action="/logout"' in page


@pytest.mark.parametrize("path", ["/", "/approvals", "/agents/hm1nd", "/stream", "/fragments/needs", "/help"])
async def test_without_a_session_there_is_only_the_way_to_log_in(
    ui: RunningUi, http: aiohttp.ClientSession, path: str
) -> None:
    answer = await Browser(ui, http, None).get(path)
    text = await answer.text()
    assert answer.status == 401
    assert "hive login" in text
    assert "smith" not in text


async def test_a_cookie_that_could_not_be_a_session_never_reaches_hived(
    ui: RunningUi, http: aiohttp.ClientSession
) -> None:
    for secret in ("a b", "x" * 201, "ü", "a;b"):
        answer = await http.get(ui.url + "/", headers={"Cookie": f"{ui.settings.cookie}={secret}"})
        assert answer.status == 401


async def test_the_link_shows_a_button_and_only_the_button_uses_it(
    ui: RunningUi, http: aiohttp.ClientSession
) -> None:
    stranger = Browser(ui, http, None)
    for _ in range(3):
        answer = await stranger.get(f"/login/{LOGIN_TOKEN}")
        assert answer.status == 200
        assert f'action="/login/{LOGIN_TOKEN}"' in await answer.text()
    assert ui.fake.tokens == {LOGIN_TOKEN}
    answer = await stranger.post(f"/login/{LOGIN_TOKEN}", {})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    name, _, rest = cookie.partition("=")
    assert name == f"hive_session_{ui.settings.port}"
    attributes = {part.strip().lower() for part in rest.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert "secure" not in attributes
    again = await stranger.post(f"/login/{LOGIN_TOKEN}", {})
    assert again.status == 401
    assert "ten minutes" in await again.text()


async def test_a_link_cannot_be_used_from_another_site(ui: RunningUi, http: aiohttp.ClientSession) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    answer = await Browser(ui, http, None).post(f"/login/{LOGIN_TOKEN}", {}, headers=headers)
    assert answer.status == 403
    assert ui.fake.tokens == {LOGIN_TOKEN}


async def test_logging_out_ends_the_session_and_takes_the_cookie_back(browser: Browser) -> None:
    answer = await browser.post("/logout", {"csrf": "csrf-operator"})
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert (await browser.get("/")).status == 401


async def test_a_form_over_the_limit_is_refused(browser: Browser) -> None:
    answer = await browser.post("/messages", {"csrf": "csrf-operator", "to": "scout", "body": "x" * 300_000})
    assert answer.status == 413
    assert "256 KiB" in await answer.text()
    fine = await browser.post("/messages", {"csrf": "csrf-operator", "to": "scout", "body": "ü" * 40_000})
    assert fine.status == 303


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"csrf": "csrf-operator"}', "application/json"),
        (b"csrf=csrf-operator&" + b"a=1&" * 300, "application/x-www-form-urlencoded"),
        (b"csrf=csrf-operator&body=%ff%fe", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
        (b"csrf=csrf-operator", "text/plain"),
    ],
)
async def test_a_body_that_is_no_form_of_ours_is_refused(browser: Browser, body: bytes, kind: str) -> None:
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": kind}
    answer = await browser.http.post(
        f"{browser.ui.url}/messages",
        data=body,
        headers=headers,
        cookies=browser.cookies,
        allow_redirects=False,
    )
    assert answer.status == 400
    assert browser.ui.fake.calls == []


async def test_a_form_that_does_not_arrive_is_not_waited_for(
    ui: RunningUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.security.FORM_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", ui.settings.port)
    head = (
        f"POST /messages HTTP/1.1\r\nHost: localhost:{ui.settings.port}\r\nSec-Fetch-Site: same-origin\r\n"
        f"Cookie: {ui.settings.cookie}={OPERATOR_SECRET}\r\nContent-Length: 100\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n\r\ncsrf="
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    assert line.split()[1] == b"400"


async def test_no_redirect_leaves_this_server(browser: Browser) -> None:
    for path, data in WRITES.items():
        if path == "/logout":
            continue
        evil = {"next": "https://evil.example", "back": "//evil.example"}
        answer = await browser.post(
            f"{path}?next=//evil.example&to=//evil.example", data | evil | {"csrf": "csrf-operator"}
        )
        location = answer.headers.get("Location", "/")
        assert location.startswith("/")
        assert not location.startswith("//")
        assert "evil" not in location


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_do_nothing(browser: Browser, method: str) -> None:
    answer = await browser.http.request(
        method,
        f"{browser.ui.url}/messages",
        cookies=browser.cookies,
        headers={"Sec-Fetch-Site": "same-origin"},
    )
    assert answer.status in {403, 405}
    assert browser.ui.fake.calls == []
