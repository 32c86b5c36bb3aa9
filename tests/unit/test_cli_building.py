"""The line that says how far a build is while `hive approve --wait` waits."""

from __future__ import annotations

import io

import pytest

from reconciler.cli.console import Console, span
from reconciler.cli.follow import building


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def progress(**changes: object) -> dict[str, object]:
    plain = {"queued": False, "built": 0, "expected": 0, "running": [], "elapsed_s": 1.4, "left_s": None}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, ""),
        (progress(), "evaluating · 0:01"),
        (progress(queued=True), "waits: other builds have all slots"),
        (
            progress(built=3, expected=12, running=["hive-smith", "etc"], elapsed_s=72, left_s=3700.2),
            "built 3 of 12 · hive-smith, etc · 1:12 · about 1:01:40 left",
        ),
    ],
)
def test_a_build_on_one_line(found: dict[str, object] | None, text: str) -> None:
    assert building(found) == text


def test_a_span_is_shown_as_on_a_clock() -> None:
    assert [span(seconds) for seconds in (-1, 0, 59.9, 60, 3600)] == [
        "0:00",
        "0:00",
        "0:59",
        "1:00",
        "1:00:00",
    ]


def test_a_status_is_replaced_by_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console(as_json=False, out=out, err=io.StringIO())
    console.status("built 1 of 2 \x1b[2J")
    console.status("built 2 of 2")
    console.line("a line")
    console.status("")
    text = out.getvalue()
    assert text.count("\r\033[K") == 3, "two states, and the line that replaces the second"
    assert "\x1b[2J" not in text
    assert text.endswith("\r\033[Ka line\n")


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_of_it_goes_into_files_and_programs(as_json: bool) -> None:
    out = Terminal() if as_json else io.StringIO()
    console = Console(as_json=as_json, out=out, err=io.StringIO())
    console.status("built 1 of 2")
    assert out.getvalue() == ""
