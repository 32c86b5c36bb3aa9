"""What the reconciler may ask of the world. One contract suite in `tests/contract/` runs on each real effect
and its fake.

Every method is safe to repeat after a crash at any point; every one has a deadline of its own or takes one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from reconciler.model.names import AgentName, Commit
from reconciler.model.spec import Limits, Spec

LogSink = Callable[[str], Awaitable[None]]


# ------------------------------------------------------------------------------------------------ containers
@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that decides how a container is started: the one argument builder turns it into an argument list.

    `toplevel` is a store path (the read-only root); `uid_base` the first uid of its range; `state_dir` holds
    `state/`, `home/`, `config/` and (manager) `agents/`, each owned by BASE+1000; `run_dir` holds the
    sockets, owned by BASE, mode 0700.
    """

    name: AgentName
    toplevel: str
    uid_base: int
    state_dir: Path
    run_dir: Path
    manager: bool
    limits: Limits


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What is true of a container now.

    `phase`: absent (never started, or its record was cleared) · starting · running · exited.
    `toplevel` and `invocation` (random id of this start) are of the start that the status speaks of.
    `exit_code`: of nspawn, None if unknown or killed by `signal`. `result`: how the supervisor calls its end,
    in systemd's words (success, exit-code, signal, oom-kill, timeout, …); empty while it lives or if unknown.
    `started_at`, `ended_at`: epoch seconds. `limits_enforced` names limits in force (memory, tasks, cpu).
    `stop_asked`: somebody asked for this end (a stop job of the unit, SIGTERM to the shim); whether that was
    hived itself says the database. `host_restarted`: it ran before the host (or the PID namespace that hived
    lives in) was started again, which ended it. `frozen`: all its processes are suspended; but
    if `restless`, some of them run nevertheless: `freeze` was not fast enough, and is to be called again.
    `drift`: what differs from how this version would have set it up, in words; `refresh` mends it in place.
    """

    phase: Literal["absent", "starting", "running", "exited"]
    toplevel: str | None = None
    invocation: str | None = None
    unit: str = ""
    leader_pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    started_at: float | None = None
    limits_enforced: tuple[str, ...] = ()
    host_restarted: bool = False
    result: str = ""
    ended_at: float | None = None
    stop_asked: bool = False
    frozen: bool = False
    restless: bool = False
    drift: tuple[str, ...] = ()


class Containers(Protocol):
    """A container driver: `shim` (no systemd as PID 1) or `systemd`."""

    driver: Literal["shim", "systemd"]

    async def status(self, name: AgentName) -> ContainerStatus:
        """Read from the world, never from memory."""
        ...

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        """`status` of every name that `list` gives, read at once: for lists of agents and full reads."""
        ...

    async def list(self) -> Sequence[AgentName]:
        """Names that have a record or a unit, running or not, sorted."""
        ...

    async def start(self, spec: ContainerSpec) -> ContainerStatus:
        """Start unless a container of that name lives (then its status, whatever its toplevel). Returns when
        the leader is known."""
        ...

    async def stop(self, name: AgentName, *, timeout_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`; nothing of it is left (processes, mounts). Absent or
        exited: nothing to do."""
        ...

    async def clear(self, name: AgentName) -> None:
        """Forget an exited container's record, so that its status is absent."""
        ...

    async def freeze(self, name: AgentName) -> None:
        """Suspend every process of the container; `TemporaryError` code `not-running` if it does not run.
        Frozen already: nothing to do. `stop` works on a frozen one, too."""
        ...

    async def thaw(self, name: AgentName) -> None:
        """Let a frozen container go on where it was; nothing to do if it is not frozen or does not run."""
        ...

    async def refresh(self, name: AgentName) -> None:
        """Mend what `status` reports as drift (unit files, their properties), without touching processes."""
        ...

    async def forbid_user_namespaces(self, name: AgentName) -> None:
        """Set user.max_user_namespaces = 0 inside the container's user namespace, and read it back."""
        ...

    async def logs(self, name: AgentName, lines: int) -> Sequence[str]:
        """Last lines of the console, oldest first, each cut at 2000 characters."""
        ...

    async def changes(self) -> AsyncIterator[AgentName]:
        """Names whose container may have changed (hints only: may repeat, may miss)."""
        ...
        yield AgentName("")


# ------------------------------------------------------------------------------------------------ nix
@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcome of evaluating `agent.nix`: raw JSON of `hyperhive.*`, validated against `Spec`."""

    spec: Spec
    spec_json: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: derivations built, of so many that are known to be needed (grows while Nix finds
    out), and the names of some that are being built."""

    built: int = 0
    expected: int = 0
    running: tuple[str, ...] = ()


ProgressSink = Callable[[BuildProgress], None]


class Nix(Protocol):
    """Evaluation in a sandbox and builds as an unprivileged user through a daemon."""

    async def evaluate(self, tree: Path) -> Evaluation:
        """Evaluate `tree/agent.nix` with the hive's own modules. No network, no host files, bounded in time,
        memory, output.

        Raises `InvalidError` with Nix's own error (bounded to 8 KiB) or one refusal per wrong option.
        """
        ...

    async def build(
        self,
        name: AgentName,
        tree: Path,
        spec_json: Mapping[str, Any],
        log: LogSink,
        progress: ProgressSink | None = None,
    ) -> str:
        """Build the toplevel; a store path that is realised and held by a GC root of this build until
        `set_generation` or `release`.

        Raises `CommandError`. Each line of the build goes to `log`, how far it is to `progress`. Cancelled,
        it ends the client, and the daemon the builders.
        """
        ...

    async def release(self, name: AgentName, keep: str | None) -> None:
        """Let go of a finished build of the agent that was never pinned, unless it is `keep`."""
        ...

    async def sweep(self) -> None:
        """Remove what the clients of a killed hived left on the disk. Only while no build runs."""
        ...

    async def set_generation(self, name: AgentName, number: int, store_path: str) -> None:
        """Pin generation `number` of the agent in its Nix profile as a GC root, in place of what is there.

        `CommandError` if the path is not in the store.
        """
        ...

    async def generations(self, name: AgentName) -> dict[int, str]:
        """Pinned generations, number → store path: only those that a collection of garbage would keep. A
        link that is damaged, dangles, or is no root any more is not among them."""
        ...

    async def select(self, name: AgentName, number: int) -> None:
        """Let the agent's profile point to generation `number`; atomic, nothing to do if it does.

        `PermanentError` if that generation is not pinned.
        """
        ...

    async def selected(self, name: AgentName) -> int | None:
        """The generation that the agent's profile points to; None if it points to none that is pinned."""
        ...

    async def runs(self, name: AgentName, number: int, store_path: str) -> bool:
        """Whether the profile points to generation `number` and that is pinned as `store_path`; cheap."""
        ...

    async def drop_generations(self, name: AgentName) -> None:
        """Unpin all (purge)."""
        ...

    async def exists(self, store_path: str) -> bool:
        """Whether the store holds that path (a restored hive's may not)."""
        ...


# ------------------------------------------------------------------------------------------------ git
@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file of a commit: POSIX path, git mode, blob id, size in bytes."""

    path: str
    mode: str
    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class RawFileDiff:
    """One file's change between two commits, as text lines; `binary` or `too_large` leave `patch` empty."""

    path: str
    old_path: str | None
    status: Literal["added", "modified", "deleted", "renamed"]
    patch: str
    binary: bool
    too_large: bool


class Git(Protocol):
    """The hive's own bare repositories `repos/<name>.git`; agents' bytes enter as bundles only."""

    async def create(self, name: AgentName, files: Mapping[str, str], *, author: str, message: str) -> Commit:
        """Make the bare repository with a first commit of `files` on `main`, unless it exists: then the
        commit of `main`."""
        ...

    async def commit(
        self, name: AgentName, files: Mapping[str, str], *, parent: Commit | None, author: str, message: str
    ) -> Commit:
        """Write a commit of exactly `files` on `parent`, on no branch: hived's own commits (templates, the
        deploy log)."""
        ...

    async def import_bundle(self, name: AgentName, bundle: Path, commit: Commit) -> None:
        """Import exactly `commit` from a hostile bundle: checked as the unprivileged user in a throw-away
        repository, then fetched.

        Raises `InvalidError` naming what is wrong (header, refs, size, objects, fsck, tree rules of design
        section 5).
        """
        ...

    async def check_tree(self, name: AgentName, commit: Commit) -> list[TreeEntry]:
        """All files of the commit; raises `InvalidError` if it breaks the tree rules (for pushed commits,
        too)."""
        ...

    async def exists(self, name: AgentName, commit: Commit) -> bool:
        """Whether the repository holds that commit."""
        ...

    async def pin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        """Tag `refs/tags/<tag>`: annotated if `message`; the same tag on the same commit is nothing to do,
        on another an error."""
        ...

    async def repin(self, name: AgentName, tag: str, commit: Commit, message: str | None = None) -> None:
        """Put a tag back that somebody removed, moved or broke, as `pin` made it; nothing to do if it is
        right."""
        ...

    async def tags(self, name: AgentName) -> dict[str, Commit]:
        """All tags (peeled), but those that are broken or whose commit is gone. Cheap while nothing
        changes."""
        ...

    async def main(self, name: AgentName) -> Commit | None:
        """The commit of `main`; None without repository or branch."""
        ...

    async def set_main(self, name: AgentName, commit: Commit, *, expected: Commit | None) -> None:
        """Move `main` by compare-and-swap; `TemporaryError` if it moved meanwhile."""
        ...

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        """Write the commit's files (no .git, no links out) below `into`, readable by the build user."""
        ...

    async def read(self, name: AgentName, commit: Commit, path: str, limit: int) -> str | None:
        """A text file of the commit (UTF-8, errors replaced), cut at `limit` bytes; None if absent."""
        ...

    async def diff(self, name: AgentName, base: Commit | None, commit: Commit) -> list[RawFileDiff]:
        """Changes from `base` (None: the empty tree), bounded: files over 256 KiB are too_large, 2 MiB in
        total."""
        ...

    async def bundle(self, name: AgentName) -> bytes:
        """A bundle of `main` for the agent's own clone."""
        ...

    async def remove(self, name: AgentName) -> None:
        """Remove the repository for good (purge); nothing to do without one."""
        ...

    async def is_ancestor(self, name: AgentName, older: Commit, newer: Commit) -> bool:
        """Whether `newer` contains `older`."""
        ...


# ------------------------------------------------------------------------------------------------ host files
class HostFiles(Protocol):
    """Directories of agents with their owners, and the unpacking of staged state."""

    async def ensure_agent(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        """Make `agents/<name>/{state,home,config[,agents]}` owned by BASE+1000 and the run directory owned
        by BASE; True if changed. `PermanentError` code `uid-range` if they were made for another base."""
        ...

    async def agent_is_ready(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        """Whether `ensure_agent` would change nothing; reads only."""
        ...

    async def freeze_state(self, tar: Path) -> tuple[str, list[str]]:
        """Check a staged state tar (regular files and directories, sizes, names); its sha256 digest and its
        file names."""
        ...

    async def unpack_state(self, name: AgentName, uid_base: int, tar: Path, digest: str) -> None:
        """Unpack the frozen tar into `agents/<name>/state` as BASE+1000; nothing if that digest was unpacked
        before."""
        ...

    async def remove_agent(self, name: AgentName) -> None:
        """Remove the agent's directories for good (purge)."""
        ...


class Measures(Protocol):
    """What a container uses, measured from outside."""

    async def notes_bytes(self, name: AgentName) -> int | None:
        """Size of `state/notes.md`, which is never opened nor followed; None if it is no regular file."""
        ...

    async def memory_bytes(self, leaders: Mapping[AgentName, int]) -> Mapping[AgentName, int]:
        """Memory of the containers with these first processes (pids); those that are gone are left out."""
        ...


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> float:
        """Epoch seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


__all__ = [
    "BuildProgress",
    "Clock",
    "ContainerSpec",
    "ContainerStatus",
    "Containers",
    "Evaluation",
    "Git",
    "HostFiles",
    "LogSink",
    "Measures",
    "Nix",
    "ProgressSink",
    "RawFileDiff",
    "TreeEntry",
]
