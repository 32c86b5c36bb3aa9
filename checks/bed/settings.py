"""What makes a Debian root a bed: written over the image when a guest is first booted, not into the image, so
that a change here costs no new one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# What a fresh Debian starts that only costs time here.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("fstrim.timer", "e2scrub_reap.service", "console-getty.service", "getty.target"),
    *("systemd-timesyncd.service", "systemd-pstore.service"),
)
# nspawn keeps /proc/sys read-only, as no real host has it, and a hive forbids user namespaces inside its
# containers there. The files of this directory act on the user namespace of who writes.
_SYSCTL = """\
[Unit]
Description=Make /proc/sys/user writable, as it is on a host
DefaultDependencies=no
ConditionVirtualization=systemd-nspawn
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mkdir -p /run/bed/proc
ExecStart=mount -t proc proc /run/bed/proc
ExecStart=mount --bind /run/bed/proc/sys/user /proc/sys/user
ExecStart=umount /run/bed/proc
"""
_FILES = {
    "etc/hostname": "bed\n",
    "etc/hosts": "127.0.0.1 localhost bed\n",
    "etc/machine-id": "",
    "etc/nix/nix.conf": (
        "sandbox = true\nsandbox-paths = /bin/sh=/bin/busybox\nbuild-users-group = nixbld\n"
        "allowed-users = *\nsubstituters =\nexperimental-features = nix-command flakes\n"
    ),
    # Kept over reboots of the bed, and never throttled: tests count lines.
    "etc/systemd/journald.conf.d/bed.conf": (
        "[Journal]\nStorage=persistent\nRateLimitBurst=0\nSystemMaxUse=256M\nForwardToConsole=no\n"
    ),
    "etc/systemd/system.conf.d/bed.conf": (
        "[Manager]\nDefaultTimeoutStopSec=20s\nDefaultTimeoutStartSec=60s\n"
    ),
    "etc/systemd/system/bed-sysctl.service": _SYSCTL,
}
_LINKS = {
    "etc/systemd/system/sysinit.target.wants/bed-sysctl.service": "/etc/systemd/system/bed-sysctl.service",
    **{f"etc/systemd/system/{name}": "/dev/null" for name in _MASKED},
}


def digest() -> str:
    """Of all that `write` writes."""
    return hashlib.sha256(json.dumps([_FILES, _LINKS]).encode()).hexdigest()


def write(root: Path) -> None:
    """Write all of it below `root`; files that are there are replaced, never written into (they may be links
    to the image's)."""
    for name in (*_FILES, *_LINKS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
