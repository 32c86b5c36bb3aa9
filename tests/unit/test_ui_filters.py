"""What templates do to text: foreign characters made visible, times and amounts in words."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui import filters

NOW = datetime(2026, 11, 22, 21, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, ümläut, 漢字, مرحبا", "plain text, ümläut, 漢字, مرحبا"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("windows\r\nline", "windows\nline"),
        ("over\rwritten", "over⟪CR⟫written"),
        ("\x1b[31mred", "⟪ESC⟫[31mred"),
        ("a\x00b\x7fc\x9bd", "a⟪NUL⟫b⟪U+007F⟫c⟪U+009B⟫d"),
        ("\u202egnp.exe", "⟪U+202E⟫gnp.exe"),
        ("zero\u200bwidth\ufeff", "zero⟪U+200B⟫width⟪U+FEFF⟫"),
        ("line\u2028separator", "line⟪U+2028⟫separator"),
        ("tag\U000e0041", "tag⟪U+E0041⟫"),
        ("filler\u3164", "filler⟪U+3164⟫"),
    ],
)
def test_characters_that_hide_move_or_turn_text_are_shown_by_name(raw: str, shown: str) -> None:
    assert filters.visible(raw) == shown


def test_a_joiner_makes_one_picture_of_two_but_hides_nowhere_else() -> None:
    assert filters.visible("\U0001f468\u200d\U0001f4bb") == "\U0001f468\u200d\U0001f4bb"
    assert filters.visible("ad\u200dmin") == "ad⟪U+200D⟫min"


@given(st.text())
def test_nothing_that_shows_as_nothing_is_left(text: str) -> None:
    shown = filters.visible(text)
    left = {c for c in shown if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert left <= {"\n", "\t", "\u200d"}
    assert filters.visible(shown) == shown


@pytest.mark.parametrize(
    ("seconds", "mode", "text"),
    [
        (0, "ago", "just now"),
        (42, "ago", "42 s ago"),
        (240, "ago", "4 min ago"),
        (3 * 3600, "age", "3 h"),
        (49 * 3600, "age", "2 d"),
        (42, "clock", "0:42"),
        (3600 + 61, "clock", "1:01:01"),
        (-190, "until", "03:10"),
        (5, "until", "00:00"),
        (0, "time", "21:00:00"),
    ],
)
def test_times_are_told_in_the_way_that_is_asked_for(seconds: int, mode: str, text: str) -> None:
    at = (NOW - timedelta(seconds=seconds)).isoformat()
    assert filters.relative(at, mode, NOW) == text


def test_a_time_that_is_none_is_shown_as_it_came() -> None:
    assert filters.relative("soon", "ago", NOW) == "soon"
    assert filters.absolute("soon") == "soon"


def test_an_instant_in_another_zone_is_told_in_utc() -> None:
    assert filters.absolute("2026-11-22T22:00:12+01:00") == "2026-11-22 21:00:12 UTC"
    assert filters.absolute("2026-11-22T21:00:12.123456Z") == "2026-11-22 21:00:12 UTC"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(12, "12 ms"), (999.6, "1.0 s"), (1234, "1.2 s"), (48_000, "48 s"), (125_000, "2:05")],
)
def test_durations_have_a_unit(milliseconds: float, text: str) -> None:
    assert filters.duration(milliseconds) == text


def test_small_sums_are_not_shown_as_zero() -> None:
    assert filters.usd(0.0021) == "$0.0021"
    assert filters.usd(0) == "$0.00"
    assert filters.usd(1234.5) == "$1,234.50"


def test_tokens_are_rounded_to_three_or_four_signs() -> None:
    assert [filters.tokens(n) for n in (950, 12_345, 999_999, 1_200_000)] == ["950", "12.3k", "1.0M", "1.2M"]


def test_percent_stays_between_0_and_100_and_is_none_when_unknown() -> None:
    assert filters.percent(300, 200) == 100
    assert filters.percent(None, 200) is None
    assert filters.percent(5, 0) is None


def test_the_first_line_skips_blank_ones_and_is_cut_with_an_ellipsis() -> None:
    assert filters.first_line("\n\n  hello  \nworld") == "hello"
    assert filters.first_line("x" * 200, 10) == "xxxxxxxxx…"
    assert filters.first_line("") == ""


def test_a_cut_text_says_how_much_is_missing() -> None:
    assert filters.cut("abcdef", 4) == "abcd\n… 2 more characters"
