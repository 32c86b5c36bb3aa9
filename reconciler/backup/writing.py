"""The writing end: entries become the bytes of the archive, chunk by chunk, without a temporary copy.

Everything here blocks on disks, so the caller runs it in a thread of its own. What a member's header says is
what is written, whatever the file does meanwhile: a file that shrinks is filled up with zeros, what grows is
cut.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from reconciler.backup import format as form
from reconciler.backup.walk import Entry, walk
from reconciler.errors import HiveError, PermanentError

CHUNK = 256 * 1024
LEFT_OUT_MAX = 1000
_HOST_UID_MAX = 65536


class Archive:
    """Makes members and remembers their lines. Members of one archive must be drawn one after the other, each
    to its end."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._left_out: list[bytes] = []
        self._left_out_count = 0
        self.members = 0

    # ------------------------------------------------------------------------------------------- members
    def text(self, name: str, content: bytes) -> Iterator[bytes]:
        """A member that is in memory."""
        info = _info(name, mode=0o600, size=len(content))
        yield from self._member(info, iter((content,)))

    def file(self, name: str, source: Path) -> Iterator[bytes]:
        """One of the hive's own files, belonging to root."""
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as opened:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise PermanentError(f"{source} is no regular file", hint="run `hive doctor`")
            info = _info(name, mode=stat.S_IMODE(status.st_mode), size=status.st_size, mtime=status.st_mtime)
            yield from self._member(info, _exactly(opened.fileno(), ((0, status.st_size),)))

    def repository(self, name: str, source: Path, refs: bytes) -> Iterator[bytes]:
        """A bare repository: its refs as they were read before, then all else. Objects are only ever added,
        so that whatever a ref names is there."""
        yield from self._directory(name)
        yield from self.text(f"{name}/packed-refs", refs)
        for kept in ("refs", "refs/heads", "refs/tags"):
            yield from self._directory(f"{name}/{kept}")
        for path, folders, files in os.walk(source, onerror=_raise):
            here = os.path.relpath(path, source)
            prefix = name if here == "." else f"{name}/{here}"
            if here == ".":
                folders[:] = [f for f in folders if f != "refs"]
                files = [f for f in files if f != "packed-refs"]  # noqa: PLW2901 - what is left of it
            folders[:] = sorted(f for f in folders if not f.startswith(("tmp_", "incoming-")))
            if here != ".":
                yield from self._directory(prefix)
            for file in sorted(files):
                if not (file.startswith("tmp_") or file.endswith(".lock")):
                    yield from self.file(f"{prefix}/{file}", Path(path, file))

    def tree(self, name: str, top: Path, base: int | None) -> Iterator[bytes]:
        """A tree of an agent whose first uid is `base` (None: no row tells, ids are kept as they are)."""

        def skip(path: str, why: str) -> None:
            self.leave_out(f"{name}/{path}".rstrip("/"), why)

        for entry in walk(top, skip):
            path = f"{name}/{entry.path}".rstrip("/")
            info = _of_entry(path, name, entry, base)
            if info is None:
                skip(entry.path, f"it belongs to uid {entry.status.st_uid}, which is not the agent's")
                continue
            data = iter(()) if entry.fd is None else _exactly(entry.fd, _all_of(entry))
            yield from self._member(info, data)

    def leave_out(self, path: str, why: str) -> None:
        """Tell, with the archive, that something is not in it. Only the first thousand are named."""
        self._left_out_count += 1
        if self._left_out_count <= LEFT_OUT_MAX:
            self._left_out.append(json.dumps({"path": path, "why": why}).encode())

    def end(self) -> Iterator[bytes]:
        """The list of what was left out, the manifest, its seal, and the end of the tar."""
        if self._left_out_count > LEFT_OUT_MAX:
            more = self._left_out_count - LEFT_OUT_MAX
            self._left_out.append(json.dumps({"path": "", "why": f"and {more} more"}).encode())
        yield from self.text(form.LEFT_OUT, b"".join(line + b"\n" for line in self._left_out))
        self._lines.flush()
        size = self._lines.seek(0, io.SEEK_END)
        self._lines.seek(0)
        digest = hashlib.sha256()
        yield _info(form.MANIFEST, mode=0o600, size=size).tobuf(tarfile.PAX_FORMAT)
        while chunk := self._lines.read(CHUNK):
            digest.update(chunk)
            yield chunk
        yield _padding(size)
        seal = f"{digest.hexdigest()}\n".encode()
        yield (
            _info(form.SEAL, mode=0o600, size=len(seal)).tobuf(tarfile.PAX_FORMAT)
            + seal
            + _padding(len(seal))
        )
        yield bytes(2 * tarfile.BLOCKSIZE)

    @staticmethod
    def failure(error: HiveError) -> bytes:
        """Instead of the rest: the reason why there is no rest."""
        content = json.dumps(error.as_json()).encode()
        return (
            _info(form.FAILED, mode=0o600, size=len(content)).tobuf(tarfile.PAX_FORMAT)
            + content
            + _padding(len(content))
            + bytes(2 * tarfile.BLOCKSIZE)
        )

    # ------------------------------------------------------------------------------------------- inside
    def _directory(self, name: str) -> Iterator[bytes]:
        info = _info(name, mode=0o700, size=0)
        info.type = tarfile.DIRTYPE
        yield from self._member(info, iter(()))

    def _member(self, info: tarfile.TarInfo, data: Iterator[bytes]) -> Iterator[bytes]:
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        digest = hashlib.sha256()
        try:
            for chunk in data:
                digest.update(chunk)
                yield chunk
        except OSError as error:
            raise PermanentError(
                f"{info.name!r:.300} could not be read: {error.strerror}", hint="is the disk well? see dmesg"
            ) from error
        yield _padding(info.size)
        self._lines.write(form.line_of(info, digest.hexdigest()))
        self.members += 1


def gathered(parts: Iterator[bytes], size: int = CHUNK) -> Iterator[bytes]:
    """The same bytes in chunks of about `size`: headers of small members are not sent one by one."""
    held: list[bytes] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            yield b"".join(held)
            held, count = [], 0
    if held:
        yield b"".join(held)


def _info(name: str, *, mode: int, size: int, mtime: float = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = mode, size, int(mtime)
    return info


def _of_entry(path: str, top: str, entry: Entry, base: int | None) -> tarfile.TarInfo | None:
    """The member of an entry; None if it belongs to somebody that the agent is not."""
    status = entry.status
    info = _info(path, mode=stat.S_IMODE(status.st_mode), size=entry.data_bytes, mtime=status.st_mtime)
    headers: dict[str, str] = {}
    own = base is not None and all(base <= one < base + 65536 for one in (status.st_uid, status.st_gid))
    if own:
        assert base is not None
        info.uid, info.gid = status.st_uid - base, status.st_gid - base
    elif base is None or max(status.st_uid, status.st_gid) < _HOST_UID_MAX:
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mode &= 0o1777  # no set-user-id program of the host's comes from a backup
        headers[form.PAX_OWNER] = "host"
    else:
        return None
    if entry.is_directory:
        info.type, info.size = tarfile.DIRTYPE, 0
    elif entry.is_symlink:
        info.type, info.size, info.linkname = tarfile.SYMTYPE, 0, entry.target or ""
    elif entry.target is not None:
        info.type, info.size, info.linkname = tarfile.LNKTYPE, 0, f"{top}/{entry.target}"
    if entry.extents is not None:
        headers[form.PAX_SPARSE] = ",".join(f"{offset}:{length}" for offset, length in entry.extents)
        headers[form.PAX_SIZE] = str(status.st_size)
    info.pax_headers = headers
    return info


def _all_of(entry: Entry) -> tuple[tuple[int, int], ...]:
    return ((0, entry.status.st_size),) if entry.extents is None else entry.extents


def _exactly(fd: int, extents: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """The bytes of those extents, as many as they say: zeros where the file has become shorter."""
    for offset, length in extents:
        at, left = offset, length
        while left:
            chunk = os.pread(fd, min(CHUNK, left), at) or bytes(min(CHUNK, left))
            yield chunk
            at, left = at + len(chunk), left - len(chunk)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _raise(error: OSError) -> None:
    raise error
