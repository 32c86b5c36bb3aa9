"""The operator's credential: read from its file when it changes, added to requests, kept out of
everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

SIZE_LIMIT_BYTES = 16_384
_OAUTH_PREFIX = "sk-ant-oat"
OAUTH_BETA = "oauth-2025-04-20"  # what the API wants beside a subscription's token


class CredentialError(Exception):
    """The file is missing, unreadable, or holds no credential; the message says which, never what is in
    it."""


class Credential:
    """The credential in a file, or none for an upstream that wants none."""

    def __init__(self, path: Path | None, kind: Literal["api-key", "bearer"]) -> None:
        self._path = path
        self._kind = kind
        self._seen: tuple[int, int, int] | None = None
        self._secret = ""

    def headers(self) -> dict[str, str]:
        """The headers to add; the file is read again when it is another one or has changed."""
        if self._path is None:
            return {}
        secret = self._current(self._path)
        return {"x-api-key": secret} if self._kind == "api-key" else {"authorization": f"Bearer {secret}"}

    def betas(self) -> tuple[str, ...]:
        """The betas that go with the credential."""
        return (OAUTH_BETA,) if self._kind == "bearer" and self._secret.startswith(_OAUTH_PREFIX) else ()

    def redacted(self, text: bytes) -> bytes:
        """The text without the credential, for error bodies of upstreams that repeat what they got."""
        return text.replace(self._secret.encode(), b"[redacted]") if self._secret else text

    def _current(self, path: Path) -> str:
        try:
            found = path.stat()
            identity = (found.st_ino, found.st_mtime_ns, found.st_size)
            if identity != self._seen:
                self._secret = _read(path)
                self._seen = identity
        except OSError as error:
            raise CredentialError(
                f"the credential file cannot be read: {os.strerror(error.errno or 0)}"
            ) from None
        return self._secret

    def __repr__(self) -> str:
        return f"Credential({self._kind})"


def _read(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(SIZE_LIMIT_BYTES + 1).strip()
    if not raw or len(raw) > SIZE_LIMIT_BYTES or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
        raise CredentialError("the credential file does not hold one line of printable text")
    return raw.decode("ascii")
