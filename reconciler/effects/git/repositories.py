"""The effect behind the Protocol `Git`: bare repositories `repos/<name>.git` and `meta`, owned by hived,
mode 0700.

Reading goes through GitPython in an executor of known size; everything that writes is git itself through
the one process runner, with full ids, full ref names and compare-and-swap. One lock per repository orders
the writers.
"""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from reconciler.effects.git import diffs, reading
from reconciler.effects.git.command import MIB, git
from reconciler.effects.git.layout import CONFIG
from reconciler.effects.git.quarantine import Quarantine, in_turn
from reconciler.effects.git.tags import TAG, ZERO, Tags, clean
from reconciler.effects.process import Rlimits
from reconciler.effects.protocols import RawFileDiff, TreeEntry
from reconciler.errors import InvalidError, OperatorError, PermanentError, Refusal, TemporaryError
from reconciler.model.names import AGENT_NAME_PATTERN, AgentName, Commit

READERS = 2
READ_S = 30.0
FETCH_S = 60.0
BUNDLE_MAX_BYTES = 64 * MIB
REPOSITORY_MAX_BYTES = 1024 * MIB
META = AgentName("meta")
MAIN = "refs/heads/main"

_NAME = re.compile(AGENT_NAME_PATTERN)
_FILE = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,8}")
P = ParamSpec("P")
T = TypeVar("T")


class GitRepositories:
    """Implements `reconciler.effects.protocols.Git`. Making one removes what a killed hived left: there is
    one hived, and its programs die with it."""

    def __init__(
        self, state_dir: Path, quarantine: Quarantine, *, now: Callable[[], float] = time.time
    ) -> None:
        self._state_dir = state_dir
        self._quarantine = quarantine
        self._now = now
        self._tags = Tags()
        self._locks: dict[AgentName, asyncio.Lock] = {}
        self._turns: dict[AgentName, asyncio.Semaphore] = {}
        self._executor = ThreadPoolExecutor(READERS, thread_name_prefix="git")
        self._sweep()

    def close(self) -> None:
        """Let the readers end; nothing may be asked afterwards."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------------------------- writing
    async def create(self, name: AgentName, files: Mapping[str, str], *, author: str, message: str) -> Commit:
        """The first commit of a new repository, or `main` of one that exists. Appears whole or not at all."""
        async with self._lock(name):
            path = self._path(name)
            if path.exists():
                return await self._require_main(name)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = path.parent / f".new-{name}-{secrets.token_hex(8)}.git"
            try:
                await git(new, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(new))
                (new / "config").write_text(CONFIG)
                commit = await self._write(new, files, None, author, message)
                await git(new, "update-ref", "--end-of-options", MAIN, commit, ZERO)
                new.rename(path)
            finally:
                await self._read(shutil.rmtree, new, ignore_errors=True)
            return commit

    async def commit(
        self, name: AgentName, files: Mapping[str, str], *, parent: Commit | None, author: str, message: str
    ) -> Commit:
        """A commit of exactly `files`, on no branch."""
        async with self._lock(name):
            return await self._write(self._existing(name), files, parent, author, message)

    async def import_bundle(self, name: AgentName, bundle: Path, commit: Commit) -> None:
        """Checked by the unprivileged user first, so that nothing of a refused bundle enters the repository;
        checked by us again, because what the sandbox says is no proof. One bundle of a repository at a time:
        an agent whose bundles take long waits for itself, not others for it."""
        repository = self._existing(name)
        async with in_turn(self._turns.setdefault(name, asyncio.Semaphore(1))):
            await self._import(repository, name, bundle, commit)

    async def _import(self, repository: Path, name: AgentName, bundle: Path, commit: Commit) -> None:
        if await self.exists(name, commit):
            await self.check_tree(name, commit)
            return
        await self._refuse_when_full(repository)
        async with self._quarantine.admit(bundle, commit) as admitted, self._lock(name):
            await git(
                repository, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
                "--no-recurse-submodules", f"--upload-pack={admitted.upload_pack}", "--end-of-options",
                str(admitted.repository), commit,
                timeout_s=FETCH_S, rlimits=Rlimits(file_size=BUNDLE_MAX_BYTES),
            )  # fmt: skip
        if not await self.exists(name, commit):
            raise PermanentError(f"the commit {commit} of {name} did not arrive")
        await self.check_tree(name, commit)

    async def pin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        """Create-only, so that a pin never moves."""
        async with self._lock(name):
            repository = self._existing_for(name, tag)
            there = (await self._tags.read(repository)).get(tag)
            if there is None:
                await self._tags.write(repository, tag, commit, message, self._now(), create=True)
            elif there != commit:
                raise PermanentError(
                    f"the tag {tag} of {name} is on {there}, not on {commit}", code="conflict"
                )

    async def repin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        """Whatever is there is replaced; the reflog of the repository keeps it."""
        async with self._lock(name):
            repository = self._existing_for(name, tag)
            if (await self._tags.read(repository)).get(tag) != commit:
                await self._tags.write(repository, tag, commit, message, self._now(), create=False)

    async def remove(self, name: AgentName) -> None:
        """Renamed first, so that a half-removed repository is never taken for one."""
        async with self._lock(name):
            path = self._path(name)
            if name == META:
                raise ValueError("the deploy log is not an agent's repository")
            if path.exists():
                path.rename(path.parent / f".new-{name}-{secrets.token_hex(8)}.git")
            for left in path.parent.glob(f".new-{name}-{'[0-9a-f]' * 16}.git"):
                await self._read(shutil.rmtree, left, ignore_errors=True)

    async def set_main(self, name: AgentName, commit: Commit, *, expected: Commit | None) -> None:
        """Compare-and-swap; nothing to do if it is there already."""
        async with self._lock(name):
            repository = self._existing(name)
            if await self._main(repository) == commit:
                return
            done = await git(
                repository,
                "update-ref",
                "--end-of-options",
                MAIN,
                commit,
                expected or ZERO,
                accept=(0, 1, 128),
            )
            if done.exit_code:
                raise TemporaryError(f"main of {name} moved while it was being set", code="conflict")

    # ------------------------------------------------------------------------------------------- reading
    async def check_tree(self, name: AgentName, commit: Commit) -> list[TreeEntry]:
        """Files by path; `InvalidError` by the tree rules."""
        return await self._read(reading.list_tree, self._existing(name), commit)

    async def exists(self, name: AgentName, commit: Commit) -> bool:
        """Whether the repository is there and holds that commit."""
        path = self._path(name)
        if not path.exists():
            return False
        done = await git(path, "cat-file", "--batch-check=%(objecttype)", stdin=f"{commit}\n".encode())
        return done.text.strip() == "commit"

    async def tags(self, name: AgentName) -> dict[str, Commit]:
        """All tags, peeled; empty without a repository."""
        path = self._path(name)
        return await self._tags.read(path) if path.exists() else {}

    async def main(self, name: AgentName) -> Commit | None:
        """The commit of `main`."""
        path = self._path(name)
        return await self._main(path) if path.exists() else None

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        """Write the files below `into`, which must be empty."""
        await self._read(reading.write_tree, self._existing(name), commit, into)

    async def read(self, name: AgentName, commit: Commit, path: str, limit: int) -> str | None:
        """Text of a file, invalid UTF-8 replaced."""
        content = await self._read(reading.read_file, self._existing(name), commit, path, limit)
        return None if content is None else content.decode("utf-8", "replace")

    async def diff(self, name: AgentName, base: Commit | None, commit: Commit) -> list[RawFileDiff]:
        """Bounded text changes by path."""
        repository = self._existing(name)
        before = {} if base is None else {e.path: e for e in await self.check_tree(name, base)}
        after = {e.path: e for e in await self.check_tree(name, commit)}
        return await diffs.diff(repository, base, commit, before, after)

    async def bundle(self, name: AgentName) -> bytes:
        """One ref, `refs/heads/main`, with its whole history."""
        repository = self._existing(name)
        done = await git(
            repository, "bundle", "create", "--quiet", "--version=2", "-", MAIN,
            timeout_s=FETCH_S, max_stdout=BUNDLE_MAX_BYTES,
        )  # fmt: skip
        return done.stdout

    async def is_ancestor(self, name: AgentName, older: Commit, newer: Commit) -> bool:
        """A commit is an ancestor of itself."""
        done = await git(
            self._existing(name),
            "merge-base",
            "--is-ancestor",
            "--end-of-options",
            older,
            newer,
            accept=(0, 1),
        )
        return done.exit_code == 0

    # ------------------------------------------------------------------------------------------- inner
    def _sweep(self) -> None:
        """Half-made repositories; locks of refs, which would refuse every later change; packs that were
        being received."""
        repositories = self._state_dir / "repos"
        for left in (*repositories.glob(".new-*.git"), *self._state_dir.glob(f".new-{META}-*.git")):
            shutil.rmtree(left, ignore_errors=True)
        for repository in (*repositories.glob("*.git"), self._state_dir / META):
            for lock in (*repository.glob("*.lock"), *(repository / "refs").glob("**/*.lock")):
                lock.unlink(missing_ok=True)
            for pack in (repository / "objects/pack").glob("tmp_*"):
                pack.unlink(missing_ok=True)
            for incoming in (repository / "objects").glob("tmp_objdir-*"):
                shutil.rmtree(incoming, ignore_errors=True)

    def _path(self, name: AgentName) -> Path:
        if name == META:
            return self._state_dir / "meta"
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name")
        return self._state_dir / "repos" / f"{name}.git"

    def _existing(self, name: AgentName) -> Path:
        path = self._path(name)
        if not path.exists():
            raise OperatorError(f"there is no repository of {name}", code="not-found")
        return path

    def _existing_for(self, name: AgentName, tag: str) -> Path:
        if not TAG.fullmatch(tag):
            raise ValueError(f"{tag!r} is not a tag of ours")
        return self._existing(name)

    def _lock(self, name: AgentName) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(work, *args, **kwargs)
        try:
            async with asyncio.timeout(READ_S):
                return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except TimeoutError as error:
            raise TemporaryError(f"reading a repository took longer than {READ_S:.0f} s") from error

    async def _require_main(self, name: AgentName) -> Commit:
        commit = await self._main(self._existing(name))
        if commit is None:
            raise PermanentError(f"the repository of {name} has no main branch")
        return commit

    async def _main(self, repository: Path) -> Commit | None:
        done = await git(repository, "rev-parse", "--quiet", "--verify", f"{MAIN}^{{commit}}", accept=(0, 1))
        text = done.text.strip()
        return Commit(text) if text else None

    async def _write(
        self, repository: Path, files: Mapping[str, str], parent: Commit | None, author: str, message: str
    ) -> Commit:
        who = re.sub(r"[<>\x00-\x1f\x7f]", "", author)[:100] or "hyperhive"
        when = f"{int(self._now())} +0000"
        parts = [b"feature done\nfeature get-mark\n"]
        for number, (path, text) in enumerate(sorted(files.items()), 2):
            if not _FILE.fullmatch(path):
                raise ValueError(f"{path!r} is not a path that hived writes")
            parts.append(b"blob\nmark :%d\n%s" % (number, _data(text)))
        parts.append(
            f"commit refs/hive/written\nmark :1\nauthor {who} <hyperhive@localhost> {when}\n"
            f"committer hyperhive <hyperhive@localhost> {when}\n".encode()
            + _data(clean(message) + "\n")
            + (f"from {parent}\n".encode() if parent else b"")
            + b"deleteall\n"
        )
        parts += [f"M 100644 :{n} {path}\n".encode() for n, path in enumerate(sorted(files), 2)]
        parts.append(b"\nget-mark :1\ndone\n")
        done = await git(repository, "fast-import", "--quiet", "--force", stdin=b"".join(parts))
        return Commit(done.text.strip())

    async def _refuse_when_full(self, repository: Path) -> None:
        def size() -> int:
            return sum(file.stat().st_size for file in (repository / "objects").rglob("*") if file.is_file())

        if await self._read(size) > REPOSITORY_MAX_BYTES:
            why = f"the agent's repository on the host has reached its limit of {REPOSITORY_MAX_BYTES} bytes"
            raise InvalidError(why, (Refusal("bundle", why),), hint="the operator must make room")


def _data(text: str) -> bytes:
    content = text.encode()
    return b"data %d\n%s\n" % (len(content), content)
