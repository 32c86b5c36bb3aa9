"""Bundles at full size, with real git: two gigabytes of zeros, a million refs, a hundred thousand files,
trees ten thousand deep, deltas that explode, headers that lie. Each is refused, or taken where it is legal,
within bounds of time, memory and disk; what it took is printed.

`make test-full` (HYPOTHESIS_PROFILE=full) runs the largest, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.effects.git import GitRepositories, quarantine, trees
from reconciler.effects.git.quarantine import Quarantine
from reconciler.errors import InvalidError
from reconciler.model.names import AgentName, Commit
from tests.integration.hostile_packs import (
    BLOB,
    COMMIT,
    MIB,
    OFS_DELTA,
    TREE,
    Pack,
    bundle,
    commit,
    copy_op,
    entry_header,
    object_id,
    offset,
    tree,
    zeros,
    zeros_id,
)
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio,
    needs_root,
]

SMITH = AgentName("smith")
# Nobody else's: what is measured are the processes of this user.
USER = (500_000 + os.getpid() % 400_000, 65534)
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
# What any bundle may cost at most. Time: with room for a machine that does something else, too.
SECONDS_MAX = quarantine.CHECK_S + 10
MEMORY_MAX = 512 * MIB
DISK_MAX = 5 * quarantine.BUNDLE_MAX_BYTES
Made = tuple[Path, Commit]
FILE = b"100644"


# ------------------------------------------------------------------------------------------------ measuring
@dataclass(slots=True)
class Cost:
    """Peak of one process of the unprivileged user (bytes), and of the quarantine's directory."""

    seconds: float = 0.0
    memory: int = 0
    disk: int = 0


@contextlib.contextmanager
def measured(directory: Path) -> Iterator[Cost]:
    cost, over = Cost(), threading.Event()

    def watch() -> None:
        while not over.wait(0.03):
            cost.memory = max(cost.memory, _peak_memory())
            cost.disk = max(cost.disk, _size(directory))

    watcher = threading.Thread(target=watch)
    began = time.monotonic()
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - began
        over.set()
        watcher.join()


def _peak_memory() -> int:
    """The highest peak of all processes of the user that live now: the kernel keeps it for each."""
    peak = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                if process.stat().st_uid == USER[0]:
                    text = (process / "status").read_text()
                    peak = max(peak, int(text.split("VmHWM:")[1].split()[0]) * 1024)
    return peak


def _size(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # it is gone
                total += (Path(folder) / name).lstat().st_blocks * 512
    return total


# ------------------------------------------------------------------------------------------------ bundles
def blob_of_zeros(size: int) -> Callable[[Path], Made]:
    def make(place: Path) -> Made:
        pack = Pack()
        pack.blob_of_zeros(size)
        head = pack.change([(FILE, b"zeros", zeros_id(size) if size < 2**32 else "d" * 40)])
        return bundle(place / "b", head, pack.content()), head

    return make


def many_blobs(count: int, size: int) -> Callable[[Path], Made]:
    """Each within the limit, all together far beyond it."""

    def make(place: Path) -> Made:
        pack = Pack()
        entry = entry_header(BLOB, size) + zeros(size)
        for _ in range(count):
            pack.raw(entry)
        head = pack.change([(FILE, b"zeros", zeros_id(size))])
        return bundle(place / "b", head, pack.content()), head

    return make


def refs(count: int) -> Callable[[Path], Made]:
    def make(place: Path) -> Made:
        pack = Pack()
        head = pack.change([(FILE, b"agent.nix", pack.add(BLOB, b"{ }\n"))])
        names = (f"refs/heads/x{number}" for number in range(count))
        return bundle(place / "b", head, pack.content(), names), head

    return make


def files(directories: int, each: int) -> Callable[[Path], Made]:
    """Distinct names of one blob: few objects, many files."""

    def make(place: Path) -> Made:
        pack = Pack()
        blob = pack.add(BLOB, b"x")
        inner = pack.add(TREE, tree((FILE, b"f%06d" % number, blob) for number in range(each)))
        top = pack.add(TREE, tree((b"40000", b"d%06d" % number, inner) for number in range(directories)))
        head = Commit(pack.add(COMMIT, commit(top)))
        return bundle(place / "b", head, pack.content()), head

    return make


def distinct_files(count: int, announced: int | None = None) -> Callable[[Path], Made]:
    """Each file a blob of its own; `announced`: what the pack says about its objects."""

    def make(place: Path) -> Made:
        pack = Pack()
        items = [(FILE, b"f%06d" % number, pack.add(BLOB, b"%d" % number)) for number in range(count)]
        parts = [pack.add(TREE, tree(items[at : at + 1000])) for at in range(0, count, 1000)]
        top = pack.add(TREE, tree((b"40000", b"d%06d" % number, part) for number, part in enumerate(parts)))
        head = Commit(pack.add(COMMIT, commit(top)))
        return bundle(place / "b", head, pack.content(announced)), head

    return make


def deep(levels: int, name: bytes = b"d") -> Callable[[Path], Made]:
    def make(place: Path) -> Made:
        pack = Pack()
        inner = pack.add(TREE, tree([(FILE, b"f", pack.add(BLOB, b"x"))]))
        for _ in range(levels):
            inner = pack.add(TREE, tree([(b"40000", name, inner)]))
        head = Commit(pack.add(COMMIT, commit(inner)))
        return bundle(place / "b", head, pack.content()), head

    return make


def unfolding(width: int, levels: int) -> Callable[[Path], Made]:
    """A tree that names the same subtree again and again: width ** levels files of a few objects."""

    def make(place: Path) -> Made:
        pack = Pack()
        blob = pack.add(BLOB, b"x")
        inner = pack.add(TREE, tree((FILE, b"f%04d" % number, blob) for number in range(width)))
        for _ in range(levels - 1):
            inner = pack.add(TREE, tree((b"40000", b"d%04d" % number, inner) for number in range(width)))
        head = Commit(pack.add(COMMIT, commit(inner)))
        return bundle(place / "b", head, pack.content()), head

    return make


def history(count: int) -> Callable[[Path], Made]:
    """Many commits on the same tree."""

    def make(place: Path) -> Made:
        pack = Pack()
        top = pack.add(TREE, tree([(FILE, b"agent.nix", pack.add(BLOB, b"{ }\n"))]))
        head = pack.add(COMMIT, commit(top))
        for number in range(count - 1):
            head = pack.add(COMMIT, commit(top, [head], f"{number}"))
        return bundle(place / "b", head, pack.content()), Commit(head)

    return make


def parents(count: int) -> Callable[[Path], Made]:
    """One commit with so many parents."""

    def make(place: Path) -> Made:
        pack = Pack()
        top = pack.add(TREE, tree([(FILE, b"agent.nix", pack.add(BLOB, b"{ }\n"))]))
        older = [pack.add(COMMIT, commit(top, message=f"{number}")) for number in range(count)]
        head = Commit(pack.add(COMMIT, commit(top, older)))
        return bundle(place / "b", head, pack.content()), head

    return make


def chain(depth: int, size: int = 200, *, by_name: bool = False) -> Callable[[Path], Made]:
    """Each file is a delta on the one before, named by its place or by its id; all are in the tree as far as
    that is legal."""

    def make(place: Path) -> Made:
        pack, filler = Pack(), bytes(range(256)) * (size // 256 + 1)
        data = b"%08d" % 0 + filler[: size - 8]
        blobs = [object_id(BLOB, data)]
        last = pack.raw(entry_header(BLOB, size) + zlib.compress(data, 1))
        for number in range(1, depth + 1):
            mark = b"%08d" % number
            ops = bytes([8]) + mark + copy_op(8, size - 8)
            if by_name:
                pack.ref_delta(blobs[-1], size, size, ops)
            else:
                last = pack.delta(last, size, size, ops)
            blobs.append(object_id(BLOB, mark + filler[: size - 8]))
        items = [(FILE, b"f%06d" % number, blob) for number, blob in enumerate(blobs)]
        if depth >= trees.FILES_MAX:
            items = items[-1:]
        head = pack.change(items)
        return bundle(place / "b", head, pack.content()), head

    return make


def explosion(levels: int) -> Callable[[Path], Made]:
    """Deltas of some hundred bytes: 64 KiB become 16 MiB, then 1 GiB, then more."""

    def make(place: Path) -> Made:
        pack, size = Pack(), 64 * 1024
        last = pack.raw(entry_header(BLOB, size) + zeros(size))
        for _ in range(levels):
            times = 256 if size < 16 * MIB else 64
            part = min(size, 0xFFFFFF)
            last = pack.delta(last, size, part * times, copy_op(0, part) * times)
            size = part * times
        head = pack.change([(FILE, b"x", "d" * 40)])
        return bundle(place / "b", head, pack.content()), head

    return make


def lie(change: Callable[[Pack], object], count: int | None = None) -> Callable[[Path], Made]:
    """An honest commit, and an object that is none."""

    def make(place: Path) -> Made:
        pack = Pack()
        head = pack.change([(FILE, b"agent.nix", pack.add(BLOB, b"{ }\n"))])
        change(pack)
        return bundle(place / "b", head, pack.content(count)), head

    return make


def legal_at_the_limit(place: Path) -> Made:
    """As many files and bytes as a tree may have, nothing of it packs: the dearest bundle that is taken."""
    pack, noise = Pack(), random.Random(7)
    items = [
        (FILE, b"f%06d" % number, pack.add(BLOB, noise.randbytes(5000))) for number in range(trees.FILES_MAX)
    ]
    parts = [pack.add(TREE, tree(items[at : at + 500])) for at in range(0, len(items), 500)]
    top = pack.add(TREE, tree((b"40000", b"d%06d" % number, part) for number, part in enumerate(parts)))
    head = Commit(pack.add(COMMIT, commit(top)))
    return bundle(place / "b", head, pack.content()), head


def unpacked_at_the_limit(place: Path) -> Made:
    """Small when packed, all that may come of it, most of it not in the commit's tree."""
    pack, total = Pack(), 0
    blobs = []
    while total + MIB < quarantine.UNPACKED_MAX_BYTES:
        data = b"%016d" % total + bytes(MIB - 16)
        blobs.append(pack.add(BLOB, data))
        total += MIB
    head = pack.change([(FILE, b"f%03d" % number, blob) for number, blob in enumerate(blobs[:60])])
    return bundle(place / "b", head, pack.content()), head


@dataclass(frozen=True, slots=True)
class Case:
    """`why`: what its refusal says; None: it is legal. `seconds`: what it may take at most, where that is
    much less than what any may."""

    make: Callable[[Path], Made]
    why: str | None
    seconds: float = 15.0
    full: bool = False


CASES = {
    "2 GB of zeros": Case(blob_of_zeros(2_000_000_000), "has 2000000000 bytes, 1048576 are allowed"),
    "32 GB of zeros": Case(blob_of_zeros(32_000_000_000), "has 32000000000 bytes", full=True),
    "20 GB in 20,000 blobs": Case(many_blobs(19_990, MIB), "objects unpack to"),
    "1,000,000 refs": Case(refs(1_000_000), "bytes, 33554432 are allowed", seconds=5),
    "100,000 refs": Case(refs(100_000), "longer than 4096 bytes", seconds=5),
    "100,000 files of one blob": Case(files(100, 1000), "more than 5000 files"),
    "10,000,000 files of one blob": Case(files(1000, 10_000), "more than 5000 files", full=True),
    "100,000 files in one directory": Case(files(1, 100_000), "are allowed"),
    "100,000 blobs": Case(distinct_files(100_000), "objects, 1 to 20000 are allowed", seconds=5),
    "100,000 blobs announced as 20,000": Case(distinct_files(100_000, 20_000), "something follows"),
    "19,000 blobs": Case(distinct_files(19_000), "more than 5000 files"),
    "a tree 10,000 deep": Case(deep(10_000), "more than 5000 files or 15000 names, or paths without end"),
    "a tree 19,000 deep": Case(deep(19_000, b"d" * 200), "paths without end", full=True),
    "a tree 40 deep": Case(deep(40), "deeper than 32 directories"),
    "1000 ** 6 files": Case(unfolding(1000, 6), "more than 5000 files"),
    "19,000 commits": Case(history(19_000), None, seconds=40),
    "15,000 parents": Case(parents(15_000), None, seconds=40, full=True),
    "a chain of 200 deltas": Case(chain(200), None),
    "a chain of 300 deltas": Case(chain(300), "300 deep, and 256 are allowed"),
    "a chain of 19,000 deltas": Case(chain(19_000), "19000 deep, and 256 are allowed", seconds=30),
    "a chain of 19,000 deltas by name": Case(
        chain(19_000, by_name=True), "19000 deep, and 256 are allowed", seconds=30
    ),
    "a chain of 240 deltas of 1 MiB": Case(chain(240, MIB), "in all, 67108864 are allowed", seconds=40),
    "deltas of 1 GiB": Case(explosion(2), "bytes, 1048576 are allowed"),
    "deltas of 64 GiB": Case(explosion(8), "bytes, 1048576 are allowed"),
    "the most that is legal": Case(legal_at_the_limit, None, seconds=40),
    "a chain of 60 deltas of 1 MiB": Case(chain(60, MIB), None, seconds=40),
    "256 MiB from a small pack": Case(unpacked_at_the_limit, None, seconds=40),
}
LIES = {
    "more objects than announced": Case(lie(lambda pack: None, 2), "something follows the 2 objects"),
    "fewer objects than announced": Case(lie(lambda pack: None, 4), "the bundle is refused"),
    "four billion objects": Case(lie(lambda pack: None, 2**32 - 1), "objects, 1 to 20000 are allowed"),
    "longer than announced": Case(
        lie(lambda pack: pack.raw(entry_header(BLOB, 10) + zeros(500_000_000))),
        "longer than the 10 bytes that are announced",
    ),
    "shorter than announced": Case(
        lie(lambda pack: pack.raw(entry_header(BLOB, MIB) + zeros(10))), "has 10 bytes, 1048576 are announced"
    ),
    "a size of 2 ** 63": Case(lie(lambda pack: pack.raw(entry_header(BLOB, 2**63))), "are allowed"),
    "a size without end": Case(lie(lambda pack: pack.raw(b"\xff" * 50)), "no object can have"),
    "kind 5": Case(lie(lambda pack: pack.raw(entry_header(5, 1) + zeros(1))), "of no known kind"),
    "a delta on what comes later": Case(
        lie(lambda pack: pack.raw(entry_header(OFS_DELTA, 4) + offset(2**40) + zeros(4))),
        "something outside of the pack",
    ),
    "a delta on itself": Case(
        lie(lambda pack: pack.raw(entry_header(OFS_DELTA, 4) + offset(0) + zeros(4))),
        "something outside of the pack",
    ),
    "a delta into the middle of an object": Case(
        lie(lambda pack: pack.delta(pack.at - 3, 4, 4, copy_op(0, 4))), "could not unpack it"
    ),
    "a delta on an object of elsewhere": Case(
        lie(lambda pack: pack.ref_delta("d" * 40, 4, 4, copy_op(0, 4))), "could not unpack it"
    ),
    "a delta that lies about its result": Case(
        lie(lambda pack: pack.delta(12, 4, 4, copy_op(0, 4) * 1000)), "could not unpack it"
    ),
    "a delta that lies about its base": Case(
        lie(lambda pack: pack.delta(12, 400, 4, copy_op(300, 4))), "could not unpack it"
    ),
    "a delta without sizes": Case(
        lie(lambda pack: pack.raw(entry_header(OFS_DELTA, 0) + offset(pack.at - 12) + zeros(0))), "no sizes"
    ),
    "a delta whose result is 2 ** 62": Case(
        lie(lambda pack: pack.delta(12, 4, 2**62, copy_op(0, 4))), "bytes, 1048576 are allowed"
    ),
    "no zlib at all": Case(
        lie(lambda pack: pack.raw(entry_header(BLOB, 10) + b"\xde\xad\xbe\xef" * 8)), "cannot be unpacked"
    ),
}

ALL = {name: case for name, case in {**CASES, **LIES}.items() if FULL or not case.full}


# ------------------------------------------------------------------------------------------------ tests
@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that the unprivileged user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="hive-git-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("name", ALL)
async def test_no_bundle_costs_more_than_its_bounds(
    place: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    case = ALL[name]
    made, head = case.make(place)
    repositories = GitRepositories(place, Quarantine(place / "trees", USER))
    await repositories.create(SMITH, {"agent.nix": "{ }\n"}, author="test", message="first")
    try:
        with measured(place / "trees") as cost:
            refused = None
            try:
                async with asyncio.timeout(SECONDS_MAX):
                    await repositories.import_bundle(SMITH, made, head)
            except InvalidError as error:
                refused = "\n".join([error.message, *(f"{r.where}: {r.why}" for r in error.refusals)])
        if name in CASES:
            record_property(
                "figure",
                f"{name}: {made.stat().st_size / MIB:.1f} MiB, {cost.seconds:.2f} s, "
                f"{cost.memory / MIB:.0f} MiB of memory, {cost.disk / MIB:.0f} MiB on disk, "
                f"{'refused' if refused else 'taken'}",
            )
        if case.why is None:
            assert refused is None
            assert await repositories.exists(SMITH, head)
        else:
            assert refused is not None
            assert case.why in refused
            assert not await repositories.exists(SMITH, head)
        assert cost.seconds < case.seconds
        assert cost.memory < MEMORY_MAX
        assert cost.disk < DISK_MAX
        assert list((place / "trees").glob("*")) == []
    finally:
        repositories.close()
        made.unlink()
        shutil.rmtree(place / "repos")
