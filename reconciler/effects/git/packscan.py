"""A pack read once from its beginning to its end, before git sees it: no object of it may unfold too far.

A program of its own, run as the unprivileged user in the sandbox with nothing but Python:

    python -I -S packscan.py OBJECT_MAX TOTAL_MAX < PACK

It prints `ok OBJECTS BYTES`, or `refused WHY` (both exit with 0). Sizes are those of unpacked objects, in
bytes. Git takes what a header says for granted, gets the memory for it, and unpacks tens of gigabytes from
a pack of 32 MiB before it could be asked how much it was. Here nothing is unpacked beyond what its header
says, and reading ends with the first header that says too much. What is not judged here (hashes, names,
whether deltas apply) git does.
"""

from __future__ import annotations

import sys
import zlib
from typing import BinaryIO

_CHUNK = 64 * 1024
_COMMIT, _TREE, _BLOB, _TAG, _OFS_DELTA, _REF_DELTA = 1, 2, 3, 4, 6, 7
_PLAIN = frozenset({_COMMIT, _TREE, _BLOB, _TAG})
_ID_BYTES = 20
_HEADER_BYTES = 12
_VARINT_MAX_BYTES = 10
# Two varints: how much of a delta's data must be seen to know how long its result is.
_DELTA_HEAD_BYTES = 2 * _VARINT_MAX_BYTES


class RefusedError(Exception):
    """Why the pack is refused, in words for its proposer."""


class _Input:
    """A stream with what was read but not yet used. `at`: bytes used since the beginning."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b""
        self.at = 0

    def some(self) -> bytes:
        """All that is there without reading more than a chunk; empty at the end."""
        if not self._buffer:
            self._buffer = self._stream.read(_CHUNK)
        return self._buffer

    def used(self, count: int) -> None:
        """The first `count` bytes of `some` are done with."""
        self._buffer = self._buffer[count:]
        self.at += count

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        found = b""
        while len(found) < count:
            part = self.some()[: count - len(found)]
            if not part:
                raise RefusedError("its pack ends in the middle")
            found += part
            self.used(len(part))
        return found

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]


def scan(stream: BinaryIO, object_max: int, total_max: int) -> tuple[int, int]:
    """Number of objects, and bytes that they unpack to; `RefusedError` if that is too much or no pack."""
    pack = _Input(stream)
    head = pack.take(_HEADER_BYTES)
    if head[:4] != b"PACK" or head[4:8] not in {b"\0\0\0\2", b"\0\0\0\3"}:
        raise RefusedError("it is no pack")
    count, total = int.from_bytes(head[8:], "big"), 0
    for number in range(count):
        total += _object(pack, number, object_max)
        if total > total_max:
            raise RefusedError(
                f"its first {number + 1} objects unpack to {total} bytes, {total_max} are allowed"
            )
    pack.take(_ID_BYTES)
    if pack.some():
        raise RefusedError(f"something follows the {count} objects that its pack announces")
    return count, total


def _object(pack: _Input, number: int, object_max: int) -> int:
    """Read one object; the bytes it unpacks to."""
    began = pack.at
    kind, size = _entry_header(pack)
    if kind in _PLAIN:
        if size > object_max:
            raise RefusedError(f"an object of it has {size} bytes, {object_max} are allowed")
        _inflate(pack, size)
        return size
    if kind == _OFS_DELTA:
        back = _offset(pack)
        if not 0 < back < began:
            raise RefusedError(f"its object {number + 1} builds on something outside of the pack")
    elif kind == _REF_DELTA:
        pack.take(_ID_BYTES)
    else:
        raise RefusedError(f"its object {number + 1} is of no known kind")
    if size > object_max:
        raise RefusedError(f"a delta of it has {size} bytes, {object_max} are allowed")
    head = _inflate(pack, size)
    base, at = _varint(head, 0)
    result, _ = _varint(head, at)
    if max(base, result) > object_max:
        raise RefusedError(f"an object of it has {max(base, result)} bytes, {object_max} are allowed")
    return result


def _entry_header(pack: _Input) -> tuple[int, int]:
    """Kind and size of an object: 4 bits of size, then 7 in each byte."""
    byte = pack.byte()
    kind, size, shift = byte >> 4 & 7, byte & 15, 4
    while byte & 0x80:
        if shift > 60:
            raise RefusedError("an object of it has a size that no object can have")
        byte = pack.byte()
        size |= (byte & 0x7F) << shift
        shift += 7
    return kind, size


def _offset(pack: _Input) -> int:
    """How far back the base of a delta begins."""
    byte = pack.byte()
    back = byte & 0x7F
    for _ in range(_VARINT_MAX_BYTES):
        if not byte & 0x80:
            return back
        byte = pack.byte()
        back = (back + 1 << 7) | byte & 0x7F
    raise RefusedError("a delta of it builds on something that is nowhere")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A size at the beginning of a delta's data, and where it ends."""
    value = 0
    for shift in range(0, 7 * _VARINT_MAX_BYTES, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise RefusedError("a delta of it has no sizes")


def _inflate(pack: _Input, size: int) -> bytes:
    """Unpack exactly `size` bytes and keep their beginning; more or fewer are a lie of the header."""
    stream = zlib.decompressobj()
    head, seen = b"", 0
    while not stream.eof:
        data = pack.some()
        if not data:
            raise RefusedError("its pack ends in the middle")
        try:
            # One byte more than is announced is asked for, so that too much is seen and never unpacked.
            part = stream.decompress(data, min(size - seen + 1, _CHUNK))
        except zlib.error as error:
            raise RefusedError(f"an object of it cannot be unpacked: {error}") from error
        # At its end both hold the same rest.
        left = stream.unused_data or stream.unconsumed_tail
        pack.used(len(data) - len(left))
        seen += len(part)
        if seen > size:
            raise RefusedError(f"an object of it is longer than the {size} bytes that are announced")
        if len(head) < _DELTA_HEAD_BYTES:
            head += part[:_DELTA_HEAD_BYTES]
    if seen != size:
        raise RefusedError(f"an object of it has {seen} bytes, {size} are announced")
    return head


def main() -> None:
    """See the module."""
    object_max, total_max = (int(word) for word in sys.argv[1:3])
    try:
        count, total = scan(sys.stdin.buffer, object_max, total_max)
    except RefusedError as refused:
        sys.stdout.write(f"refused {refused}\n")
    else:
        sys.stdout.write(f"ok {count} {total}\n")


if __name__ == "__main__":
    main()
