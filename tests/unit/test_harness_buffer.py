"""The buffer of a turn's events: numbers without gaps, bounds, and nothing that cannot be sent."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness.buffer import EventBuffer, clipped, now
from harness.wire import EVENT_TEXT_MAX, JSON_MAX_BYTES, TurnEvents

_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def buffer(**limits: int) -> EventBuffer:
    return EventBuffer(clock=lambda: "2026-05-01T12:00:00.000Z", **limits)


def test_events_are_numbered_from_1_and_forgotten_when_acknowledged() -> None:
    events = buffer()
    for word in ("a", "b", "c"):
        events.add("text", {"text": word})
    assert [event.seq for event in events.batch()] == [1, 2, 3]
    events.acknowledge(2)
    assert [event.seq for event in events.batch()] == [3]
    events.acknowledge(1)
    assert len(events) == 1
    events.clear()
    assert events.batch() == ()


def test_a_batch_has_at_most_200_events_and_fits_into_one_request() -> None:
    events = buffer()
    for _ in range(300):
        events.add("text", {"text": "x" * 5000})
    while batch := events.batch():
        assert len(batch) <= 200
        assert len(TurnEvents(events=list(batch)).model_dump_json()) < JSON_MAX_BYTES
        events.acknowledge(batch[-1].seq)


def test_the_largest_single_event_fits_into_one_request() -> None:
    events = buffer()
    events.add(
        "tool_call", {"id": "1", "name": "Write", "input": {str(n): "\u4e00" * 100_000 for n in range(9)}}
    )
    (event,) = events.batch()
    assert len(TurnEvents(events=[event]).model_dump_json().encode()) < JSON_MAX_BYTES


def test_an_event_of_very_many_small_values_fits_into_one_request() -> None:
    events = buffer()
    events.add("tool_call", {"input": [[2**62] * 500 for _ in range(500)]})
    assert len(TurnEvents(events=list(events.batch())).model_dump_json()) < JSON_MAX_BYTES


def test_a_full_buffer_drops_what_comes_counts_it_and_keeps_the_result() -> None:
    events = buffer(max_events=3)
    for number in range(6):
        events.add("text", {"text": str(number)})
    assert events.add("result", {"is_error": False})
    events.acknowledge(4)
    events.add("text", {"text": "after"})
    batch = events.batch()
    assert [(event.seq, event.kind) for event in batch] == [(5, "note"), (6, "text")]
    assert batch[0].data["text"].startswith("3 events were dropped here")


def test_a_long_text_is_cut_and_a_lone_surrogate_replaced() -> None:
    data = clipped({"text": "x" * (EVENT_TEXT_MAX + 5), "odd": "\ud800"})
    assert len(data["text"]) == EVENT_TEXT_MAX
    assert data["text"].endswith("…")
    assert data["odd"].encode()


@given(st.dictionaries(st.text(max_size=8), _ANY, max_size=5))
def test_whatever_comes_from_inside_can_be_sent(data: dict[str, Any]) -> None:
    events = buffer()
    events.add("tool_call", data)
    text = TurnEvents(events=list(events.batch())).model_dump_json()
    assert TurnEvents.model_validate_json(text).events[0].kind == "tool_call"


def test_times_are_rfc_3339_in_utc() -> None:
    assert now().endswith("Z")
    assert len(now()) == len("2026-05-01T12:00:00.000Z")
