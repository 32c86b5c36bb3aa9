"""Commits, trees and files read with GitPython, by full id, from our own repositories only.

GitPython leaks processes and descriptors in long-lived use, so each call opens the repository, reads, and
closes it again. All functions block: `repositories` runs them in its own executor. Nothing here follows
configuration of a repository that anybody else can write.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from git import Repo
from git.objects import Blob, Commit, Tree

from reconciler.effects.git import trees
from reconciler.effects.git.command import ENVIRONMENT
from reconciler.effects.protocols import TreeEntry
from reconciler.errors import OperatorError, PermanentError
from reconciler.model import names


@contextlib.contextmanager
def _opened(repository: Path) -> Iterator[Repo]:
    with Repo(repository, expand_vars=False) as repo:
        # bare repositories are taken only where they are named, never where somebody stands
        repo.git.update_environment(**ENVIRONMENT, GIT_DIR=str(repository))
        yield repo


def _commit(repo: Repo, commit: names.Commit) -> Commit:
    """The commit of a full id; GitPython's own look-up by name is never used: names can be ambiguous."""
    try:
        found = Commit(repo, bytes.fromhex(commit))
        _ = found.tree
    except (ValueError, AssertionError) as error:  # not there, or no commit; or git could not be run
        if "empty" in str(error):
            raise PermanentError(f"cannot read {repo.git_dir}: {str(error)[:200]}") from error
        raise OperatorError(
            f"there is no commit {commit} in {Path(repo.git_dir).name}",
            code="not-found",
            hint="a commit of another repository must be proposed for its own agent",
        ) from error
    return found


def list_tree(repository: Path, commit: names.Commit) -> list[TreeEntry]:
    """All files of the commit by path, after the tree rules: `InvalidError` if it breaks one."""
    with _opened(repository) as repo:
        entries = list(_walk(_commit(repo, commit).tree, commit))
        targets = {
            entry.blob: _content(repo, entry.blob)
            for entry in entries
            if entry.mode == trees.LINK and entry.size <= trees.TARGET_MAX_BYTES
        }
    trees.check(commit, entries, targets)
    return sorted(entries, key=lambda entry: entry.path.encode(errors="surrogateescape"))


def _walk(tree: Tree, commit: names.Commit) -> Iterator[TreeEntry]:
    """Files below a tree; gives up at `ENTRIES_MAX` names, because a small tree can unfold without end."""
    waiting, seen = [tree], 0
    while waiting:
        for item in waiting.pop():
            seen += 1
            if seen > trees.ENTRIES_MAX:
                raise trees.too_many(commit)
            path = os.fspath(item.path)
            if isinstance(item, Tree):
                waiting.append(item)
            elif isinstance(item, Blob):
                yield TreeEntry(path, _mode(item.mode), item.hexsha, item.size)
            else:
                yield TreeEntry(path, trees.SUBMODULE, item.hexsha, 0)


def _mode(raw: int) -> str:
    """A mode as git itself reads it: of a file's permissions, only whether its owner may execute it."""
    if stat.S_ISREG(raw):
        return "100755" if raw & stat.S_IXUSR else "100644"
    return f"{raw:06o}"


def _content(repo: Repo, blob: str) -> bytes:
    return bytes(repo.odb.stream(bytes.fromhex(blob)).read())


def read_file(repository: Path, commit: names.Commit, path: str, limit: int) -> bytes | None:
    """The first `limit` bytes of a file; None if there is no file of that name (a link is none)."""
    with _opened(repository) as repo:
        item: Tree | Blob = _commit(repo, commit).tree
        for name in path.split("/"):
            if not isinstance(item, Tree):
                return None
            found = next((child for child in item if child.name == name), None)
            if not isinstance(found, Tree | Blob):
                return None
            item = found
        if not isinstance(item, Blob) or _mode(item.mode) not in trees.FILE_MODES:
            return None
        return _content(repo, item.hexsha)[:limit]


def write_tree(repository: Path, commit: names.Commit, into: Path) -> None:
    """Write the commit's files below the empty directory `into`, readable by all.

    The tree rules are asked again, so that nothing is ever written that they refuse; links come last, so
    that no file is written through one.
    """
    entries = list_tree(repository, commit)
    if any(into.iterdir()):
        raise ValueError(f"{into} is not empty")
    into.chmod(0o755)
    with _opened(repository) as repo:
        for entry in sorted(entries, key=lambda entry: entry.mode == trees.LINK):
            target = into / entry.path
            for parent in reversed(target.relative_to(into).parents[:-1]):
                (into / parent).mkdir(mode=0o755, exist_ok=True)
                (into / parent).chmod(0o755)
            content = _content(repo, entry.blob)
            if entry.mode == trees.LINK:
                target.symlink_to(os.fsdecode(content))
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o755 if entry.mode == "100755" else 0o644)
