"""Text changes between two commits, bounded before git is asked for them.

Which files changed is known from the two trees; git's own diff is asked only for those that fit, as text
whatever they hold (no attributes, no external diff, no textconv), so that nothing hides behind "binary".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from reconciler.effects.git.command import MIB, git
from reconciler.effects.protocols import RawFileDiff, TreeEntry
from reconciler.errors import PermanentError
from reconciler.model.names import Commit

FILE_MAX_BYTES = 256 * 1024
TOTAL_MAX_BYTES = 2 * MIB
FILES_SHOWN = 300
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_OPTIONS = (
    "-r", "--patch", "--text", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", "--full-index",
    "--unified=3", "--src-prefix=a/", "--dst-prefix=b/", "--no-indent-heuristic", "--diff-algorithm=myers",
)  # fmt: skip
_Entries = Mapping[str, TreeEntry]


async def diff(
    repository: Path, base: Commit | None, commit: Commit, before: _Entries, after: _Entries
) -> list[RawFileDiff]:
    """Changes by path, from the files of both commits. A file that only moved is `renamed`, without a
    patch."""
    changed = [path for path in sorted({*before, *after}) if not _same(before.get(path), after.get(path))]
    moved = _moves(before, after, changed)
    shown: list[str] = []
    budget = TOTAL_MAX_BYTES
    for path in changed:
        size = sum(entry.size for entry in (before.get(path), after.get(path)) if entry is not None)
        if path in moved or path in moved.values() or size > budget or len(shown) >= FILES_SHOWN:
            continue
        if max(_size(before, path), _size(after, path)) <= FILE_MAX_BYTES:
            shown.append(path)
            budget -= size
    patches = await _patches(repository, base, commit, shown) if shown else {}
    found = []
    for path in changed:
        if path in moved.values():
            continue  # told with the place it moved to
        if path in moved:
            found.append(RawFileDiff(path, moved[path], "renamed", "", binary=False, too_large=False))
            continue
        patch = patches.get(path)
        binary = patch is not None and _is_binary(path, patch)
        text = "" if patch is None or binary else patch.decode("utf-8", "replace")
        found.append(
            RawFileDiff(
                path, None, _status(before, after, path), text, binary=binary, too_large=patch is None
            )
        )
    return found


def _same(one: TreeEntry | None, other: TreeEntry | None) -> bool:
    return one is not None and other is not None and (one.blob, one.mode) == (other.blob, other.mode)


def _size(entries: _Entries, path: str) -> int:
    entry = entries.get(path)
    return entry.size if entry is not None else 0


def _status(before: _Entries, after: _Entries, path: str) -> Literal["added", "modified", "deleted"]:
    if path not in before:
        return "added"
    return "modified" if path in after else "deleted"


def _moves(before: _Entries, after: _Entries, changed: Sequence[str]) -> dict[str, str]:
    """New path → old path of files that moved without any other change."""
    gone = {(before[path].blob, before[path].mode): path for path in changed if path not in after}
    found = {}
    for path in changed:
        if path not in before and (old := gone.pop((after[path].blob, after[path].mode), None)) is not None:
            found[path] = old
    return found


async def _patches(
    repository: Path, base: Commit | None, commit: Commit, paths: Sequence[str]
) -> dict[str, bytes]:
    done = await git(
        repository, "diff-tree", *_OPTIONS, "--end-of-options", base or EMPTY_TREE, commit, "--",
        *[f":(literal,top){path}" for path in paths], max_stdout=8 * TOTAL_MAX_BYTES,
    )  # fmt: skip
    found: dict[str, bytes] = {}
    for section in _sections(done.stdout):
        path = _path(section)
        found[path] = found.get(path, b"") + section
    return found


def _sections(output: bytes) -> list[bytes]:
    """One piece per `diff --git` line; a line of content never begins with it (it has a sign before it)."""
    marks = [0] if output.startswith(b"diff --git ") else []
    at = output.find(b"\ndiff --git ")
    while at >= 0:
        marks.append(at + 1)
        at = output.find(b"\ndiff --git ", at + 1)
    return [output[start:end] for start, end in zip(marks, [*marks[1:], len(output)], strict=True)]


def _path(section: bytes) -> str:
    """The path in `diff --git a/PATH b/PATH`: both halves are equal, and the tree rules keep quoting away."""
    names = section.split(b"\n", 1)[0].removeprefix(b"diff --git ")
    half = len(names) // 2
    old, new = names[:half], names[half + 1 :]
    if old[2:] != new[2:]:
        raise PermanentError(f"cannot read git's diff: {names[:200]!r} are two names")
    return new[2:].decode()


def _is_binary(path: str, patch: bytes) -> bool:
    """Content that is no text at all. What Nix reads is always shown."""
    if path.endswith(".nix") or b"\0" not in patch:
        return False
    try:
        patch.decode()
    except UnicodeDecodeError:
        return True
    return False
