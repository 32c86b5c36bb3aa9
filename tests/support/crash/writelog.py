"""What a program wrote and synced, from strace, and what a disk may hold after a power cut at any time.

The model of the disk: what was synced is there. What was written to a file after its last sync may be there,
each write for itself and in pieces of a sector, or not; a removed name may be there again until its folder is
synced. A new file is there with its first sync.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
TRACED = "trace=pwrite64,write,ftruncate,fdatasync,fsync,unlink,rename"
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"(\d+)<([^>]*)>")
_TEXT = re.compile(r'"([^"]*)"')

Disk = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Op:
    """`write` (bytes at an offset), `truncate` (to `offset`), `unlink`, `sync`; or `told`: a line of output.
    `path` is what it is done to."""

    kind: str
    path: str
    offset: int = 0
    data: bytes = b""


def parse(log: Path, below: Path) -> list[Op]:
    """The operations on files below a directory, and what was printed, in order."""
    found = []
    for line in _whole_lines(log):
        op = _operation(line)
        if op is not None and (op.kind == "told" or op.path.startswith(str(below))):
            found.append(op)
    return found


def _whole_lines(log: Path) -> Iterator[str]:
    """Calls that another thread's output cut in two are put together, where they ended."""
    begun: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
        elif rest.startswith("<... "):
            yield begun.pop(pid) + rest.partition("resumed>")[2]
        else:
            yield rest


def _operation(line: str) -> Op | None:
    call = _CALL.match(line)
    if call is None or int(call[3]) < 0:
        return None
    name, arguments = call[1], call[2]
    descriptor, texts = _FD.match(arguments), [_bytes(text) for text in _TEXT.findall(arguments)]
    match name:
        case "unlink":
            return Op("unlink", texts[0].decode())
        case "rename":
            raise AssertionError("databases rename nothing")
    assert descriptor is not None, line
    path = _bytes(descriptor[2]).decode()
    match name:
        case "write" if descriptor[1] == "1":
            return Op("told", "", data=texts[0])
        case "pwrite64":
            return Op("write", path, int(arguments.rpartition(", ")[2]), texts[0][: int(call[3])])
        case "ftruncate":
            return Op("truncate", path, int(arguments.rpartition(", ")[2]))
        case "fdatasync" | "fsync":
            return Op("sync", path)
    return None


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class Cuts:
    """All that a disk may hold while the operations are done. `told`: lines that had been printed."""

    operations: list[Op]
    seed: int = 0
    told: list[bytes] = field(default_factory=list)
    _durable: Disk = field(default_factory=dict)
    _pending: list[Op] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Disk, int]]:
        """Disks with the number of lines printed before; each different disk once."""
        seen = set()
        chance = random.Random(self.seed)
        for op in self.operations:
            if op.kind == "told":
                self.told.append(op.data)
            elif op.kind == "sync":
                self._sync(op.path)
            else:
                self._pending.append(op)
            for disk in (self._with(self._pending), self._durable, self._with(self._some(chance))):
                key = (hash(tuple(sorted(disk.items()))), len(self.told))
                if key not in seen:
                    seen.add(key)
                    yield dict(disk), len(self.told)

    def _sync(self, path: str) -> None:
        """A file's writes, or the removals in a directory, are there from now on."""

        def is_done(op: Op) -> bool:
            return op.path == path or (op.kind == "unlink" and str(Path(op.path).parent) == path)

        self._durable = self._with([op for op in self._pending if is_done(op)])
        self._pending = [op for op in self._pending if not is_done(op)]
        if "." in Path(path).name:
            self._durable.setdefault(path, b"")

    def _some(self, chance: random.Random) -> list[Op]:
        """What may have reached the disk of what was not synced."""
        found = []
        for op in self._pending:
            if op.kind != "write":
                found += [op] if chance.random() < 0.5 else []
                continue
            for start in range(0, len(op.data), SECTOR):
                if chance.random() < 0.7:
                    found.append(Op("write", op.path, op.offset + start, op.data[start : start + SECTOR]))
        return found

    def _with(self, operations: list[Op]) -> Disk:
        disk = dict(self._durable)
        for op in operations:
            content = disk.get(op.path, b"")
            match op.kind:
                case "write":
                    content = content.ljust(op.offset, b"\0")
                    disk[op.path] = content[: op.offset] + op.data + content[op.offset + len(op.data) :]
                case "truncate":
                    disk[op.path] = content[: op.offset].ljust(op.offset, b"\0")
                case "unlink":
                    disk.pop(op.path, None)
        return disk
