"""Packs and bundles written byte by byte: what no git would write, and in a second what git needs minutes
for."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from reconciler.model.names import Commit

COMMIT, TREE, BLOB, OFS_DELTA, REF_DELTA = 1, 2, 3, 6, 7
_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob"}
MIB = 1024 * 1024


def object_id(kind: int, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (_NAMES[kind], len(data)) + data).hexdigest()


def entry_header(kind: int, size: int) -> bytes:
    """Kind and size as a pack has them; any size, also a lie."""
    byte, size = kind << 4 | size & 15, size >> 4
    found = bytearray()
    while size:
        found.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    found.append(byte)
    return bytes(found)


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def offset(back: int) -> bytes:
    """The distance to the base of a delta."""
    found = [back & 0x7F]
    while back := back >> 7:
        back -= 1
        found.insert(0, 0x80 | back & 0x7F)
    return bytes(found)


def copy_op(at: int, size: int) -> bytes:
    """Copy `size` bytes (at most 0xffffff) from `at` of the base."""
    op, tail = 0x80, b""
    for bit in range(4):
        if byte := at >> 8 * bit & 0xFF:
            op, tail = op | 1 << bit, tail + bytes([byte])
    for bit in range(3):
        if byte := size >> 8 * bit & 0xFF:
            op, tail = op | 0x10 << bit, tail + bytes([byte])
    return bytes([op]) + tail


def zeros(count: int) -> bytes:
    """A zlib stream of so many zero bytes, without making them: one block again and again, and the checksum
    worked out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(count % MIB)) + packer.flush(zlib.Z_FINISH)
    adler = (count % 65521) << 16 | 1
    return b"\x78\xda" + block * (count // MIB) + rest + struct.pack(">I", adler)


def zeros_id(count: int) -> str:
    """The id of a blob of zeros."""
    found = hashlib.sha1(b"blob %d\0" % count)
    chunk = bytes(16 * MIB)
    for _ in range(count // len(chunk)):
        found.update(chunk)
    found.update(bytes(count % len(chunk)))
    return found.hexdigest()


def tree(items: Iterable[tuple[bytes, bytes, str]]) -> bytes:
    """A tree's content of (mode, name, id), as it is given."""
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in items)


def commit(tree_id: str, parents: Sequence[str] = (), message: str = "hostile") -> bytes:
    lines = [f"tree {tree_id}", *(f"parent {parent}" for parent in parents)]
    who = "agent <agent@hive> 1700000000 +0000"
    return "\n".join([*lines, f"author {who}", f"committer {who}", "", message, ""]).encode()


class Pack:
    """Objects one after the other; `count` in the header may be a lie."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.at = 12
        self.count = 0

    def raw(self, entry: bytes) -> int:
        """Bytes of an object as they are; where it begins."""
        began = self.at
        self._parts.append(entry)
        self.at += len(entry)
        self.count += 1
        return began

    def add(self, kind: int, data: bytes) -> str:
        """An honest object; its id."""
        self.raw(entry_header(kind, len(data)) + zlib.compress(data, 1))
        return object_id(kind, data)

    def blob_of_zeros(self, count: int) -> int:
        return self.raw(entry_header(BLOB, count) + zeros(count))

    def delta(self, base_at: int, base: int, result: int, ops: bytes) -> int:
        """A delta on the object that begins at `base_at`."""
        data = varint(base) + varint(result) + ops
        return self.raw(
            entry_header(OFS_DELTA, len(data)) + offset(self.at - base_at) + zlib.compress(data, 1)
        )

    def ref_delta(self, base_id: str, base: int, result: int, ops: bytes) -> int:
        data = varint(base) + varint(result) + ops
        return self.raw(entry_header(REF_DELTA, len(data)) + bytes.fromhex(base_id) + zlib.compress(data, 1))

    def content(self, count: int | None = None, version: int = 2) -> bytes:
        head = b"PACK" + struct.pack(">II", version, self.count if count is None else count)
        body = b"".join([head, *self._parts])
        return body + hashlib.sha1(body).digest()

    def change(self, files: Sequence[tuple[bytes, bytes, str]]) -> Commit:
        """A commit of these files (mode, name, id) in the pack."""
        return Commit(self.add(COMMIT, commit(self.add(TREE, tree(files)))))


def bundle(path: Path, offered: str, pack: bytes, refs: Iterable[str] = ("refs/heads/main",)) -> Path:
    """A bundle of version 2 that offers a commit under each of the refs."""
    with path.open("wb") as file:
        file.write(b"# v2 git bundle\n")
        file.writelines(f"{offered} {ref}\n".encode() for ref in refs)
        file.write(b"\n" + pack)
    return path
