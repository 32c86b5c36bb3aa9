"""Reading a pack before git does: honest packs are counted exactly, and no bytes whatever make it fail,
unpack more than is announced, or say anything but yes or why not."""

from __future__ import annotations

import contextlib
import io
import zlib

from hypothesis import given
from hypothesis import strategies as st

from reconciler.effects.git.packscan import RefusedError, scan
from tests.integration.hostile_packs import BLOB, Pack, copy_op, entry_header, zeros

OBJECT_MAX, TOTAL_MAX = 300_000, 1_000_000
# Around the sizes at which buffers end, and whatever else.
contents = st.binary(max_size=300) | st.builds(
    lambda size, level: (b"\0" if level else bytes(range(256))) * size,
    st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 65_537, 131_072, 200_000]),
    st.booleans(),
).map(lambda data: data[:OBJECT_MAX])


class Source(io.BytesIO):
    """A stream that gives as much at a time as a pipe does."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(self._step, size if size is not None and size >= 0 else self._step))


def honest(blobs: list[bytes], level: int) -> Pack:
    pack = Pack()
    for data in blobs:
        pack.raw(entry_header(BLOB, len(data)) + zlib.compress(data, level))
    return pack


@given(st.lists(contents, min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 70_000))
def test_an_honest_pack_is_counted_exactly(blobs: list[bytes], level: int, step: int) -> None:
    content, total = honest(blobs, level).content(), sum(map(len, blobs))
    try:
        assert scan(Source(content, step), OBJECT_MAX, TOTAL_MAX) == (len(blobs), total)
    except RefusedError:
        assert total > TOTAL_MAX


@given(st.binary(max_size=200), st.integers(1, 40))
def test_a_delta_counts_as_what_it_unfolds_to(data: bytes, times: int) -> None:
    data += b"x"
    pack = honest([data], 9)
    size = len(data) * times
    pack.delta(12, len(data), size, copy_op(0, len(data)) * times)
    assert scan(io.BytesIO(pack.content()), OBJECT_MAX, TOTAL_MAX) == (2, len(data) + size)


@given(st.lists(contents, min_size=1, max_size=3), st.data())
def test_bytes_that_were_changed_end_in_a_verdict(blobs: list[bytes], data: st.DataObject) -> None:
    content = bytearray(honest(blobs, 9).content())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(RefusedError):
        count, total = scan(io.BytesIO(bytes(content)), OBJECT_MAX, TOTAL_MAX)
        assert 0 <= total <= TOTAL_MAX
        assert count == int.from_bytes(content[8:12], "big")


@given(st.binary(max_size=400))
def test_any_bytes_after_the_head_end_in_a_verdict(rest: bytes) -> None:
    with contextlib.suppress(RefusedError):
        scan(io.BytesIO(b"PACK\0\0\0\2\0\0\0\3" + rest), OBJECT_MAX, TOTAL_MAX)


def test_nothing_is_unpacked_beyond_what_is_announced() -> None:
    pack = Pack()
    pack.raw(entry_header(BLOB, 5) + zeros(10**9))
    source = Source(pack.content(), 1000)
    with contextlib.suppress(RefusedError):
        scan(source, OBJECT_MAX, TOTAL_MAX)
        raise AssertionError("it is longer than it says")
    assert source.tell() <= 2000
