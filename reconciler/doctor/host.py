"""Checks over the host: programs, files, room, limits, and who may read what. Pure."""

from __future__ import annotations

import datetime as dt
import re

from reconciler import kernel
from reconciler.doctor.facts import Facts, Finding, PathFact, Space, several, unknown

# Without them something of the hive does not work at all.
PROGRAMS = {
    "git": "git",
    "nix-build": "nix",
    "nix-instantiate": "nix",
    "nix-store": "nix",
    "bwrap": "bubblewrap",
    "systemd-nspawn": "systemd-container",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
}
# The oldest that can work, and what is missing below it.
OLDEST = {
    "python": ((3, 11), "asyncio.timeout"),
    "git": ((2, 38), "safe.bareRepository"),
    "nix": ((2, 4), "nix-build over a daemon with flakes' lock files"),
    "systemd": ((249,), "nspawn with --private-users-ownership=map"),
    "kernel": ((5, 12), "id-mapped mounts"),
    "sqlite": ((3, 37), "strict tables"),
}
LIMITS = ("memory", "tasks", "cpu")
_MIB = 1 << 20
_GIB = 1 << 30
_FULL_BYTES, _TIGHT_BYTES = 256 * _MIB, 2 * _GIB
_FULL_INODES, _TIGHT_PART = 2_000, 0.05
_NO_LOCKS = frozenset({"9p", "cifs", "nfs", "nfs4", "vfat", "exfat"})
_FORGETS = frozenset({"tmpfs", "ramfs"})


def config(facts: Facts) -> Finding:
    """The configuration is one that can work here."""
    if facts.config_faults:
        return Finding(
            "fail",
            several(list(facts.config_faults)),
            "mend the host's configuration; `hive check-config` reads it",
        )
    if facts.config_notes:
        return Finding("warn", several(list(facts.config_notes)), "restart hived, or mend the configuration")
    return Finding("ok", "users, groups and places of the configuration are there")


def programs(facts: Facts) -> Finding:
    """What hived starts is installed."""
    missing = [f"{name} (package {PROGRAMS[name]})" for name, path in facts.programs.items() if path is None]
    if missing:
        return Finding("fail", f"not installed: {several(sorted(missing))}", "install them")
    return Finding("ok", f"{len(facts.programs)} programs are installed")


def versions(facts: Facts) -> Finding:
    """Nothing is older than what the hive needs."""
    old, odd = [], []
    for name, found in sorted(facts.versions.items()):
        if found is None:
            odd.append(f"{name}: no version to be found")
        elif name in OLDEST and _numbers(found) < OLDEST[name][0]:
            oldest, why = OLDEST[name]
            old.append(f"{name} {found} is older than {'.'.join(map(str, oldest))}, which has {why}")
    if old:
        return Finding("fail", several(old), "upgrade the host")
    if odd:
        return Finding(
            "warn",
            several(odd),
            "install what is missing; the harness has its CLI by `make demo` or the flake",
        )
    return Finding("ok", ", ".join(f"{name} {found}" for name, found in sorted(facts.versions.items())))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def user_namespaces(facts: Facts) -> Finding:
    """Containers and the sandbox of examinations can be made."""
    if facts.user_namespaces == 0:
        return Finding(
            "fail",
            "user namespaces are switched off (user.max_user_namespaces is 0)",
            "sysctl user.max_user_namespaces=10000",
        )
    if facts.others_may_make_them is False:
        return Finding(
            "fail",
            "the build user may make no user namespace, and proposals are examined in one",
            "sysctl kernel.unprivileged_userns_clone=1 (Debian), "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
        )
    if facts.user_namespaces is None:
        return unknown("the kernel does not say")
    return Finding("ok", "allowed")


def limits(facts: Facts) -> Finding:
    """The limits of the specs are held."""
    if facts.enforced is None:
        return unknown()
    loose = [
        f"{name}: {', '.join(missing)} not enforced"
        for name, found in sorted(facts.enforced.items())
        if (missing := [one for one in LIMITS if one not in found])
    ]
    if loose:
        return Finding(
            "warn", several(loose), "give hived a control group with the memory, pids and cpu controllers"
        )
    return Finding("ok", f"memory, tasks and cpu of {len(facts.enforced)} running containers are enforced")


def file_system(facts: Facts) -> Finding:
    """The state lies where databases and containers can live."""
    kind = facts.file_system
    if kind in _NO_LOCKS:
        return Finding(
            "fail",
            f"the state lies on {kind}, where SQLite's locks do not hold",
            "move it to ext4, xfs or btrfs",
        )
    if kind in kernel.NO_ID_MAPS:
        return Finding(
            "fail",
            f"the state lies on {kind}, which has no id-mapped mounts",
            "move it to ext4, xfs or btrfs",
        )
    if facts.store_file_system in kernel.NO_ID_MAPS:
        return Finding(
            "warn",
            f"/nix/store lies on {facts.store_file_system}, which has no id-mapped mounts: agents' roots may "
            "not start from it",
            "move /nix to ext4, xfs or btrfs",
        )
    if kind in _FORGETS:
        return Finding("warn", f"the state lies on {kind} and is gone after a reboot", "move it to a disk")
    return Finding("ok", f"the state lies on {kind}") if kind else unknown("the mount table does not say")


def permissions(facts: Facts) -> Finding:
    """Owners and modes close what must be closed."""
    wrong = [fault for path in facts.paths if (fault := _path_fault(path))]
    if wrong:
        return Finding("fail", several(wrong), "chown and chmod as said; find out who changed it")
    return Finding(
        "ok", f"{sum(path.uid is not None for path in facts.paths)} paths have their owners and modes"
    )


def _path_fault(path: PathFact) -> str:
    if path.uid is None:
        return f"{path.path} is not there" if path.required else ""
    if path.want_uid is not None and path.uid != path.want_uid:
        return f"{path.path} belongs to uid {path.uid}, not to {path.want_uid}"
    if path.want_gid is not None and path.gid != path.want_gid:
        return f"{path.path} belongs to gid {path.gid}, not to {path.want_gid}"
    if path.mode & path.forbidden:
        return f"{path.path} has mode {path.mode:04o}, {path.mode & ~path.forbidden:04o} is enough"
    return ""


def credential(facts: Facts) -> Finding:
    """The credential can be used, and read by nobody else."""
    found = facts.credential
    if found is None:
        return unknown("none is configured")
    if found.readable_by:
        return Finding(
            "fail",
            f"{found.path} can be read by {found.readable_by}",
            f"chmod 0400 {found.path}; then replace the credential",
        )
    if found.problem:
        return Finding(
            "fail",
            f"{found.path}: {found.problem}",
            "write the credential there, as the gateway's user can read it",
        )
    return Finding("ok", f"{found.path} is the gateway's alone")


def space(facts: Facts) -> Finding:
    """There is room to write."""
    full = [_room(one) for one in facts.space if one.free < _FULL_BYTES]
    if full:
        return Finding(
            "fail", several(full), "make room: `hive status` tells sizes, nix-collect-garbage frees the store"
        )
    tight = [_room(one) for one in facts.space if one.free < min(_TIGHT_BYTES, one.total * _TIGHT_PART)]
    if tight:
        return Finding("warn", several(tight), "make room soon: nix-collect-garbage, or a larger disk")
    return Finding("ok", several([_room(one) for one in facts.space]))


def _room(one: Space) -> str:
    return f"{one.path} has {one.free // _MIB} of {one.total // _MIB} MiB free"


def inodes(facts: Facts) -> Finding:
    """There is room for names."""
    counted = [one for one in facts.space if one.inodes]
    full = [
        f"{one.path} has {one.free_inodes} inodes free" for one in counted if one.free_inodes < _FULL_INODES
    ]
    if full:
        return Finding(
            "fail", several(full), "remove small files (whose: `du --inodes`), or a file system with more"
        )
    tight = [f"{one.path} has {one.free_inodes} of {one.inodes} inodes free" for one in counted
             if one.free_inodes < one.inodes * _TIGHT_PART]  # fmt: skip
    if tight:
        return Finding("warn", several(tight), "remove small files soon: `du --inodes` says whose")
    return Finding(
        "ok", several([f"{one.path} has {one.free_inodes} free" for one in counted]) or "not counted here"
    )


def prices(facts: Facts) -> Finding:
    """The prices are not so old that nobody knows whether they hold."""
    if facts.prices is None:
        return unknown("nobody looked")
    age = int((facts.now - facts.prices.as_of) / 86_400)
    day = dt.datetime.fromtimestamp(facts.prices.as_of, dt.UTC).date().isoformat()
    if age > facts.prices.max_age_days:
        return Finding(
            "warn",
            f"the prices by which budgets are counted are of {day}, {age} days ago",
            f"compare reconciler/gateway/models.json with its source, or take a newer release: "
            f"{facts.prices.source}",
        )
    return Finding("ok", f"of {day}")


def gateway(facts: Facts) -> Finding:
    """The model gateway is there and serves every agent."""
    if facts.gateway is None:
        return unknown()
    if not facts.gateway.connected:
        return Finding(
            "fail",
            "the gateway is not connected: agents cannot ask their models",
            "start hive-gateway; its journal says more",
        )
    troubled = [f"{name}: {why}" for name, why in sorted(facts.gateway.problems.items())]
    if troubled:
        return Finding(
            "fail", f"not served: {several(troubled)}", "`hive plan AGENT`: its sockets are made by a pass"
        )
    return Finding("ok", "connected")
