"""The header of a git bundle, read by us before git sees the file. Pure but for the stream it is given."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reconciler.errors import InvalidError, Refusal
from reconciler.model.names import Commit

HEADER_MAX_BYTES = 4096
OBJECTS_MAX = 20_000
PACK_HEADER_BYTES = 12
PEEK_BYTES = HEADER_MAX_BYTES + PACK_HEADER_BYTES

_SIGNATURES = {b"# v2 git bundle": 2, b"# v3 git bundle": 3}
_REF = re.compile(rb"([0-9a-f]{40}) (HEAD|refs/[A-Za-z0-9._/-]{1,200})")
_HINT = "make it with `git bundle create - <branch>`: one branch, its whole history"


@dataclass(frozen=True, slots=True)
class Header:
    """What a bundle says of itself: its one ref's commit, where the pack begins (bytes), how many objects it
    has."""

    commit: Commit
    pack_offset: int
    objects: int


def parse_header(start: bytes, commit: Commit) -> Header:
    """The header of a bundle from its first `PEEK_BYTES` bytes; `InvalidError` unless it offers exactly
    `commit` under exactly one ref, without prerequisites."""
    end = start.find(b"\n\n", 0, HEADER_MAX_BYTES)
    signature, _, rest = start[: max(end, 0)].partition(b"\n")
    if not start.startswith(tuple(_SIGNATURES)):
        raise _refused("it does not begin with the signature of a git bundle (v2 or v3)")
    if end < 0:
        raise _refused(f"its header is longer than {HEADER_MAX_BYTES} bytes or has no end")
    version = _SIGNATURES.get(signature)
    if version is None:
        raise _refused("its signature line has something after it")
    offered = _only_ref(rest.split(b"\n") if rest else [], version)
    if offered != commit:
        raise _refused(f"it holds {offered}, not the commit {commit} that was named")
    return Header(commit, end + 2, _object_count(start[end + 2 : end + 2 + PACK_HEADER_BYTES]))


def _only_ref(lines: list[bytes], version: int) -> str:
    refs: list[str] = []
    for line in lines:
        if version == 3 and line.startswith(b"@"):
            if line != b"@object-format=sha1":
                raise _refused(
                    "it asks for a capability that is not supported here (only object-format=sha1 is)"
                )
        elif line.startswith(b"-"):
            raise _refused("it has prerequisites: it must hold the whole history")
        else:
            match = _REF.fullmatch(line)
            if match is None:
                raise _refused("a line of its header is neither a ref nor anything else that is allowed")
            refs.append(match[1].decode())
    if len(refs) != 1:
        raise _refused(f"it has {len(refs)} refs, exactly one is allowed")
    return refs[0]


def _object_count(pack: bytes) -> int:
    if len(pack) < PACK_HEADER_BYTES or pack[:4] != b"PACK" or pack[4:8] not in {b"\0\0\0\2", b"\0\0\0\3"}:
        raise _refused("no pack follows its header")
    count = int.from_bytes(pack[8:12], "big")
    if not 0 < count <= OBJECTS_MAX:
        raise _refused(f"its pack has {count} objects, 1 to {OBJECTS_MAX} are allowed")
    return count


def _refused(why: str) -> InvalidError:
    return InvalidError(f"the bundle is refused: {why}", (Refusal("bundle", why),), hint=_HINT)
