"""The mounts around one systemd-nspawn, private to the calling process and what it starts. Standard library
only, as the shim and the unit's helper import it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

# nspawn's own directory: with a private one nothing of it stays on the host, however nspawn ends (systemd 257
# leaves a mount there when it is killed, and then refuses the next start).
NSPAWN_RUN = "/run/systemd/nspawn"

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 32, 4096, 16384, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def make_private(hardened: Sequence[str]) -> None:
    """Enter a mount namespace of our own with an empty `NSPAWN_RUN`, and with each of the `hardened`
    directories remounted `nosuid,nodev`."""
    call(_libc.unshare, _CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    Path(NSPAWN_RUN).mkdir(mode=0o700, parents=True, exist_ok=True)
    _mount("hive-nspawn", NSPAWN_RUN, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0700,size=8m")
    for path in hardened:
        _mount(path, path, None, _MS_BIND)
        _mount(None, path, None, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV)


def call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    """Call a function of the C library; `OSError` unless it returns 0."""
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    call(_libc.mount, words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
