"""The one argument builder: from a `ContainerSpec` to the command line of systemd-nspawn, for every driver.

Pure. What it decides is the boundary around an agent: uid range, capabilities, system calls, network, mounts.
No credential and no host environment ever enters a container through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.config import Config
from reconciler.effects.protocols import ContainerSpec
from reconciler.errors import PermanentError

UID_COUNT = 65536
MACHINE_PREFIX = "hive-"

# What nspawn would keep, less SETUID, SETGID (the harness drops to uid 1000) and KILL (it ends a stuck CLI).
DROPPED_CAPABILITIES = (
    "AUDIT_CONTROL", "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID",
    "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST",
    "NET_RAW", "SETFCAP", "SETPCAP", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_NICE", "SYS_PTRACE",
    "SYS_RESOURCE", "SYS_TTY_CONFIG",
)  # fmt: skip

# Besides nspawn's own allow-list. clone(CLONE_NEWUSER) cannot be told from clone by a filter on names: that
# door is closed by user.max_user_namespaces = 0. io_uring, userfaultfd and perf are kernel surface that
# nothing needs.
REFUSED_SYSCALLS = (
    "@mount", "unshare", "setns", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd",
    "perf_event_open",
)  # fmt: skip

HARNESS_ENVIRONMENT = {
    "PYTHONPATH": "/opt/hive/lib",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}
HARNESS_COMMAND = ("/opt/hive/venv/bin/python", "-m", "harness")

_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True, slots=True)
class ContainerCommand:
    """How to start one container.

    `argv` and `env` are the whole command line and environment of nspawn. `hardened` are the host's
    directories that the container may write: whoever starts nspawn remounts each of them `nosuid,nodev` in
    a mount namespace of its own first (nspawn has no option for it, and a bind keeps the flags of its
    source). The limits are for the control group: bytes, percent of one core, number of tasks.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    hardened: tuple[str, ...]
    memory_bytes: int
    cpu_percent: int
    tasks: int


def _patience(config: Config) -> tuple[tuple[str, float | None], ...]:
    """The waiting times of turns, by the names that the harness reads."""
    wanted = config.watchdog
    return (
        ("HIVE_STALL_S", wanted.first_byte_s),
        ("HIVE_STREAM_STALL_S", wanted.next_byte_s),
        ("HIVE_TOOL_STALL_S", wanted.tool_s),
    )


def container_command(spec: ContainerSpec, config: Config) -> ContainerCommand:
    """The command line for one container; equal input gives equal output."""
    if config.platform != "bare":
        raise PermanentError(
            f"containers of the platform {config.platform!r} cannot be started by this version",
            hint="set platform to 'bare' in the host's configuration",
        )
    limits = spec.limits
    disk = size_bytes(limits.diskMax)
    writable = _writable_binds(spec)
    argv = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        f"--machine={MACHINE_PREFIX}{spec.name}",
        f"--hostname={spec.name}",
        f"--directory={spec.toplevel}",
        "--read-only",
        f"--private-users={spec.uid_base}:{UID_COUNT}",
        "--private-users-ownership=map",
        "--private-network",
        "--no-new-privileges=yes",
        "--drop-capability=" + ",".join(f"CAP_{name}" for name in DROPPED_CAPABILITIES),
        "--system-call-filter=~" + " ".join(REFUSED_SYSCALLS),
        f"--rlimit=RLIMIT_NPROC={limits.tasksMax}:{limits.tasksMax}",
        f"--rlimit=RLIMIT_FSIZE={disk}:{disk}",
        "--rlimit=RLIMIT_CORE=0:0",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=pipe",
        "--kill-signal=SIGTERM",
        # nspawn's own tmpfs take a share of the host's memory; these have a size.
        f"--tmpfs=/tmp:mode=1777,size={_tmp_size(size_bytes(limits.memoryMax))},nr_inodes=256k,nosuid,nodev",
        "--tmpfs=/dev/shm:mode=1777,size=64m,nr_inodes=4k,nosuid,nodev",
        _bind("--bind-ro", "/usr", "/usr"),
        _bind("--bind-ro", "/etc/alternatives", "/etc/alternatives"),
        _bind("--bind-ro", config.harness.package, "/opt/hive/lib/harness"),
        _bind("--bind-ro", config.harness.venv, "/opt/hive/venv"),
        _bind("--bind-ro", str(spec.run_dir), "/run/hive"),
        *(_bind("--bind", source, target) for source, target in writable.items()),
        *(f"--setenv={name}={value}" for name, value in HARNESS_ENVIRONMENT.items()),
        *(f"--setenv={name}={value:g}" for name, value in _patience(config) if value is not None),
        *HARNESS_COMMAND,
    ]
    return ContainerCommand(
        argv=tuple(argv),
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",  # one view of cgroups inside, also on hosts with v1
            "SYSTEMD_NSPAWN_TMPFS_TMP": "0",  # /tmp is ours, above
        },
        hardened=tuple(writable),
        memory_bytes=size_bytes(limits.memoryMax),
        cpu_percent=int(limits.cpuQuota.removesuffix("%")),
        tasks=limits.tasksMax,
    )


def size_bytes(size: str) -> int:
    """Bytes of a size of the spec, such as `4G` (powers of 1024)."""
    return int(size[:-1]) * _UNITS[size[-1]]


def _writable_binds(spec: ContainerSpec) -> dict[str, str]:
    """Host directory → place inside, for what belongs to uid 1000. Plain binds: idmap would let
    container root leave files of the host's root behind."""
    names = {"state": "/state", "home": "/home/agent", "config": "/config"}
    if spec.manager:
        names["agents"] = "/agents"
    return {str(spec.state_dir / name): inside for name, inside in names.items()}


def _tmp_size(memory: int) -> int:
    """A quarter of the memory limit for /tmp, 1 GiB at most."""
    return min(memory // 4, 1024**3)


def _bind(option: str, source: str | Path, target: str) -> str:
    """A bind option; nspawn splits at colons, so they are escaped."""
    escaped = str(source).replace("\\", "\\\\").replace(":", "\\:")
    return f"{option}={escaped}:{target}"
