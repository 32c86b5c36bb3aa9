"""What the files of a commit may be. Pure: the same rules judge what the sandbox listed and what hived read.

A tree that passes can be written to any file system, means the same to git and to Nix as it does to a
reader of the diff, and nothing in it points out of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from reconciler.effects.protocols import TreeEntry
from reconciler.errors import InvalidError, Refusal
from reconciler.model.names import Commit
from reconciler.model.text import is_hidden, visible

FILES_MAX = 5000
# files and directories: a tree may name one subtree a thousand times
ENTRIES_MAX = 3 * FILES_MAX
FILE_MAX_BYTES = 1024 * 1024
TREE_MAX_BYTES = 64 * 1024 * 1024
PATH_MAX_BYTES = 1024
NAME_MAX_BYTES = 200
DEPTH_MAX = 32
TARGET_MAX_BYTES = 1024
REFUSALS_MAX = 20

FILE_MODES = frozenset({"100644", "100755"})
LINK = "120000"
SUBMODULE = "160000"
# .gitattributes makes git and Nix drop or rewrite files, so that what is built is not what the diff shows.
_FORBIDDEN = {
    ".git": "a repository's own directory cannot be in a tree",
    "git~1": "a repository's own directory (its short name) cannot be in a tree",
    ".gitattributes": "attributes change what git and Nix take from a tree",
    ".gitmodules": "submodules are not allowed",
}


def check(commit: Commit, entries: Sequence[TreeEntry], targets: Mapping[str, bytes]) -> None:
    """Raise `InvalidError` with every reason (at most `REFUSALS_MAX`) why this tree cannot be taken.

    `targets` holds the content of each symbolic link by its blob id.
    """
    found = []
    for refusal in _refusals(entries, targets):
        found.append(refusal)
        if len(found) == REFUSALS_MAX:
            break
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidError(
            f"the files of commit {commit[:12]} are refused: {first.where}: {first.why}{more}", tuple(found)
        )


def too_many(commit: Commit) -> InvalidError:
    """The refusal of a tree whose listing was given up."""
    why = f"more than {FILES_MAX} files or {ENTRIES_MAX} names, or paths without end"
    return InvalidError(f"the files of commit {commit[:12]} are refused: {why}", (Refusal("/", why),))


def _refusals(entries: Sequence[TreeEntry], targets: Mapping[str, bytes]) -> Iterator[Refusal]:
    if len(entries) > FILES_MAX:
        yield Refusal("/", f"{len(entries)} files, {FILES_MAX} are allowed")
        return
    total = sum(entry.size for entry in entries)
    if total > TREE_MAX_BYTES:
        yield Refusal("/", f"{total} bytes in all, {TREE_MAX_BYTES} are allowed")
    for entry in entries:
        shown = visible(entry.path, keep="")[:300]
        for why in (*_path_faults(entry.path), *_content_faults(entry, targets)):
            yield Refusal(shown, why)
    yield from _clashes(entry.path for entry in entries)


def _path_faults(path: str) -> Iterator[str]:
    if len(path.encode(errors="surrogateescape")) > PATH_MAX_BYTES:
        yield f"its path is longer than {PATH_MAX_BYTES} bytes"
    names = path.split("/")
    if len(names) > DEPTH_MAX:
        yield f"it lies deeper than {DEPTH_MAX} directories"
    for name in names[:DEPTH_MAX]:
        yield from _name_faults(name)


def _name_faults(name: str) -> Iterator[str]:
    if name in {"", ".", ".."}:
        yield f"{name!r} is not a name of a file"
    if len(name.encode(errors="surrogateescape")) > NAME_MAX_BYTES:
        yield f"a name in it is longer than {NAME_MAX_BYTES} bytes"
    if any("\udc80" <= char <= "\udcff" for char in name):
        yield "its name is not UTF-8"
    elif any(is_hidden(char) or char in '"\\' for char in name):
        yield "its name has control, invisible or quoting characters"
    forbidden = _FORBIDDEN.get(_disguise(name))
    if forbidden is not None:
        yield forbidden


def _content_faults(entry: TreeEntry, targets: Mapping[str, bytes]) -> Iterator[str]:
    if entry.mode == SUBMODULE:
        yield "submodules are not allowed"
    elif entry.mode == LINK:
        why = link_fault(entry.path, targets.get(entry.blob))
        if why is not None:
            yield why
    elif entry.mode not in FILE_MODES:
        yield f"its mode {entry.mode} is not that of a file or a symbolic link"
    elif entry.size > FILE_MAX_BYTES:
        yield f"it has {entry.size} bytes, {FILE_MAX_BYTES} are allowed"


def link_fault(path: str, target: bytes | None) -> str | None:
    """Why a symbolic link is refused; None when it stays inside the tree.

    `..` may stand only at the beginning: behind a name it could step out through another link.
    """
    if target is None or not 0 < len(target) <= TARGET_MAX_BYTES:
        return f"a symbolic link's target has 1 to {TARGET_MAX_BYTES} bytes"
    names = target.decode(errors="surrogateescape").split("/")
    if target.startswith(b"/"):
        return "a symbolic link out of the tree: its target is absolute"
    up = 0
    while up < len(names) and names[up] == "..":
        up += 1
    if up > path.count("/"):
        return "a symbolic link out of the tree"
    if any(name in {"", ".", ".."} or list(_name_faults(name)) for name in names[up:]):
        return "a symbolic link whose target is not a plain relative path"
    return None


def _disguise(name: str) -> str:
    """What a name can turn into on file systems that fold case and normal form, or ignore characters at the
    end (NTFS: blanks, dots, streams)."""
    plain = "".join(char for char in name if unicodedata.category(char) not in {"Cf", "Cc"})
    return folded(plain).split(":")[0].rstrip(" .")


def folded(name: str) -> str:
    """Equal for names that differ only in case or normal form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _clashes(paths: Iterable[str]) -> Iterator[Refusal]:
    seen: dict[str, str] = {}
    for path in paths:
        names = path.split("/")[:DEPTH_MAX]
        for depth in range(1, len(names) + 1):
            prefix = "/".join(names[:depth])
            other = seen.setdefault(folded(prefix), prefix)
            if other != prefix:
                yield Refusal(
                    visible(prefix, keep="")[:300],
                    f"its name differs from {visible(other, keep='')[:300]!r} only in case or normal form",
                )
                break
