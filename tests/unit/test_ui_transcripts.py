"""A transcript as rows: one per call with its outcome, and a cursor from which it can be continued."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reconciler.control.models import TranscriptLine
from ui.views.transcripts import Row, view

AT = "2026-11-22T21:00:00Z"


def lines(*told: tuple[str, dict[str, Any]], start: int = 1) -> list[TranscriptLine]:
    return [
        TranscriptLine(id=start + i, turn=1, seq=i, at=AT, kind=kind, data=data)
        for i, (kind, data) in enumerate(told)
    ]


def call(number: str, command: str = "git status") -> tuple[str, dict[str, Any]]:
    return "tool_call", {"id": number, "name": "Bash", "input": {"command": command}}


def result(number: str, text: str = "ok", *, failed: bool = False) -> tuple[str, dict[str, Any]]:
    return "tool_result", {"id": number, "text": text, "is_error": failed, "duration_ms": 12}


def tools(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.argument, row.outcome) for row in rows if row.kind == "tool"]


def test_a_call_and_its_result_are_one_row() -> None:
    rows = view(lines(call("a"), result("a", "clean"))).rows
    assert [(r.glyph, r.title, r.argument, r.outcome, r.duration_ms) for r in rows] == [
        ("$", "Bash", "git status", "ok", 12)
    ]
    assert rows[0].parts[0].text == "clean"


def test_results_of_calls_at_the_same_time_find_their_call() -> None:
    rows = view(lines(call("a", "one"), call("b", "two"), result("b"), result("a", failed=True))).rows
    assert tools(rows) == [("one", "failed"), ("two", "ok")]


def test_a_waiting_call_is_asked_for_again_so_that_its_result_joins_it() -> None:
    told = lines(call("a"), result("a"), call("b"))
    first = view(told)
    assert first.cursor == 2
    again = view([line for line in [*told, *lines(result("b"), start=4)] if line.id > first.cursor])
    assert [(row.key, row.outcome) for row in again.rows] == [(3, "ok")]
    assert again.cursor == 4


def test_the_end_of_a_turn_ends_calls_that_have_no_result() -> None:
    found = view(lines(call("a"), ("turn_end", {"outcome": "cancelled", "error": "", "duration_ms": 5})))
    assert tools(found.rows) == [("git status", "none")]
    assert found.cursor == 2


def test_a_refusal_belongs_to_the_call_that_was_refused() -> None:
    refusal = ("policy_refusal", {"tool": "Bash", "command": "curl x", "reason": "matches no pattern"})
    rows = view(
        lines(call("a", "curl x"), call("b"), refusal, result("a", "refused", failed=True), result("b"))
    ).rows
    assert [(r.argument, r.outcome, r.reason) for r in rows] == [
        ("curl x", "refused", "matches no pattern"),
        ("git status", "ok", ""),
    ]


def test_a_refusal_without_its_call_is_a_row_of_its_own() -> None:
    rows = view(lines(("policy_refusal", {"tool": "Bash", "command": "curl x", "reason": "no"}))).rows
    assert (rows[0].kind, rows[0].argument, rows[0].reason) == ("refusal", "curl x", "no")


def test_a_result_whose_call_is_on_an_older_page_is_still_shown() -> None:
    assert tools(view(lines(result("gone", "late answer"))).rows) == [("late answer", "ok")]


def test_messages_to_people_are_whole_and_name_the_recipient() -> None:
    send = (
        "tool_call",
        {"id": "s", "name": "mcp__hyperhive__send", "input": {"to": "operator", "body": "hi\nyou"}},
    )
    ask = ("tool_call", {"id": "q", "name": "mcp__hyperhive__ask_operator", "input": {"question": "may I?"}})
    rows = view(lines(send, ask)).rows
    assert [(r.kind, r.to, r.text) for r in rows] == [
        ("speech", "operator", "hi\nyou"),
        ("speech", "operator", "may I?"),
    ]


def test_an_edit_shows_what_went_and_what_came() -> None:
    edit = {"file_path": "/state/a", "old_string": "x", "new_string": "y"}
    rows = view(lines(("tool_call", {"id": "e", "name": "Edit", "input": edit}))).rows
    assert [(p.kind, p.text) for p in rows[0].parts] == [("del", "x"), ("add", "y")]


def test_noise_is_left_out_and_failures_are_not() -> None:
    rows = view(
        lines(
            ("context", {"used_tokens": 1, "window_tokens": 2}),
            ("result", {"is_error": False, "text": "fine"}),
            ("result", {"is_error": True, "terminal_reason": "overloaded", "text": "529"}),
            ("of_a_newer_harness", {"x": 1}),
        )
    ).rows
    assert [(r.kind, r.text) for r in rows] == [("stderr", "overloaded: 529")]


def test_a_very_long_text_is_cut_and_says_how_much_is_missing() -> None:
    rows = view(lines(("text", {"text": "x" * 10_000}), call("a"), result("a", "y" * 10_000))).rows
    assert len(rows[0].text) == 6000
    assert rows[0].reason == "4,000 more characters"
    assert rows[1].parts[0].text.endswith("… 4,000 more characters")


KINDS = st.sampled_from(
    [
        "turn_begin",
        "turn_end",
        "prompt",
        "text",
        "thinking",
        "tool_call",
        "tool_result",
        "policy_refusal",
        "note",
        "stderr",
        "model",
        "compaction",
        "result",
        "context",
        "other",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "id",
        "name",
        "input",
        "text",
        "is_error",
        "duration_ms",
        "tool",
        "command",
        "reason",
        "model",
        "messages",
        "outcome",
        "error",
        "before_tokens",
        "after_tokens",
    ]
)


@given(st.lists(st.tuples(KINDS, st.dictionaries(KEYS, JSON, max_size=6)), max_size=12))
def test_no_line_of_a_container_breaks_the_page(told: list[tuple[str, dict[str, Any]]]) -> None:
    found = view(lines(*told))
    assert 0 <= found.cursor <= len(told)
    assert len({row.key for row in found.rows}) == len(found.rows)
    for row in found.rows:
        assert row.duration_ms is None or 0 <= row.duration_ms < 1e12


def test_the_end_of_a_turn_says_what_followed_and_servers_that_do_not_run_are_named() -> None:
    end = {"outcome": "crashed", "error": "gone", "hint": "look", "until": AT, "set_aside": [4, "<b>"]}
    servers = [
        {"name": "docs", "status": "failed", "error": "no\nsuch file"},
        {"name": "ok", "status": "connected"},
    ]
    rows = view(lines(("mcp", {"servers": [*servers, 5]}), ("mcp", {"servers": "x"}), ("turn_end", end))).rows
    assert [row.text for row in rows] == ["the MCP server docs is failed: no", "gone"]
    assert (rows[-1].reason, rows[-1].argument, rows[-1].to) == ("look", AT, "4, <b>")
