"""`make screenshots`: every page as a picture, wide and narrow, dark and light.

Without arguments it shows the web server over a fake hived with believable data; `--login LINK` shows a
running hive instead (a fresh link of `hive login`). Pictures go to `test-results/screens/`, named
PAGE-WIDTH-THEME.png.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.fakes import controlworlds
from tests.fakes.hiveui import running_ui

CHROMIUM = "/usr/bin/chromium"
README_FOLDER = Path(__file__).resolve().parents[2] / "docs/screenshots"
Theme = Literal["dark", "light"]
WIDTHS = {1440: 900, 390: 844}
PAGES = {
    "hive": "/",
    "approvals": "/approvals",
    "history": "/approvals?show=history",
    "approval": "/approvals/12",
    "approval-spawn": "/approvals/13",
    "approval-deployed": "/approvals/10",
    "approval-failed": "/approvals/9",
    "approval-invalid": "/approvals/8",
    "agent": "/agents/hm1nd",
    "inbox": "/agents/smith/inbox",
    "spec": "/agents/smith/spec",
    "generations": "/agents/smith/generations",
    "why": "/agents/smith/why",
    "messages": "/messages",
    "message": "/messages/5",
    "questions": "/questions",
    "events": "/events",
    "audit": "/audit",
    "stats": "/stats",
    "agent-stats": "/agents/hm1nd/stats",
    "help": "/help",
    "login": "/login",
    "rollback": "/agents/smith/generations/12/rollback",
    "held": "/agents/smith",
    "purge": "/kept/herald-old/purge",
    "missing": "/agents/nobody",
}


async def opened(browser: Browser, base: str, cookies: Mapping[str, str], width: int, theme: Theme) -> Page:
    """A logged-in page of its own browser context."""
    context = await browser.new_context(
        viewport={"width": width, "height": WIDTHS.get(width, 900)},
        color_scheme=theme,
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    await context.add_cookies([{"name": k, "value": v, "url": base} for k, v in cookies.items()])
    return await context.new_page()


async def settle(page: Page) -> None:
    """Fonts, the first scroll, the first tick."""
    await page.evaluate("document.fonts.ready")
    await page.wait_for_timeout(250)


async def shoot(browser: Browser, base: str, cookies: Mapping[str, str], given: argparse.Namespace) -> None:
    """All chosen pages in all chosen sizes and themes."""
    for theme in given.theme:
        for width in given.width:
            page = await opened(browser, base, cookies, width, theme)
            for name in given.page or PAGES:
                await page.goto(base + PAGES[name])
                await settle(page)
                path = given.out / f"{given.prefix}{name}-{width}-{theme}.png"
                await page.screenshot(path=path, full_page=given.full)
            await page.context.close()


# What the README shows: name → page and theme.
README: dict[str, tuple[str, Theme]] = {
    "dashboard-dark": ("/", "dark"),
    "approval-dark": ("APPROVAL", "dark"),
    "agent-dark": ("/agents/hm1nd", "dark"),
}


async def shoot_readme(browser: Browser, base: str, cookies: Mapping[str, str], out: Path) -> None:
    """The README's pictures; APPROVAL is the proposal that waits."""
    for name, (path, theme) in README.items():
        page = await opened(browser, base, cookies, 1440, theme)
        if path == "APPROVAL":
            await page.goto(base)
            await page.locator(".need .primary").first.click()
            await page.wait_for_url("**/approvals/*")
        else:
            await page.goto(base + path)
        await settle(page)
        await page.screenshot(path=out / f"{name}.png")
        await page.context.close()


async def play(browser: Browser, base: str, cookies: Mapping[str, str]) -> None:
    """Ask the demo hive for something, as a person does, and wait for what comes of it."""
    page = await opened(browser, base, cookies, 1440, "dark")
    asked = {
        "scout": "What is in your repository?",
        "hm1nd": "give smith the model opus and let it run `nix build .*`",
    }
    for name, text in asked.items():
        await page.goto(f"{base}/agents/{name}")
        await page.locator("#prompt-body").fill(text)
        await page.locator("#prompt-body").press("Enter")
        await expect(page.locator(".turn-end").first).to_be_visible(timeout=120_000)
    await page.goto(base)
    await expect(page.locator(".need .primary").first).to_be_visible(timeout=60_000)
    await page.context.close()


async def login(browser: Browser, link: str) -> dict[str, str]:
    """Use a one-time link as a person does."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(link)
    await page.locator("#login").click()
    await page.wait_for_url("**/")
    cookies = {c["name"]: c["value"] for c in await context.cookies() if "name" in c and "value" in c}
    await context.close()
    return cookies


async def run(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.push_async_callback(browser.close)
        if given.login:
            parts = urlsplit(given.login)
            base, cookies = f"{parts.scheme}://{parts.netloc}", await login(browser, given.login)
        else:
            world = getattr(controlworlds, given.world)(datetime.now(UTC))
            ui = await stack.enter_async_context(running_ui(world))
            base, cookies = ui.url, ui.cookie()
        if given.play:
            await play(browser, base, cookies)
        if given.readme:
            await shoot_readme(browser, base, cookies, README_FOLDER)
        else:
            await shoot(browser, base, cookies, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("test-results/screens"))
    parser.add_argument("--login", metavar="LINK", help="a fresh link of `hive login` of a running hive")
    parser.add_argument(
        "--world", choices=("believable", "empty", "many", "hostile", "held", "frozen"), default="believable"
    )
    parser.add_argument(
        "--page", action="append", choices=sorted(PAGES), help="only this page; may be repeated"
    )
    parser.add_argument("--width", action="append", type=int, help="only this width (default: 1440 and 390)")
    parser.add_argument("--theme", action="append", choices=("dark", "light"), help="only this theme")
    parser.add_argument("--prefix", default="", help="before the names of the files")
    parser.add_argument("--readme", action="store_true", help="only the README's, into docs/screenshots")
    parser.add_argument(
        "--play", action="store_true", help="with --login: ask the demo hive for something first"
    )
    parser.add_argument("--full", action="store_true", help="the whole page, not only what fits the window")
    given = parser.parse_args()
    given.width = given.width or list(WIDTHS)
    given.theme = given.theme or ["dark", "light"]
    asyncio.run(run(given))


if __name__ == "__main__":
    main()
