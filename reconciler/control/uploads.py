"""Bundles and tars of agents, streamed to files under a limit and removed when the call is over.

The files are hostile bytes in a folder of root's own; nobody opens them here.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aiohttp import BodyPartReader, http_exceptions, web

from reconciler.control.edge import chunks, refusal, too_large
from reconciler.errors import OperatorError

UPLOAD_S = 60.0
_OVERHEAD = 65536  # headers and boundaries of a form


class Incoming:
    """The folder for uploads: private, and empty after a start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder and remove what a crash left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for left in self._folder.iterdir():
            shutil.rmtree(left)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one call."""
        folder = self._folder / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


async def receive_file(request: web.Request, path: Path, limit: int) -> None:
    """The body as a file; 413 as soon as it is larger than `limit` bytes, 400 if it is empty."""
    size = await _write(path, chunks(request, limit, within_s=UPLOAD_S), limit)
    if not size:
        raise OperatorError("the body is empty", hint="send the bundle as it is (application/octet-stream)")


async def receive_form(request: web.Request, folder: Path, limits: Mapping[str, int]) -> dict[str, Path]:
    """A multipart form of exactly the parts in `limits`, each once: name → its file below `folder`."""
    if not request.content_type.startswith("multipart/form-data"):
        raise OperatorError("the body is no multipart form", hint=f"with the parts {', '.join(limits)}")
    total = sum(limits.values()) + _OVERHEAD
    if request.content_length is not None and request.content_length > total:
        raise too_large(total)
    files: dict[str, Path] = {}
    try:
        form = await request.multipart()
        while (part := await form.next()) is not None:
            name = (part.name if isinstance(part, BodyPartReader) else None) or ""
            if name not in limits or name in files or not isinstance(part, BodyPartReader):
                raise OperatorError(
                    f"there is no part {name[:60]!r} here, or it came twice",
                    hint=f"the parts are {', '.join(limits)}",
                )
            files[name] = folder / name
            await _write(files[name], _pieces(part), limits[name])
    except (
        ValueError,
        AssertionError,
        LookupError,
        http_exceptions.HttpProcessingError,
    ) as error:  # what aiohttp raises for malformed forms
        raise OperatorError("the body is no well-formed multipart form") from error
    except (ConnectionError, web.RequestPayloadError) as error:
        raise refusal(400, "cut", "the request was cut off") from error
    missing = ", ".join(name for name in limits if name not in files)
    if missing:
        raise OperatorError(f"the form lacks the part {missing}")
    return files


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(65536):
        yield chunk


async def _write(path: Path, pieces: AsyncIterator[bytes], limit: int) -> int:
    """Write the pieces to a new file, at most `limit` bytes; how many there were.

    Written in the loop's own thread: each piece is at most 64 KiB into the page cache, some microseconds.
    """
    size = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            file.write(piece)
    return size
