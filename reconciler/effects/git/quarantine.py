"""Take a hostile bundle apart as the unprivileged user, in a throw-away repository inside the sandbox.

What comes out is a repository that holds exactly one commit's history within all limits, and a command that
serves it, still as that user and in the sandbox. Nothing of it is trusted for that: the caller fetches with
`transfer.fsckObjects` and asks the tree rules again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.effects.git import packscan, trees
from reconciler.effects.git.bundles import OBJECTS_MAX, PEEK_BYTES, parse_header
from reconciler.effects.git.command import ENVIRONMENT, MIB
from reconciler.effects.git.tags import ZERO
from reconciler.effects.process import Completed, Rlimits, identity, run
from reconciler.effects.protocols import TreeEntry
from reconciler.effects.sandbox import Sandbox, command, system_of
from reconciler.errors import CommandError, InvalidError, Refusal, TemporaryError
from reconciler.model.names import Commit
from reconciler.model.text import visible

BUNDLE_MAX_BYTES = 32 * MIB
OBJECT_MAX_BYTES = trees.FILE_MAX_BYTES
UNPACKED_MAX_BYTES = 256 * MIB
STEP_S = 30.0
CHECK_S = 60.0
QUEUE_S = 150.0
# What git itself makes has chains of 50, with --aggressive 250 in its time.
CHAIN_MAX = 256
PARALLEL = 2
LIMITS = Rlimits(cpu_s=20, address_space=512 * MIB, file_size=2 * BUNDLE_MAX_BYTES, nofile=256)

_SCAN = "/hive/packscan.py"
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_LISTED = re.compile(rb"([0-7]{6}) ([a-z]+) ([0-9a-f]{40}) +(-|[0-9]+)\t(.+)", re.DOTALL)


@contextlib.asynccontextmanager
async def in_turn(place: asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for a place and hold it; `TemporaryError` after `QUEUE_S`."""
    try:
        async with asyncio.timeout(QUEUE_S):
            await place.acquire()
    except TimeoutError as error:
        raise TemporaryError("other bundles are looked at just now: propose it again", after_s=30) from error
    try:
        yield
    finally:
        place.release()


@dataclass(frozen=True, slots=True)
class Admitted:
    """A checked throw-away repository: its place, and the shell command that runs upload-pack on it."""

    repository: Path
    upload_pack: str


class Quarantine:
    """Checks bundles below `directory`, which the unprivileged user must be able to pass through. Making one
    clears the directory.

    `user`: a name, or uid and gid.
    """

    def __init__(self, directory: Path, user: str | tuple[int, int]) -> None:
        self._directory = directory
        self._user = user
        self._slots = asyncio.Semaphore(PARALLEL)
        self._sweep()

    @contextlib.asynccontextmanager
    async def admit(self, bundle: Path, commit: Commit) -> AsyncIterator[Admitted]:
        """The bundle's repository, while the context lasts. `InvalidError` names what is wrong with it;
        `TemporaryError` if others are looked at for too long."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        async with in_turn(self._slots):
            place = Path(tempfile.mkdtemp(prefix="import-", dir=self._directory))
            try:
                yield await self._check(place, bundle, commit)
            finally:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed hived left behind."""
        for left in self._directory.glob("import-*"):
            shutil.rmtree(left, ignore_errors=True)

    async def _check(self, place: Path, bundle: Path, commit: Commit) -> Admitted:
        place.chmod(0o711)
        work = place / "work"
        work.mkdir(mode=0o700)
        os.chown(work, *identity(self._user))
        pack = place / "pack"
        await asyncio.to_thread(_split, bundle, pack, commit)
        case = _Case(self._user, work, commit)
        try:
            async with asyncio.timeout(CHECK_S):
                await case.scan(pack)
                await case.unpack(pack)
                await case.check_objects()
                await case.check_tree()
                await case.fsck()
        except TimeoutError as error:
            raise _refused(f"looking at it took longer than {CHECK_S:.0f} s") from error
        return case.admitted()


def _split(bundle: Path, pack: Path, commit: Commit) -> None:
    """Read the header, and write what follows it, the pack, to a file of its own."""
    with os.fdopen(os.open(bundle, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source:
        size = os.fstat(source.fileno()).st_size
        if size > BUNDLE_MAX_BYTES:
            raise _refused(f"it has {size} bytes, {BUNDLE_MAX_BYTES} are allowed")
        header = parse_header(source.read(PEEK_BYTES), commit)
        source.seek(header.pack_offset)
        with pack.open("xb") as sink:
            shutil.copyfileobj(source, sink, MIB)


class _Case:
    """One bundle in its sandbox."""

    def __init__(self, user: str | tuple[int, int], work: Path, commit: Commit) -> None:
        self._user = user
        self._work = work
        self._commit = commit
        self._repository = work / "import.git"

    async def scan(self, pack: Path) -> None:
        """No object unfolds too far, nor do all together, before git believes what their headers say."""
        script, python = Path(packscan.__file__), _python()
        system, links = system_of(python)
        box = Sandbox(read_only={_SCAN: script}, system=system, links=links, environment={})
        words = [str(python), "-I", "-S", _SCAN, str(OBJECT_MAX_BYTES), str(UNPACKED_MAX_BYTES)]
        try:
            done = await run(
                command(box, words), timeout_s=STEP_S, stdin=pack, user=self._user, rlimits=LIMITS,
                max_stdout=64 * 1024, max_stderr=64 * 1024, room_in=(),
            )  # fmt: skip
        except CommandError as error:
            raise _refused(f"its pack could not be read: {_reason(error)}") from error
        verdict, _, why = done.text.strip().partition(" ")
        if verdict != "ok":
            raise _refused(visible(why)[:1000] or "its pack could not be read")

    async def unpack(self, pack: Path) -> None:
        """Unpack all objects. They are not judged yet: the tree rules name the file, fsck only the object."""
        await self._git(
            "init", "--quiet", "--bare", "--template=", str(self._repository), what="prepare a repository"
        )
        await self._git(
            "index-pack", "--stdin", f"--max-input-size={BUNDLE_MAX_BYTES}", "--threads=1",
            stdin=pack, what="unpack it",
        )  # fmt: skip

    async def check_objects(self) -> None:
        """Sizes and number once more, as git found them; no object is the end of a long chain of deltas; the
        commit is among them.

        Reading the last of a chain means building each before it, and whoever lists all objects of a chain
        of thousands does so millions of times.
        """
        done = await self._git(
            "cat-file", "--batch-all-objects", "--unordered",
            "--batch-check=%(objectname) %(objectsize) %(deltabase)",
            what="count its objects", max_stdout=OBJECTS_MAX * 100,
        )  # fmt: skip
        bases: dict[str, str] = {}
        total = 0
        for line in done.text.splitlines():
            name, size, bases[name] = line.split()
            total += int(size)
            if int(size) > OBJECT_MAX_BYTES:
                raise _refused(f"the object {name} has {size} bytes, {OBJECT_MAX_BYTES} are allowed")
        if len(bases) > OBJECTS_MAX or total > UNPACKED_MAX_BYTES:
            raise _refused(f"it unpacks to {len(bases)} objects with {total} bytes, which is too much")
        if (depth := _longest(bases)) > CHAIN_MAX:
            raise _refused(
                f"an object of it is a delta on a delta, {depth} deep, and {CHAIN_MAX} are allowed: "
                "`git repack -a -d -f` mends that"
            )
        kind = await self._git(
            "cat-file", "--batch-check=%(objecttype)", stdin=f"{self._commit}\n".encode(), what="look for it"
        )
        if kind.text.strip() != "commit":
            raise _refused(f"{self._commit} is no commit in it")
        await self._git("update-ref", "refs/heads/import", self._commit, what="name its commit")

    async def check_tree(self) -> None:
        """The tree rules, before anything enters a repository that stays."""
        try:
            done = await self._git(
                "ls-tree", "-r", "-t", "-z", "-l", "--full-tree", "--end-of-options", self._commit,
                what="list its files", max_stdout=8 * MIB,
            )  # fmt: skip
        except CommandError as error:
            if error.code == "output-too-large":
                raise trees.too_many(self._commit) from error
            raise
        entries, names = [], 0
        for line in done.stdout.split(b"\0")[:-1]:
            names += 1
            match = _LISTED.fullmatch(line)
            if match is None:
                raise _refused("git lists a file in a way that is not understood")
            if match[2] != b"tree":
                size = 0 if match[4] == b"-" else int(match[4])
                path = match[5].decode(errors="surrogateescape")
                entries.append(TreeEntry(path, match[1].decode(), match[3].decode(), size))
        if names > trees.ENTRIES_MAX:
            raise trees.too_many(self._commit)
        trees.check(self._commit, entries, await self._targets(entries))

    async def fsck(self) -> None:
        """All objects are well-formed, and none that they name is missing."""
        await self._git(
            "fsck",
            "--strict",
            "--full",
            "--no-reflogs",
            "--no-dangling",
            "--no-progress",
            what="verify its objects",
        )

    async def _targets(self, entries: Sequence[TreeEntry]) -> dict[str, bytes]:
        links = {
            entry.blob: entry.size
            for entry in entries
            if entry.mode == trees.LINK and entry.size <= trees.TARGET_MAX_BYTES
        }
        if not links:
            return {}
        asked = "".join(f"{blob}\n" for blob in links).encode()
        done = await self._git("cat-file", "--batch=", stdin=asked, what="read its links", max_stdout=8 * MIB)
        found, at = {}, 0
        for blob, size in links.items():
            at += 1  # the empty header's end of line
            found[blob] = done.stdout[at : at + size]
            at += size + 1
        return found

    def admitted(self) -> Admitted:
        """How to fetch from it: git appends the place to the command and gives it to a shell."""
        uid, gid = identity(self._user)
        drop = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={gid}",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
        ]
        serve = [*drop, "--", *self._confined(["git", "upload-pack", "--strict"])]
        return Admitted(self._repository, shlex.join(serve))

    def _confined(self, argv: Sequence[str]) -> list[str]:
        system, links = system_of(Path("/usr/bin/git"))
        box = Sandbox(
            read_only={}, system=system, links=links, environment=ENVIRONMENT, writable=(self._work,)
        )
        return command(box, argv)

    async def _git(
        self, *arguments: str, what: str, stdin: bytes | Path | None = None, max_stdout: int = MIB
    ) -> Completed:
        argv = (
            ["git", *arguments]
            if arguments[0] == "init"
            else ["git", f"--git-dir={self._repository}", *arguments]
        )
        try:
            return await run(
                self._confined(argv),
                timeout_s=STEP_S,
                env=ENVIRONMENT,
                stdin=stdin,
                user=self._user,
                rlimits=LIMITS,
                max_stdout=max_stdout,
                max_stderr=MIB,
                umask=0o077,
                room_in=(self._work,),
            )
        except CommandError as error:
            if error.code == "output-too-large" and arguments[0] == "ls-tree":
                raise
            raise _refused(f"git could not {what}: {_reason(error)}") from error


def _longest(bases: dict[str, str]) -> int:
    """Length of the longest chain of deltas; `bases`: object → what it is a delta on (zeros: nothing)."""
    depths: dict[str, int] = {ZERO: -1}
    for name in bases:
        chain: list[str] = []
        at = name
        while at not in depths and len(chain) <= len(bases):
            chain.append(at)
            at = bases.get(at, ZERO)
        depth = depths.get(at, 0)
        for link in reversed(chain):
            depths[link] = depth = depth + 1
    return max(depths.values())


def _python() -> Path:
    """An interpreter that the sandbox can show: the one of hived, if it is of the system."""
    own = Path(sys.executable).resolve()
    return own if own.is_relative_to("/usr") or own.is_relative_to("/nix/store") else _SYSTEM_PYTHON


def _reason(error: CommandError) -> str:
    if error.record.timed_out:
        return f"it took longer than {STEP_S:.0f} s"
    output = f"{error.record.stderr_tail}\n{error.record.stdout_tail}"
    lines = [line for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error", "fatal", "missing", "broken"))] or lines[-1:]
    return visible("; ".join(told[:3]))[:1000] or f"it ended with {error.record.exit_code}"


def _refused(why: str) -> InvalidError:
    return InvalidError(f"the bundle is refused: {why}", (Refusal("bundle", why),))
