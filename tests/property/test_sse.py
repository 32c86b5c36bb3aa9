"""Server-sent events: what is encoded comes back however the stream is cut, and nothing grows for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.control.sse import Frame, FrameTooLargeError, Parser, encode

DATA = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORD = st.from_regex(r"[a-z.]{0,12}", fullmatch=True)
FRAMES = st.lists(st.tuples(st.integers(0, 2**62), WORD, DATA), max_size=6)


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1), st.sampled_from(["\n", "\r\n", "\r"]))
def test_frames_come_back_whole_wherever_the_stream_is_cut(
    frames: list[tuple[int, str, str]], cuts: list[int], end: str
) -> None:
    stream = b": ping\n\n".join(encode(data, id=number, event=event) for number, event, data in frames)
    stream = stream.replace(b"\n", end.encode())
    parser, found, place, turn = Parser(), [], 0, 0
    while place < len(stream):
        size = cuts[turn % len(cuts)]
        found += parser.feed(stream[place : place + size])
        place, turn = place + size, turn + 1
    assert found == [Frame(str(number), event, normal(data)) for number, event, data in frames]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_bytes_break_the_parser(chunks: list[bytes]) -> None:
    parser = Parser()
    for chunk in chunks:
        parser.feed(chunk)


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 600, b"data: x\n" * 100, b": " + b"y" * 600])
def test_a_frame_over_the_limit_is_an_error_and_not_memory(endless: bytes) -> None:
    with pytest.raises(FrameTooLargeError):
        Parser(limit=500).feed(endless * 10)


def test_pings_between_frames_do_not_add_up_to_the_limit() -> None:
    parser = Parser(limit=100)
    for _ in range(100):
        assert parser.feed(b": ping\n\n") == []


def test_a_frame_without_data_is_none() -> None:
    assert Parser().feed(b"id: 7\nevent: x\n\nretry: 10\n\n") == []
