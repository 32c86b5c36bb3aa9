"""Agents' directories on the host, each with its owner, and the unpacking of staged state.

state_dir/agents/NAME/            root 0700: nobody else passes, whatever the agent does below
    state home config [agents]    BASE+1000 (uid 1000 inside), the agent's own and hostile
    .uid_base                     BASE, as it was when the directories were made: it never changes
    .unpacked                     digest of the staged state that was unpacked
run_dir/agents/NAME/              BASE 0700: the sockets, bound read-only into the container
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

from reconciler.config import Config
from reconciler.effects import process, statetar, unpack
from reconciler.errors import InvalidError, PermanentError
from reconciler.model.names import AgentName

AGENT_UID = 1000  # inside; on the host BASE + 1000

_UNPACK_S = 60.0
_REMOVE_S = 600.0
_MARKER = ".unpacked"
_BASE_FILE = ".uid_base"
_LIMITS = process.Rlimits(
    cpu_s=30, address_space=512 * process.MIB, file_size=statetar.MAX_FILE_BYTES, nofile=64
)


class RealHostFiles:
    """`HostFiles` on this machine; needs root."""

    def __init__(self, config: Config) -> None:
        self._agents = Path(config.state_dir) / "agents"
        self._sockets = Path(config.run_dir) / "agents"

    async def ensure_agent(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        """Make what is missing, give back what has another owner; `PermanentError` if the directories were
        made for another range: whoever changed the number must say which is right."""
        recorded = self._recorded_base(name)
        if recorded not in {None, uid_base}:
            raise PermanentError(
                f"the database says that the uids of {name} begin at {uid_base}, but its directories "
                f"were made for {recorded}",
                code="uid-range",
                hint=f"set uid_base of {name} back to {recorded}, or purge it",
            )
        wanted = self._wanted(name, uid_base, manager)
        known = recorded is not None
        changed = any(await asyncio.to_thread(lambda: [_make(*entry, known) for entry in wanted]))
        if not known:
            await asyncio.to_thread(_write, self._agents / name / _BASE_FILE, str(uid_base))
        return changed or not known

    async def agent_is_ready(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        """Whether every directory is there with its owner."""
        if self._recorded_base(name) != uid_base:
            return False
        return all(_is_there(*entry) for entry in self._wanted(name, uid_base, manager))

    async def freeze_state(self, tar: Path) -> tuple[str, list[str]]:
        """Digest and file names of a tar that may be unpacked, else `InvalidError`."""
        return await asyncio.to_thread(statetar.examine, tar)

    async def unpack_state(self, name: AgentName, uid_base: int, tar: Path, digest: str) -> None:
        """Unpack as BASE+1000, once per digest; killed in the middle, it is done again from the start."""
        marker = self._agents / name / _MARKER
        if marker.exists() and marker.read_text() == digest:
            return
        found, _ = await self.freeze_state(tar)
        if found != digest:
            raise InvalidError(f"the staged state of {name} is not the one that was frozen")
        target = self._agents / name / "state"
        if not target.is_dir():
            raise PermanentError(f"the directories of {name} do not exist")
        # The directory is entered as root, since its parent is closed to the agent's uid; then the uid is
        # dropped.
        interpreter = str(Path(sys.executable).resolve())
        source = Path(unpack.__file__).read_text()
        owner = uid_base + AGENT_UID
        await process.run(
            [interpreter, "-I", "-S", "-c", source],
            timeout_s=_UNPACK_S,
            cwd=target,
            stdin=tar,
            user=(owner, owner),
            rlimits=_LIMITS,
            room_in=(target,),
        )
        await asyncio.to_thread(_write, marker, digest)

    async def remove_agent(self, name: AgentName) -> None:
        """Remove both trees. rm(1) follows no link and does not mind how deep a hostile tree is."""
        for path in (self._agents / name, self._sockets / name):
            if path.exists():
                argv: list[str | Path] = ["rm", "-rf", "--one-file-system", "--", path]
                await process.run(argv, timeout_s=_REMOVE_S, room_in=())

    def _recorded_base(self, name: AgentName) -> int | None:
        path = f"{self._agents}/{name}/{_BASE_FILE}"
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - hundreds in each full read, as the names below
                return int(file.read())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise PermanentError(f"{path} is damaged") from error

    def _wanted(self, name: AgentName, uid_base: int, manager: bool) -> list[tuple[str, int, int]]:
        """Every directory, parents first, with its owner and mode."""
        owner = uid_base + AGENT_UID
        modes = {"state": 0o755, "home": 0o700, "config": 0o755} | ({"agents": 0o755} if manager else {})
        return [
            (str(self._agents), 0, 0o700),
            (f"{self._agents}/{name}", 0, 0o700),
            (str(self._sockets), 0, 0o711),
            (f"{self._sockets}/{name}", uid_base, 0o700),
            *((f"{self._agents}/{name}/{part}", owner, mode) for part, mode in modes.items()),
        ]


def _make(directory: str, owner: int, mode: int, known: bool) -> bool:
    """Make a directory of that owner; True if anything changed. Its mode is set when it is made, and
    left alone later where the agent owns it. Another owner is put right only if it is `known` whose it is."""
    path, made = Path(directory), False
    try:
        path.mkdir(mode=mode, parents=owner == 0)
        made = True
    except FileExistsError:
        pass
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in {0, owner} and not known:
            raise PermanentError(
                f"{path} belongs to uid {found.st_uid}, not to {owner}",
                hint="purge what is left of the old agent",
            )
        if found.st_uid != owner or found.st_gid != owner:  # just made, or killed between the two steps
            os.fchown(descriptor, owner, owner)
            made = True
        if made or (owner == 0 and stat.S_IMODE(found.st_mode) != mode):
            os.fchmod(descriptor, mode)
            made = True
    finally:
        os.close(descriptor)
    return made


def _is_there(path: str, owner: int, mode: int) -> bool:
    """A directory of that owner; of root's own ones the mode counts, too."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    closed = owner != 0 or stat.S_IMODE(found.st_mode) == mode
    return stat.S_ISDIR(found.st_mode) and (found.st_uid, found.st_gid) == (owner, owner) and closed


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
