"""What a staged state may be: a plain tar of regular files and directories, within limits. Reads, never
writes.

The tar comes from an agent and is hostile. Whoever unpacks it checks nothing that is not checked here, but
does it as the agent's own uid and without following links all the same (`unpack.py`).
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path

from reconciler.errors import InvalidError, Refusal

MAX_TAR_BYTES = 64 * 1024 * 1024
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 5000
MAX_PATH_BYTES = 400
MAX_DEPTH = 32
_MAX_REFUSALS = 20

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def examine(tar: Path) -> tuple[str, list[str]]:
    """The tar's sha256 (hex) and the sorted relative paths of its regular files.

    Raises `InvalidError` with one refusal per wrong entry (20 at most): links, devices, absolute or climbing
    paths, control characters, duplicates, sparse or oversized files, too many of them, no tar at all.
    """
    size = tar.stat().st_size
    if size > MAX_TAR_BYTES:
        raise InvalidError(f"the staged state has {size} bytes; {MAX_TAR_BYTES} are allowed")
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    refusals: list[Refusal] = []
    entries: dict[str, bool] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_ENTRIES:
                    refusals.append(Refusal("the tar", "has too many entries", f"{MAX_ENTRIES} at most"))
                    break
                refusal = _refusal(member, entries)
                if refusal is not None:
                    refusals.append(refusal)
                    if len(refusals) >= _MAX_REFUSALS:
                        break
                entries[normal(member.name)] = member.isdir()
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise InvalidError(f"the staged state is no readable tar: {str(error)[:200]}") from error
    if refusals:
        first = refusals[0]
        raise InvalidError(f"the staged state is refused: {first.where}: {first.why}", tuple(refusals))
    return digest, sorted(path for path, is_directory in entries.items() if not is_directory)


def normal(name: str) -> str:
    """A member's name without a leading `./` and a trailing `/`; the root itself is the empty string."""
    name = name.rstrip("/")
    while name.startswith("./"):
        name = name[2:]
    return "" if name == "." else name


def _refusal(member: tarfile.TarInfo, seen: dict[str, bool]) -> Refusal | None:
    """Why this entry cannot be unpacked, or None."""
    where, path = repr(member.name)[:200], normal(member.name)
    parts = path.split("/") if path else []
    if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE} or member.issparse():
        return Refusal(
            where, "is neither a regular file nor a directory", "no links, devices or sparse files"
        )
    if member.name.startswith("/") or ".." in parts or "." in parts or "" in parts or _CONTROL.search(path):
        return Refusal(where, "is not a plain relative path", "no '..', no '/' first, no control characters")
    if not parts and not member.isdir():
        return Refusal(where, "names no file")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        return Refusal(where, "is too long", f"{MAX_PATH_BYTES} bytes and {MAX_DEPTH} levels")
    if member.size > MAX_FILE_BYTES:
        return Refusal(where, f"has {member.size} bytes", f"{MAX_FILE_BYTES} bytes each")
    if path in seen and not (member.isdir() and seen[path]):
        return Refusal(where, "is in the tar twice")
    if any(seen.get("/".join(parts[:depth])) is False for depth in range(1, len(parts))):
        return Refusal(where, "lies below a regular file")
    return None
