"""A whole demo hive in a folder of its own, started once by the program behind `make demo`, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright import async_api, sync_api
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.demohive import (
    CHROMIUM_ARGUMENTS,
    DemoHive,
    free_port,
    login_link,
    start_demo,
    stop_demo,
)

for _api in (async_api, sync_api):
    _api.expect.set_options(timeout=60_000)  # not 5 s: the machine is at work


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoHive]:
    """One demo hive for the tests of a module; each test leaves its agents at work."""
    folder = tmp_path_factory.mktemp("hive") / "demo"
    demo = start_demo(folder, free_port())
    yield demo
    assert stop_demo(demo) == 0, "\n".join(demo.printed)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, closed with its module: the synchronous Playwright keeps an event loop running meanwhile."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def session(browser: Browser, hive: DemoHive) -> Iterator[BrowserContext]:
    """A browser that logged in by a one-time link."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(login_link(hive))
    page.get_by_role("button").first.click()
    page.wait_for_url(f"{hive.address}/")
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(session: BrowserContext) -> Iterator[Page]:
    """A fresh tab; a violation of the content policy or a script error fails the test."""
    tab = session.new_page()
    problems: list[str] = []
    tab.on(
        "console",
        lambda m: problems.append(m.text) if m.type == "error" and "Content Security" in m.text else None,
    )
    tab.on("pageerror", lambda e: problems.append(str(e)))
    yield tab
    tab.close()
    assert problems == []
