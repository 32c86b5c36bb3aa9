"""What must be so before anything is changed. Every check only looks; all that is wrong is told at once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler import kernel
from reconciler.demo import install, services
from reconciler.demo.place import Place, foreign, running
from reconciler.errors import OperatorError

_CAP_SYS_ADMIN = 21
_FRESH_BYTES = 2 << 30
_STATE_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stands in the way: what was found, and what to do about it."""

    what: str
    remedy: str


def port_of(text: str) -> int:
    """`HIVE_PORT` as a number, or an `OperatorError`."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise OperatorError(
            f"HIVE_PORT is {text!r}, not a port",
            hint="give a number from 1 to 65535, for example HIVE_PORT=7001",
        )
    return int(text)


def problems(place: Place, port: int) -> list[Problem]:
    """Everything that would make the demo fail on this machine, in the order in which a person would mend
    it."""
    return [*_machine(), *_tools(), *_folder(place), *_port(port)]


def _machine() -> Iterator[Problem]:
    if not sys.platform.startswith("linux"):
        yield Problem(f"this is {sys.platform}, not Linux", "use a Linux machine, for example a Debian 12 VM")
        return
    if os.geteuid() != 0:
        yield Problem(
            f"the demo makes namespaces and containers, which needs root; this is uid {os.geteuid()}",
            "run it as root: sudo make demo",
        )
    elif not _has_capability(_CAP_SYS_ADMIN):
        yield Problem(
            "root here lacks CAP_SYS_ADMIN, so it can make no mount namespace",
            "run on a machine or VM; in Docker: docker run --privileged",
        )
    if kernel.number("/proc/sys/user/max_user_namespaces") == 0:
        yield Problem(
            "user namespaces are switched off (user.max_user_namespaces is 0)",
            "switch them on: sysctl user.max_user_namespaces=10000",
        )
    elif os.geteuid() == 0 and not _others_may_make_user_namespaces():
        yield Problem(
            "unprivileged users may make no user namespaces here, and proposals are examined in one",
            "allow it: sysctl kernel.unprivileged_userns_clone=1 (Debian),\n"
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); it is never allowed in a chroot",
        )


def _tools() -> Iterator[Problem]:
    missing = install.missing_packages()
    if missing and not install.has_program("apt-get"):
        yield Problem(
            f"these are missing and there is no apt-get to install them with: {' '.join(missing)}",
            "install them with this system's package manager (the names are Debian's), or use Debian 12",
        )
    if not install.has_assets() and shutil.which("npm") is None:
        yield Problem(
            "npm is needed once for the web assets, and is not on the PATH",
            "install Node.js 20 or newer, from the distribution or https://nodejs.org",
        )


def _folder(place: Place) -> Iterator[Problem]:
    try:
        is_usable = place.is_free_or_ours()
    except OperatorError as refusal:
        yield Problem(refusal.message, refusal.hint)
        return
    if not is_usable:
        error = foreign(place)
        yield Problem(error.message, error.hint)
        return
    if os.geteuid() == 0 and place.is_locked():
        error = running(place)
        yield Problem(error.message, error.hint)
    parent = place.root
    while not parent.exists():
        parent = parent.parent
    kind = kernel.file_system(parent)
    if kind in kernel.NO_ID_MAPS:
        yield Problem(
            f"{place.root} would lie on {kind}, which has no id-mapped mounts, and containers need them",
            "put the demo's folder on ext4, xfs or btrfs: DEMO_DIR=/some/folder make demo",
        )
    is_installed = install.is_complete(install.HOST) and install.is_complete(install.HARNESS)
    for where, wanted in ((parent, _STATE_BYTES), (install.CLONE, 0 if is_installed else _FRESH_BYTES)):
        free = shutil.disk_usage(where).free
        if free < wanted:
            yield Problem(
                f"{where} has {free >> 20} MB free, the demo needs {wanted >> 20} MB", "free some disk space"
            )


def _port(port: int) -> Iterator[Problem]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            yield Problem(
                f"127.0.0.1:{port} cannot be used: {(error.strerror or str(error)).lower()}",
                f"choose another port: HIVE_PORT={port + 1 if port < 65535 else 7001} make demo",
            )


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _others_may_make_user_namespaces() -> bool:
    """Tried as the build user's number; True if the tools for trying are not there."""
    become = [f"--reuid={services.BUILD.uid}", f"--regid={services.BUILD.uid}", "--clear-groups"]
    try:
        argv = ["setpriv", *become, "--", "unshare", "--user", "true"]
        return subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode == 0
    except FileNotFoundError:
        return True
