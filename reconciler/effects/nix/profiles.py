"""An agent's generations as a Nix profile: `profiles/NAME/system-N-link`, and `system` to the selected one.

`nix-env -p profiles/NAME/system --list-generations` shows them with our numbers. Every link is an indirect
root of the store, so a collection keeps what is pinned; what is dropped goes with the next one. Each change
is one rename: a kill in between leaves the old or the new, and the next call of the same kind finishes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from reconciler.effects import process
from reconciler.errors import CommandError, PermanentError
from reconciler.model.names import AgentName

PROFILE = "system"
_GENERATION = re.compile(rf"{PROFILE}-([1-9][0-9]{{0,8}})-link")
_OLD_GENERATION = re.compile(r"[1-9][0-9]{0,8}")  # profiles/NAME/NUMBER, before they were profiles
_BUILDING = "building"
_NEW = ".selecting"
_STORE_S = 30.0
_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"


class Profiles:
    """The profiles below one directory.

    `environment` says where the store and its daemon are, as for every Nix client of the hive.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = {**environment, "HOME": "/nonexistent"}
        self._store = environment.get("NIX_STORE_DIR", "/nix/store")
        self._roots = environment.get("NIX_STATE_DIR", "/nix/var/nix") + "/gcroots/auto"
        self._migrated: set[AgentName] = set()
        self._migrating = asyncio.Lock()

    # ------------------------------------------------------------------------------------------- generations
    async def pin(self, name: AgentName, number: int, store_path: str) -> None:
        """Make generation `number` that path; whatever stood in its place is replaced. `CommandError` if the
        path is not in the store."""
        await self._migrate(name)
        await self._add_root(self._link(name, number), store_path)
        building = self._of(name) / _BUILDING
        if _target(building) == store_path:
            building.unlink()

    async def pinned(self, name: AgentName) -> dict[int, str]:
        """Number → store path of the generations that a collection would keep: links that are whole, whose
        path is there, and that the store knows as roots."""
        await self._migrate(name)
        return await asyncio.to_thread(self._pinned, name)

    async def select(self, name: AgentName, number: int) -> None:
        """Point the profile to a pinned generation; `PermanentError` if it is not pinned."""
        await self._migrate(name)
        if self._target_of(self._link(name, number)) is None:
            raise PermanentError(
                f"cannot select generation {number} of {name}: it is not pinned in the store",
                hint="run `hive doctor`",
            )
        await asyncio.to_thread(self._select, name, number)

    async def selected(self, name: AgentName) -> int | None:
        """The generation that the profile points to; None if it points to none that is pinned."""
        number = self._selected(name)
        if number is None:
            return None
        await self._migrate(name)
        return number if self._target_of(self._link(name, number)) is not None else None

    async def runs(self, name: AgentName, number: int, store_path: str) -> bool:
        """Whether the profile points to that generation, which is whole and that path."""
        await self._migrate(name)
        return self._selected(name) == number and self._target_of(self._link(name, number)) == store_path

    async def drop(self, name: AgentName) -> None:
        """Unpin everything; the store forgets the roots at its next collection."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, self._of(name))

    # ------------------------------------------------------------------------------------------- builds
    async def hold(self, name: AgentName, store_path: str) -> None:
        """Hold a finished build until it is pinned as a generation, or another one is held."""
        await self._add_root(self._of(name) / _BUILDING, store_path)

    async def release(self, name: AgentName, keep: str | None) -> None:
        """Let go of a held build, unless it is `keep`."""
        link = self._of(name) / _BUILDING
        if (target := _target(link)) is not None and target != keep:
            link.unlink(missing_ok=True)

    async def exists(self, store_path: str) -> bool:
        """Whether the path is valid in the store and on the disk."""
        if str(Path(store_path).parent) != self._store or not Path(store_path).exists():
            return False
        try:
            await self._run("nix-store", "--check-validity", store_path)
        except CommandError as error:
            if error.record.exit_code == 1:
                return False
            raise
        return True

    # ------------------------------------------------------------------------------------------- inside
    def _of(self, name: AgentName) -> Path:
        return self._directory / name

    def _link(self, name: AgentName, number: int) -> Path:
        return self._of(name) / f"{PROFILE}-{number}-link"

    def _selected(self, name: AgentName) -> int | None:
        """The number that the profile names, whatever became of that generation."""
        target = _target(self._of(name) / PROFILE)
        found = _GENERATION.fullmatch(Path(target).name) if target is not None else None
        if target is None or found is None or Path(target).parent not in (Path(), self._of(name)):
            return None
        return int(found[1])

    def _pinned(self, name: AgentName) -> dict[int, str]:
        with contextlib.suppress(FileNotFoundError):
            return dict(sorted(self._whole(self._of(name))))
        return {}

    def _whole(self, directory: Path) -> Iterator[tuple[int, str]]:
        with os.scandir(directory) as links:
            for link in links:
                number = _GENERATION.fullmatch(link.name)
                if number is not None and (target := self._target_of(Path(link.path))) is not None:
                    yield int(number[1]), target

    def _target_of(self, link: Path) -> str | None:
        """The store path that a link pins; None if it is damaged, dangles, or is no root."""
        target = _target(link)
        if target is None or os.path.dirname(target) != self._store or not os.path.lexists(target):  # noqa: PTH120 - asked for each agent in each pass
            return None
        return target if self._is_root(str(link)) else None

    def _is_root(self, link: str) -> bool:
        """Whether the store has it registered: Nix names an indirect root after the hash of the link's path.

        A daemon that keeps its roots where we cannot see them is believed.
        """
        return _target(f"{self._roots}/{_indirect_root(link)}") == link or not os.path.isdir(self._roots)  # noqa: PTH112 - as above

    def _select(self, name: AgentName, number: int) -> None:
        profile, wanted = self._of(name) / PROFILE, self._link(name, number).name
        if _target(profile) == wanted:
            return
        if not profile.is_symlink() and profile.is_dir():  # a rename cannot replace a directory
            shutil.rmtree(profile)
        new = profile.with_name(_NEW)
        new.unlink(missing_ok=True)
        new.symlink_to(wanted)
        new.replace(profile)
        _sync(profile.parent)

    async def _migrate(self, name: AgentName) -> None:
        """Take over links `profiles/NAME/NUMBER` of earlier versions: pinned anew before the old one goes."""
        if name in self._migrated:
            return
        async with self._migrating:
            for link in sorted(self._of(name).glob("*")):
                if _OLD_GENERATION.fullmatch(link.name) is None or (target := _target(link)) is None:
                    continue
                if await self.exists(target) and not self._link(name, int(link.name)).is_symlink():
                    await self._add_root(self._link(name, int(link.name)), target)
                link.unlink(missing_ok=True)
            self._migrated.add(name)

    async def _add_root(self, link: Path, store_path: str) -> None:
        """Register a link as an indirect root; checks that the path is valid. Safe to repeat."""
        await asyncio.to_thread(self._make_way, link)
        await self._run("nix-store", "--add-root", link, "--indirect", "--realise", store_path)
        await asyncio.to_thread(_sync, link.parent)

    def _make_way(self, link: Path) -> None:
        """Nix replaces only links into its store: what else stands there is damage."""
        link.parent.mkdir(parents=True, exist_ok=True)
        target = _target(link)
        if target is None and link.is_dir():
            shutil.rmtree(link)
        elif target is None or str(Path(target).parent) != self._store:
            link.unlink(missing_ok=True)

    async def _run(self, *argv: str | Path) -> None:
        await process.run(argv, timeout_s=_STORE_S, env=self._environment)


def _target(link: Path | str) -> str | None:
    """What a symbolic link says; None if it is none."""
    try:
        return os.readlink(link)  # noqa: PTH115 - Path would make `a//b` and `a/./b` equal to what we wrote
    except OSError:
        return None


def _sync(directory: Path) -> None:
    """Let renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.lru_cache(8192)
def _indirect_root(path: str) -> str:
    """Nix's name for an indirect root: the SHA-1 of the link's path in Nix's base 32."""
    digest = int.from_bytes(hashlib.sha1(path.encode(), usedforsecurity=False).digest(), "little")
    return "".join(_BASE32[digest >> shift & 31] for shift in range(155, -1, -5))
