"""Repositories in memory, with the contract of the real effect (`tests/contract/test_git.py`).

A bundle for this fake is a file that `write_bundle` made: JSON of commits, the last one being offered.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.effects.git import trees
from reconciler.effects.protocols import RawFileDiff, TreeEntry
from reconciler.errors import InvalidError, OperatorError, PermanentError, Refusal, TemporaryError
from reconciler.model.names import AgentName, Commit
from tests.fakes.faults import Faults

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class FakeCommit:
    """Files by path, and the parent."""

    files: dict[str, bytes]
    parent: Commit | None

    @property
    def id(self) -> Commit:
        return Commit(hashlib.sha1(json.dumps(_plain(self)).encode()).hexdigest())


@dataclass(slots=True)
class FakeRepository:
    """Commits by id, tags, and `main`."""

    commits: dict[Commit, FakeCommit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    messages: dict[str, str | None] = field(default_factory=dict)
    main: Commit | None = None


def _plain(commit: FakeCommit) -> dict[str, object]:
    files = {path: base64.b64encode(content).decode() for path, content in commit.files.items()}
    return {"files": dict(sorted(files.items())), "parent": commit.parent}


def write_bundle(path: Path, commits: Sequence[FakeCommit]) -> Commit:
    """Write a bundle of the commits, oldest first; the id of the last."""
    path.write_text(json.dumps([_plain(commit) for commit in commits]))
    return commits[-1].id


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeGit:
    """`repositories[name]` may be looked at, and changed as an operator's push would."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.repositories: dict[AgentName, FakeRepository] = {}

    async def create(self, name: AgentName, files: Mapping[str, str], *, author: str, message: str) -> Commit:
        async with self.faults.call("git.create", name):
            there = self.repositories.get(name)
            if there is not None:
                assert there.main is not None, "a repository is made with its main branch"
                return there.main
            repository = self.repositories[name] = FakeRepository()
            repository.main = _add(repository, files, None)
            return repository.main

    async def commit(
        self, name: AgentName, files: Mapping[str, str], *, parent: Commit | None, author: str, message: str
    ) -> Commit:
        async with self.faults.call("git.commit", name):
            return _add(self._existing(name), files, parent)

    async def import_bundle(self, name: AgentName, bundle: Path, commit: Commit) -> None:
        async with self.faults.call("git.import_bundle", name):
            repository = self._existing(name)
            if commit in repository.commits:
                return
            try:
                raw = json.loads(bundle.read_text())
                found = [
                    FakeCommit({k: base64.b64decode(v) for k, v in one["files"].items()}, one["parent"])
                    for one in raw
                ]
            except (ValueError, TypeError) as error:
                raise _refused("it is no bundle") from error
            if found[-1].id != commit:
                raise _refused(f"it does not hold {commit}")
            trees.check(commit, _entries(found[-1]), {})
            repository.commits.update({one.id: one for one in found})

    async def check_tree(self, name: AgentName, commit: Commit) -> list[TreeEntry]:
        async with self.faults.call("git.check_tree", name, changes=False):
            entries = _entries(self._commit(name, commit))
            trees.check(commit, entries, {})
            return entries

    async def exists(self, name: AgentName, commit: Commit) -> bool:
        repository = self.repositories.get(name)
        return repository is not None and commit in repository.commits

    async def pin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        async with self.faults.call("git.pin", f"{name} {tag}"):
            repository = self._existing(name)
            self._commit(name, commit)
            if repository.tags.setdefault(tag, commit) != commit:
                raise PermanentError(f"the tag {tag} is elsewhere", code="conflict")
            repository.messages.setdefault(tag, message)

    async def repin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        async with self.faults.call("git.repin", f"{name} {tag}"):
            repository = self._existing(name)
            self._commit(name, commit)
            if repository.tags.get(tag) != commit:
                repository.tags[tag], repository.messages[tag] = commit, message

    async def tags(self, name: AgentName) -> dict[str, Commit]:
        repository = self.repositories.get(name)
        return dict(repository.tags) if repository is not None else {}

    async def main(self, name: AgentName) -> Commit | None:
        repository = self.repositories.get(name)
        return repository.main if repository is not None else None

    async def set_main(self, name: AgentName, commit: Commit, *, expected: Commit | None) -> None:
        async with self.faults.call("git.set_main", name):
            repository = self._existing(name)
            self._commit(name, commit)
            if repository.main not in {commit, expected}:
                raise TemporaryError(f"main of {name} moved")
            repository.main = commit

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        async with self.faults.call("git.extract", name, changes=False):
            into.chmod(0o755)
            for path, content in self._commit(name, commit).files.items():
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                (into / path).write_bytes(content)

    async def read(self, name: AgentName, commit: Commit, path: str, limit: int) -> str | None:
        content = self._commit(name, commit).files.get(path)
        return None if content is None else content[:limit].decode("utf-8", "replace")

    async def diff(self, name: AgentName, base: Commit | None, commit: Commit) -> list[RawFileDiff]:
        before: Files = {} if base is None else self._commit(name, base).files
        after = self._commit(name, commit).files
        return [
            RawFileDiff(
                path,
                None,
                "added" if path not in before else "modified" if path in after else "deleted",
                _patch(path, before.get(path), after.get(path)),
                binary=False,
                too_large=False,
            )
            for path in sorted({*before, *after})
            if before.get(path) != after.get(path)
        ]

    async def bundle(self, name: AgentName) -> bytes:
        repository = self._existing(name)
        history: list[FakeCommit] = []
        at = repository.main
        while at is not None:
            history.append(repository.commits[at])
            at = history[-1].parent
        return json.dumps([_plain(commit) for commit in reversed(history)]).encode()

    async def remove(self, name: AgentName) -> None:
        async with self.faults.call("git.remove", name):
            self.repositories.pop(name, None)

    async def is_ancestor(self, name: AgentName, older: Commit, newer: Commit) -> bool:
        at: Commit | None = newer
        while at is not None and at != older:
            at = self._commit(name, at).parent
        return at is not None

    def _existing(self, name: AgentName) -> FakeRepository:
        if name not in self.repositories:
            raise OperatorError(f"there is no repository of {name}", code="not-found")
        return self.repositories[name]

    def _commit(self, name: AgentName, commit: Commit) -> FakeCommit:
        found = self._existing(name).commits.get(commit)
        if found is None:
            raise OperatorError(f"there is no commit {commit} in {name}", code="not-found")
        return found


def _add(repository: FakeRepository, files: Mapping[str, str], parent: Commit | None) -> Commit:
    commit = FakeCommit({path: text.encode() for path, text in files.items()}, parent)
    repository.commits[commit.id] = commit
    return commit.id


def _entries(commit: FakeCommit) -> list[TreeEntry]:
    return [
        TreeEntry(path, "100644", _blob(content), len(content))
        for path, content in sorted(commit.files.items(), key=lambda item: item[0].encode())
    ]


def _patch(path: str, before: bytes | None, after: bytes | None) -> str:
    old = [] if before is None else before.decode().splitlines()
    new = [] if after is None else after.decode().splitlines()
    lines = [f"diff --git a/{path} b/{path}", f"@@ -1,{len(old)} +1,{len(new)} @@"]
    return "\n".join([*lines, *(f"-{line}" for line in old), *(f"+{line}" for line in new)]) + "\n"


def _refused(why: str) -> InvalidError:
    return InvalidError(f"the bundle is refused: {why}", (Refusal("bundle", why),))
