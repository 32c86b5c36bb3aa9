"""The agent's clones: `/config`, and for the manager `/agents/<name>/{config,state}`.

The host sends repositories as bundles and gets proposals as bundles; nobody opens the other's repository.
Every git and tar command here runs as the agent's user, because what it reads belongs to the agent. The
host's `main` is always fetched to `refs/remotes/hive/main`; a working tree follows it only if it is clean and
merely behind.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from harness.programs import AgentPrograms, ProgramError
from harness.wire import BUNDLE_MAX_BYTES, STATE_TAR_MAX_BYTES

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROPOSAL_REF = "refs/hive/propose"
_MAIN = "refs/remotes/hive/main"

FetchBundle = Callable[[str], Awaitable[bytes]]
"""Repository name → the host's bundle of its `main`."""


class TreeError(Exception):
    """A tree is not as it must be; the message is for the agent."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One commit with all its history, as `git bundle` wrote it."""

    commit: str
    data: bytes


class Trees:
    """Clones, refreshes and packs the agent's repositories. One operation per repository at a time."""

    def __init__(
        self, own: str, config: Path, agents: Path, programs: AgentPrograms, fetch_bundle: FetchBundle
    ) -> None:
        self._own = own
        self._config = config
        self._agents = agents
        self._programs = programs
        self._fetch_bundle = fetch_bundle
        self._locks: dict[str, asyncio.Lock] = {}

    def repository(self, name: str) -> Path:
        """Where the repository of an agent is worked on. `TreeError` for a name that is none."""
        if not _NAME.fullmatch(name):
            raise TreeError(
                f"{name[:80]!r} is no agent name: a lower-case letter, then letters, digits and -, 31 at most"
            )
        return self._config if name == self._own else self._agents / name / "config"

    def state(self, name: str) -> Path:
        """Where the state of a drafted agent is put together."""
        return self.repository(name).parent / "state"

    async def refresh(self, name: str) -> str:
        """Brings a clone up to date with the host's `main`. One line about what was done or left alone.

        Raises `ProgramError` or whatever fetching from the host raises; the tree is then as it was.
        """
        path = self.repository(name)
        async with self._lock(name):
            data = await self._fetch_bundle(name)
            if name != self._own:
                await self._programs.run(["mkdir", "-p", "--", str(path)])
            fresh = await self._prepare(path)
            with tempfile.TemporaryDirectory(prefix="hive-") as folder:
                Path(folder).chmod(0o755)
                bundle = Path(folder) / "main.bundle"
                bundle.write_bytes(data)
                bundle.chmod(0o644)
                await self._git(path, "fetch", "-q", "--no-tags", str(bundle), f"+refs/heads/main:{_MAIN}")
            return await self._follow(path, fresh)

    async def make_draft(self, name: str) -> None:
        """The two folders of a drafted agent: its repository at the host's first commit, and an empty
        state."""
        if name == self._own:
            raise TreeError("an agent cannot draft itself")
        await self._programs.run(["mkdir", "-p", "--", str(self.state(name))])
        await self.refresh(name)

    async def pack(self, name: str, commit: str) -> Bundle:
        """A bundle with one ref that holds just this commit and its history. `commit`: 40 hex digits, or
        HEAD.

        Branch names and short ids are refused: what is proposed must be what was looked at.
        """
        path = self.repository(name)
        if commit != "HEAD" and not _COMMIT.fullmatch(commit):
            raise TreeError(f"{commit[:80]!r} is no full commit id: give all 40 digits (git rev-parse HEAD)")
        async with self._lock(name):
            try:
                found = await self._git(
                    path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"
                )
            except ProgramError:
                raise TreeError(f"there is no commit {commit} in {path}; did you commit there?") from None
            full = found.decode("ascii", "replace").strip()
            if not _COMMIT.fullmatch(full):
                raise TreeError(f"git named the commit {full[:80]!r}, which is no id")
            await self._git(path, "update-ref", _PROPOSAL_REF, full)
            data = await self._git(
                path, "bundle", "create", "-q", "-", _PROPOSAL_REF, output_max=BUNDLE_MAX_BYTES
            )
            return Bundle(full, data)

    async def pack_state(self, name: str) -> bytes:
        """A tar of `/agents/<name>/state`: regular files and directories. Anything else in it is refused by
        name."""
        folder = self.state(name)
        odd = await self._programs.run(
            ["find", ".", "!", "-type", "f", "!", "-type", "d", "-print", "-quit"],
            cwd=folder,
            output_max=64 * 1024,
        )
        if odd:
            where = odd.decode("utf-8", "replace").strip()[:300]
            raise TreeError(
                f"{folder} contains {where!r}, which is neither a file nor a directory; remove it"
            )
        return await self._programs.run(
            [
                "tar",
                "--create",
                "--hard-dereference",
                "--sort=name",
                "--numeric-owner",
                "--owner=0",
                "--group=0",
                "--file=-",
                ".",
            ],
            cwd=folder,
            output_max=STATE_TAR_MAX_BYTES,
        )

    async def _prepare(self, path: Path) -> bool:
        """Makes an empty repository where there is none; whether it did."""
        try:
            await self._git(path, "rev-parse", "--resolve-git-dir", f"{path}/.git")
        except ProgramError:
            await self._git(path, "init", "-q", "-b", "main", ".")
            return True
        return False

    async def _follow(self, path: Path, fresh: bool) -> str:
        if fresh:
            await self._git(path, "reset", "-q", "--hard", _MAIN)
            return f"{path}: cloned"
        try:
            branch = await self._git(path, "symbolic-ref", "-q", "HEAD")
        except ProgramError:
            branch = b"no branch"
        if branch.strip() != b"refs/heads/main":
            return f"{path}: fetched; main is not checked out, so the tree was left alone"
        if await self._git(path, "status", "--porcelain=v1", "--untracked-files=no"):
            return f"{path}: fetched; the tree has uncommitted changes and was left alone"
        try:
            await self._git(path, "merge", "-q", "--ff-only", _MAIN)
        except ProgramError:
            return f"{path}: fetched; the branch has commits of its own and was left alone"
        return f"{path}: up to date"

    async def _git(self, path: Path, *arguments: str, output_max: int = 1 << 20) -> bytes:
        return await self._programs.run(["git", *arguments], cwd=path, output_max=output_max)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
