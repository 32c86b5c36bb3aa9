"""The mount calls that Python lacks, through libc; errors are `OSError` that name the target."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

_MNT_DETACH = 2
_CLONE_NEWCGROUP = 0x02000000
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture (Linux 5.12)
_MOUNT_ATTR_RDONLY = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0, options: str = "") -> None:
    """The call of the same name; `options` is the file system's own data string."""
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, target)


def bind(source: Path, target: Path, flags: int = 0) -> None:
    """A bind mount of one file system; the kernel takes flags such as `MS_RDONLY` in a second call only."""
    mount(str(source), target, flags=MS_BIND)
    if flags:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | flags)


def bind_tree(source: Path, target: Path, *, read_only: bool = False) -> None:
    """A bind mount with everything mounted below it; `read_only` holds for all of that."""
    mount(str(source), target, flags=MS_BIND | MS_REC)
    if read_only:
        attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
        result = _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
        _check(result, target)


def unshare_cgroups() -> None:
    """Gives this process a cgroup namespace, whose root is the groups that it is in now."""
    _check(_libc.unshare(_CLONE_NEWCGROUP), Path("/proc/self/ns/cgroup"))


def detach(target: Path) -> None:
    """umount2(2), lazily: the tree goes at once, its file systems when nobody uses them."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def _check(result: int, target: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
