"""What the CLI prints becomes events and facts: lines as Claude Code 2.1.330 writes them, read by the SDK."""

from __future__ import annotations

from typing import Any

import pytest

from harness.buffer import EventBuffer
from harness.outcomes import classify
from harness.wire import TurnEvents
from tests.fakes.sdk import importing

PROMPT = "11111111-1111-4111-8111-111111111111"
SESSION = {"session_id": "6f1d3f52-3b8e-4f0a-9f54-0d5a8a3f0001", "uuid": "u", "parent_tool_use_id": None}
USAGE = {
    "input_tokens": 100,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 3,
    "output_tokens": 1,
}


class Heard:
    """A listener with a clock that moves by a second with each message."""

    def __init__(self, context: tuple[int, int] | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        events = importing("harness.events")
        self.parse = importing("claude_agent_sdk._internal.message_parser").parse_message
        self.listener = events.Listener(
            lambda kind, data: self.events.append((kind, data)), PROMPT, lambda: self.now, context
        )

    def take(self, *lines: dict[str, Any]) -> list[bool]:
        over = []
        for line in lines:
            self.now += 1.0
            message = self.parse({**SESSION, **line})
            over.append(message is not None and self.listener.take(message))
        return over


@pytest.fixture
def heard() -> Heard:
    return Heard()


def assistant(*content: dict[str, Any], model: str = "claude-sonnet-5", **more: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "model": model, "content": list(content), "stop_reason": None, "usage": USAGE}
    return {"type": "assistant", "message": message, **more}


def tool_result(content: Any, *, is_error: bool = False, call: str = "toolu_1") -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call, "content": content, "is_error": is_error}
    return {"type": "user", "message": {"role": "user", "content": [block]}}


def result(**more: Any) -> dict[str, Any]:
    return {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "result": "done",
        "num_turns": 2,
        "terminal_reason": "completed",
        "api_error_status": None,
        "duration_ms": 165,
        "duration_api_ms": 54,
        "total_cost_usd": 0.0006,
        "usage": USAGE,
        "modelUsage": {"claude-sonnet-5": {"contextWindow": 1_000_000, "maxOutputTokens": 64_000}},
        "permission_denials": [],
        **more,
    }


INIT = {
    "type": "system",
    "subtype": "init",
    "model": "claude-sonnet-5",
    "mcp_servers": [{"name": "hyperhive", "status": "connected"}],
}


def test_a_turn_with_a_tool_call_becomes_its_transcript(heard: Heard) -> None:
    over = heard.take(
        INIT,
        assistant({"type": "thinking", "thinking": "hm", "signature": "x"}),
        assistant({"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}),
        tool_result("a.txt"),
        assistant({"type": "text", "text": "there is a.txt"}),
        result(),
    )
    assert over == [False] * 5 + [True]
    assert heard.events == [
        ("model", {"model": "claude-sonnet-5"}),
        ("thinking", {"text": "hm"}),
        ("tool_call", {"id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}),
        ("tool_result", {"id": "toolu_1", "text": "a.txt", "is_error": False, "duration_ms": 1000}),
        ("text", {"text": "there is a.txt"}),
        ("context", {"used_tokens": 124, "window_tokens": 1_000_000}),
        (
            "result",
            {
                "is_error": False,
                "subtype": "success",
                "duration_ms": 165,
                "num_turns": 2,
                "text": "done",
                "terminal_reason": "completed",
            },
        ),
    ]
    assert classify(heard.listener.facts(gone="", cancelled=False, stalled="")).outcome == "ok"


def test_tools_that_run_are_counted_until_their_result(heard: Heard) -> None:
    heard.take(assistant({"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}))
    assert heard.listener.tools_running == 1
    heard.take(tool_result([{"type": "text", "text": "a"}, {"type": "image", "source": {}}], is_error=True))
    assert heard.listener.tools_running == 0
    assert heard.events[-1][1]["text"] == "a\n[image]"
    assert heard.events[-1][1]["is_error"] is True


def test_an_api_failure_is_an_error_although_its_subtype_says_success(heard: Heard) -> None:
    heard.take(
        assistant({"type": "text", "text": "API Error: 529"}, model="<synthetic>", error="server_error"),
        result(is_error=True, terminal_reason="api_error", api_error_status=529, result="API Error: 529"),
    )
    assert ("note", {"text": "API Error: 529"}) in heard.events
    assert heard.events[-1][1]["api_error_status"] == 529
    assert classify(heard.listener.facts(gone="", cancelled=False, stalled="")).outcome == "unavailable"


def test_an_interrupted_turn_ends_with_its_errors_as_text(heard: Heard) -> None:
    heard.take(
        result(
            subtype="error_during_execution",
            is_error=True,
            result=None,
            errors=["a", "b"],
            terminal_reason="aborted_tools",
        )
    )
    assert heard.events[-1][1]["text"] == "a; b"
    assert classify(heard.listener.facts(gone="", cancelled=True, stalled="")).outcome == "cancelled"


def test_the_late_result_of_another_prompt_does_not_end_this_turn(heard: Heard) -> None:
    assert heard.take(result(user_message_uuid="other", user_message_uuids=["other"])) == [False]
    assert heard.take(result(user_message_uuid=PROMPT, user_message_uuids=["other", PROMPT])) == [True]


def test_compaction_retries_fallbacks_and_missing_servers_are_told(heard: Heard) -> None:
    heard.take(
        {**INIT, "mcp_servers": [{"name": "docs", "status": "failed"}]},
        {
            "type": "system",
            "subtype": "compact_boundary",
            "compact_metadata": {"trigger": "manual", "pre_tokens": 9, "post_tokens": 3},
        },
        {
            "type": "system",
            "subtype": "api_retry",
            "attempt": 1,
            "max_retries": 4,
            "retry_delay_ms": 600,
            "error_status": 529,
        },
        {"type": "system", "subtype": "model_fallback", "original_model": "a", "fallback_model": "b"},
        {"type": "system", "subtype": "something_new", "anything": 1},
        {"type": "unheard_of"},
    )
    assert [kind for kind, _ in heard.events] == ["model", "note", "compaction", "note", "note"]
    assert heard.events[2] == ("compaction", {"before_tokens": 9, "after_tokens": 3})
    assert "docs did not start" in heard.events[1][1]["text"]
    assert "attempt 1 of 4" in heard.events[3][1]["text"]


def test_the_model_is_told_when_it_changes_and_not_each_time(heard: Heard) -> None:
    say = {"type": "text", "text": "x"}
    heard.take(
        INIT, assistant(say), assistant(say, model="claude-opus-5"), assistant(say, model="claude-opus-5")
    )
    assert [data["model"] for kind, data in heard.events if kind == "model"] == [
        "claude-sonnet-5",
        "claude-opus-5",
    ]


def usage(**windows: int) -> dict[str, Any]:
    """`modelUsage` of a session that used these models; dashes for underscores."""
    return {name.replace("_", "-"): {"contextWindow": size} for name, size in windows.items()}


@pytest.mark.parametrize(
    ("model", "used", "window"),
    [
        ("claude-haiku-4-5", usage(claude_sonnet_5=1_000_000, claude_haiku_4_5=200_000), 200_000),
        ("claude-haiku-4-5-20251001", usage(claude_sonnet_5=1_000_000, claude_haiku_4_5=200_000), 200_000),
        ("claude-sonnet-5", usage(claude_sonnet_5=1_000_000, claude_haiku_4_5=200_000), 1_000_000),
        ("strange", usage(claude_sonnet_5=1_000_000), 1_000_000),
    ],
)
def test_the_window_is_that_of_the_model_that_answered(
    heard: Heard, model: str, used: dict[str, Any], window: int
) -> None:
    heard.take(assistant({"type": "text", "text": "hi"}, model=model), result(modelUsage=used))
    assert ("context", {"used_tokens": 124, "window_tokens": window}) in heard.events


def status(**more: Any) -> dict[str, Any]:
    return {"type": "system", "subtype": "status", **more}


def test_after_a_compaction_the_context_is_what_the_summary_left() -> None:
    heard = Heard((900_000, 1_000_000))
    boundary = {"trigger": "manual", "pre_tokens": 900_500, "post_tokens": 4_000}
    heard.take(
        status(status="compacting"),
        status(status=None, compact_result="success"),
        {"type": "system", "subtype": "compact_boundary", "compact_metadata": boundary},
        result(modelUsage={}),
    )
    assert heard.events[:2] == [
        ("compaction", {"before_tokens": 900_000}),
        ("compaction", {"before_tokens": 900_500, "after_tokens": 4_000}),
    ]
    assert ("context", {"used_tokens": 4_000, "window_tokens": 1_000_000}) in heard.events


def test_a_compaction_that_failed_is_told_and_changes_no_figure() -> None:
    heard = Heard((900_000, 1_000_000))
    heard.take(
        status(status="compacting"),
        status(status=None, compact_result="failed", compact_error="API Error: 400 no"),
        result(modelUsage={}),
    )
    assert heard.events[1] == ("compaction", {"before_tokens": 900_000, "error": "API Error: 400 no"})
    assert "context" not in [kind for kind, _ in heard.events]


def test_only_the_first_lines_of_standard_error_are_kept(heard: Heard) -> None:
    for number in range(80):
        heard.listener.stderr(f"line {number}" + "x" * 5000)
    assert len(heard.events) == 50
    assert all(len(data["text"]) == 2000 for _, data in heard.events)


def test_every_event_fits_the_wire(heard: Heard) -> None:
    heard.take(
        INIT,
        assistant(
            {
                "type": "tool_use",
                "id": "toolu_1",
                "name": "Write",
                "input": {"content": "\ud800" + "x" * 300_000},
            }
        ),
        tool_result(None),
        result(result=None),
    )
    buffer = EventBuffer()
    for kind, data in heard.events:
        buffer.add(kind, data)  # type: ignore[arg-type] # the kinds are those of the wire, as the next line shows
    sent = TurnEvents(events=list(buffer.batch())).model_dump_json()
    assert len(TurnEvents.model_validate_json(sent).events) == len(heard.events)
