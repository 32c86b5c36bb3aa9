"""The reading end: one pass over the archive that believes nothing of it.

`read` is used by who receives a backup (to know that it arrived whole), by `hive restore` before it touches
anything, and by it again while it unpacks. Needs no more memory than the largest member's header.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol

from pydantic import ValidationError

from reconciler.backup import format as form
from reconciler.backup.format import Header, Place, damaged
from reconciler.errors import OperatorError, PermanentError

CHUNK = 256 * 1024
EXTENDED_MAX_BYTES = 4 << 20  # a map of 10 000 extents has a tenth of it
_EXTENDED = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


class _Member(tarfile.TarInfo):
    """A header whose extensions are bounded: tarfile reads each into memory, as long as it says to be."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > EXTENDED_MAX_BYTES:
            raise damaged(f"a header of it has {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc] # private, and alike in all versions
        return member


class Sink(Protocol):
    """Takes the members as they come, whole and in order."""

    def begin(self, header: Header) -> None:
        """Before the first member."""
        ...

    def member(self, info: tarfile.TarInfo, place: Place, chunks: Iterator[bytes]) -> None:
        """Takes one; `chunks` are drawn to their end."""
        ...


class Nowhere:
    """A sink that keeps nothing."""

    def begin(self, header: Header) -> None:
        """Nothing."""

    def member(self, info: tarfile.TarInfo, place: Place, chunks: Iterator[bytes]) -> None:
        """Draw all."""
        del info, place
        for _ in chunks:
            pass


@dataclass(frozen=True, slots=True)
class Report:
    """What a whole archive holds: `size` bytes of data in `members`; `left_out` are (path, why)."""

    header: Header
    members: int
    size: int
    left_out: tuple[tuple[str, str], ...]
    seal: str


def read(stream: BinaryIO, sink: Sink | None = None) -> Report:
    """Read all of it and compare every member with the manifest. `OperatorError` code "damaged" if it is cut
    off or not what was written, code "conflict" if it is newer than this program."""
    try:
        with (
            tempfile.TemporaryFile() as lines,
            closing(
                tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, encoding="utf-8", tarinfo=_Member)
            ) as archive,
        ):
            return _Reading(archive, lines, sink or Nowhere()).run()
    except tarfile.TarError as error:
        raise damaged(f"{str(error)[:200]}") from error
    except RecursionError as error:
        raise damaged("headers follow headers without end") from error
    except (ValueError, OverflowError) as error:  # numbers in headers that are none
        raise damaged(f"a header cannot be read: {str(error)[:200]}") from error


class _Reading:
    """One pass."""

    def __init__(self, archive: tarfile.TarFile, lines: IO[bytes], sink: Sink) -> None:
        self._archive = archive
        self._lines = lines
        self._sink = sink
        self._members = 0
        self._size = 0
        self._left_out: tuple[tuple[str, str], ...] = ()

    def run(self) -> Report:
        """From the header to the seal."""
        info = self._next("the file is empty")
        if info.name != form.HEADER or info.size > form.HEADER_MAX_BYTES:
            raise damaged("it does not begin with a backup's header")
        content = b"".join(self._chunks(info))
        self._failed(info, content)
        header = header_of(content)
        self._sink.begin(header)
        while True:
            info = self._next("it is cut off: its manifest is missing")
            if info.name == form.MANIFEST:
                break
            place = form.place_of(info)
            if place.kind == "file":
                self._own(info)
            else:
                self._sink.member(info, place, self._chunks(info))
        seal = self._compare(info)
        if self._archive.next() is not None:
            raise damaged("something follows its end")
        return Report(header, self._members, self._size, self._left_out, seal)

    def _next(self, otherwise: str) -> tarfile.TarInfo:
        info = self._archive.next()
        self._archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep all of them
        if info is None:
            raise damaged(otherwise)
        if self._archive.pax_headers:
            raise damaged("it has headers that speak of all members")
        return info

    def _chunks(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """The member's data; its line is written when the last byte was drawn."""
        form.sparse_map(info)
        digest = hashlib.sha256()
        source = self._archive.extractfile(info) if info.isreg() else None
        seen = 0
        while source is not None and (chunk := source.read(CHUNK)):
            digest.update(chunk)
            seen += len(chunk)
            yield chunk
        if source is not None and seen != info.size:
            raise damaged(f"it is cut off in {info.name!r:.200}")
        self._lines.write(form.line_of(info, digest.hexdigest()))
        self._members += 1
        self._size += seen

    def _own(self, info: tarfile.TarInfo) -> None:
        """One of the file's own members that is not the header: kept only as far as it is told."""
        if info.size > form.HEADER_MAX_BYTES:
            raise damaged(f"{info.name} is too large")
        content = b"".join(self._chunks(info))
        self._failed(info, content)
        if info.name == form.LEFT_OUT:
            rows = [json.loads(line) for line in content.splitlines()]
            self._left_out = tuple((str(row["path"]), str(row["why"])) for row in rows)

    @staticmethod
    def _failed(info: tarfile.TarInfo, content: bytes) -> None:
        if info.name != form.FAILED:
            return
        try:
            error = json.loads(content)["error"]
            raise PermanentError(str(error["message"]), code=str(error["code"]), hint=str(error["hint"]))
        except (ValueError, KeyError, TypeError) as problem:
            raise damaged("it ended with an error that cannot be read") from problem

    def _compare(self, info: tarfile.TarInfo) -> str:
        """The manifest against what was read, line by line, and its seal; the seal."""
        if not info.isreg():
            raise damaged("its manifest is no file")
        manifest = self._archive.extractfile(info)
        assert manifest is not None
        digest = hashlib.sha256()
        self._lines.seek(0)
        for expected in self._lines:
            found = manifest.readline(len(expected) + 1)
            digest.update(found)
            if found != expected:
                name = json.loads(expected).get("name")
                raise damaged(f"{name!r:.200} is not what its manifest says")
        if manifest.read(1):
            raise damaged("its manifest names members that are not there")
        info = self._next("it is cut off: its seal is missing")
        source = self._archive.extractfile(info) if info.isreg() and info.name == form.SEAL else None
        seal = source.read(100).decode("ascii", "replace").strip() if source is not None else ""
        if seal != digest.hexdigest():
            raise damaged("its seal does not fit its manifest")
        return seal


def header_of(content: bytes) -> Header:
    """The header; `OperatorError` code "conflict" if a newer program wrote it."""
    try:
        value = json.loads(content)
        if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > form.FORMAT:
            raise OperatorError(
                f"the backup has format {value['format']}, this program knows {form.FORMAT}",
                code="conflict",
                hint=f"restore it with hyperhive {value.get('version', '')!s:.40} or newer",
            )
        return Header.model_validate_json(content)
    except (ValidationError, ValueError) as error:
        raise damaged(f"its header cannot be read: {str(error)[:200]}") from error
