"""Makes the demo's world and becomes its first process.

Runs as root, as PID 1 of new mount and PID namespaces (`unshare` started it), and gets a `Plan` as JSON on
its standard input. Builds a root of its own on a tmpfs: the host's /usr and devices, a private /etc with the
product's users, the demo's folders at the product's real paths. Then enters it, lets go of the host's root,
and becomes `supervisor.py`. Nothing here touches a file system of the host outside DEMO_DIR; all mounts die
with the namespace.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from reconciler.demo import cgroups, services, syscalls
from reconciler.demo.cgroups import Hierarchy
from reconciler.demo.place import Place
from reconciler.demo.services import SERVICES_FILE, Credential, User, write_services

_TMPFS_LIMIT = "size=1g,mode="
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_ETC_BINDS = ("alternatives", "ssl/certs")
_ETC_COPIES = ("ld.so.cache", "ld.so.conf", "localtime", "mime.types", "protocols", "resolv.conf", "services",
               "ssl/openssl.cnf", "subgid", "subuid", "timezone")  # fmt: skip
_NIX_CONF = """\
experimental-features = nix-command flakes
sandbox = true
# the only program that a build without nixpkgs can start with
sandbox-paths = /bin/sh=/bin/busybox
build-users-group = nixbld
trusted-users =
allowed-users = hive-build root
# offline: a missing path is an error at once, not after retries
substituters =
flake-registry =
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `make demo` decided. Paths are the host's, absolute."""

    folder: str
    venv: str
    harness_venv: str
    port: int
    credential: Credential | None
    proxies: dict[str, str]
    services: tuple[services.Service, ...] | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        if data["credential"] is not None:
            data["credential"] = Credential(**data["credential"])
        if data["services"] is not None:
            data["services"] = tuple(services.Service.from_json(entry) for entry in data["services"])
        return cls(**data)


def build(plan: Plan, groups: tuple[Hierarchy, ...]) -> None:
    """The whole root, at the mount point of the demo's folder."""
    place = Place.of(plan.folder)
    root = place.mount_point
    os.umask(0o022)
    # Nothing mounted here may be seen outside, nor the other way round.
    syscalls.mount("none", Path("/"), flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("world", root, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=64m,mode=0755")
    _system(root, groups)
    _devices(root / "dev")
    _scratch(root)
    _etc(root / "etc", plan)
    _product(root, place, plan)


def enter(root: Path) -> None:
    """pivot_root(2) into the new root and out of the old one, for good."""
    old = root / "old"
    old.mkdir()
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "old"], check=True, timeout=10)
    os.chdir("/")
    syscalls.detach(Path("/old"))
    Path("/old").rmdir()


def _system(root: Path, groups: tuple[Hierarchy, ...]) -> None:
    """Programs and kernel file systems, as on the host."""
    (root / "usr").mkdir()
    syscalls.bind_tree(Path("/usr"), root / "usr", read_only=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            (root / name).mkdir()
            syscalls.bind_tree(host, root / name, read_only=True)
    (root / "proc").mkdir()
    harmless = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", root / "proc", "proc", harmless)
    (root / "sys").mkdir()
    syscalls.bind(Path("/sys"), root / "sys")
    cgroups.show(groups, root / "sys")


def _devices(dev: Path) -> None:
    """The devices that programs expect, and the host's terminals, so that `hive` knows the one it is on."""
    dev.mkdir()
    syscalls.mount("dev", dev, "tmpfs", syscalls.MS_NOSUID, "size=1m,mode=0755")
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (dev / name).touch()
            syscalls.bind(Path("/dev", name), dev / name)
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    syscalls.bind(Path("/dev/pts"), dev / "pts")
    syscalls.mount("shm", dev / "shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, _TMPFS_LIMIT + "1777")
    for name, target in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        (dev / name).symlink_to(target)


def _scratch(root: Path) -> None:
    """Empty writable places, bounded, gone with the world."""
    for name, mode in (("tmp", "1777"), ("run", "0755")):
        (root / name).mkdir()
        safe = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount(name, root / name, "tmpfs", safe, _TMPFS_LIMIT + mode)
    (root / "root").mkdir(mode=0o700)
    (root / "var/lib").mkdir(parents=True)
    (root / "var/run").symlink_to("../run")
    (root / "var/tmp").symlink_to("../tmp")


def _etc(etc: Path, plan: Plan) -> None:
    """Names, addresses and certificates; nothing of the host's secrets."""
    (etc / "ssl").mkdir(parents=True)
    for name in _ETC_BINDS:
        if Path("/etc", name).is_dir():
            (etc / name).mkdir()
            syscalls.bind_tree(Path("/etc", name), etc / name, read_only=True)
    for name in _ETC_COPIES:
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), etc / name)
    (etc / "os-release").symlink_to("../usr/lib/os-release")
    (etc / "machine-id").write_text(secrets.token_hex(16) + "\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (etc / "nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
    )
    _names(etc)
    (etc / "nix").mkdir()
    (etc / "nix/nix.conf").write_text(_NIX_CONF)
    ours = etc / "hyperhive"
    ours.mkdir()
    (ours / "config.json").write_text(
        json.dumps(services.configuration(plan.port, plan.credential), indent=2)
    )
    if plan.credential is not None:
        secret = ours / "credential"
        secret.touch(mode=0o400)
        os.chown(secret, services.GATEWAY.uid, services.GATEWAY.uid)
        secret.write_text(plan.credential.secret)


def _names(etc: Path) -> None:
    users = (User("root", 0, home="/root"), *services.SERVICE_USERS, User("nobody", 65534))
    lines = [f"{u.name}:x:{u.uid}:{u.uid}::{u.home}:/bin/sh" for u in users]
    lines += [f"{u.name}:x:{u.uid}:{services.NIX_BUILDERS_GID}::/:/bin/false" for u in services.NIX_BUILDERS]
    (etc / "passwd").write_text("\n".join(lines) + "\n")
    builders = ",".join(u.name for u in services.NIX_BUILDERS)
    groups = [f"{u.name}:x:{u.uid}:" for u in users if u.name != "nobody"]
    groups += [f"nogroup:x:65534:\nhive:x:{services.OPERATORS_GID}:root"]
    groups += [f"tty:x:5:\nnixbld:x:{services.NIX_BUILDERS_GID}:{builders}"]
    (etc / "group").write_text("\n".join(groups) + "\n")


def _product(root: Path, place: Place, plan: Plan) -> None:
    """The program, the store and the state at their real paths."""
    source = root / services.SOURCE.lstrip("/")
    source.mkdir(parents=True)
    frozen = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.bind(place.source, source, frozen)
    for name, environment in ((".venv", plan.venv), (".venv-harness", plan.harness_venv)):
        syscalls.bind(Path(environment), source / name, frozen)
    (root / "nix").mkdir()
    syscalls.bind(place.nix, root / "nix", syscalls.MS_NODEV)
    # Agents write here: no device and no setuid file of theirs means anything.
    state = root / services.STATE.lstrip("/")
    state.mkdir()
    syscalls.bind(place.state, state, syscalls.MS_NOSUID | syscalls.MS_NODEV)
    run = root / services.RUN.lstrip("/")
    for path, user in (
        (state / "build", services.BUILD),
        (state / "gateway", services.GATEWAY),
        (run / "gateway", services.GATEWAY),
    ):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(path, user.uid, user.uid)
    (state / "log").mkdir(exist_ok=True)
    model_log = root / services.MODEL_LOG.lstrip("/")  # its own file in a folder that is root's
    model_log.touch(mode=0o600)
    os.chown(model_log, services.SCRIPTED.uid, services.SCRIPTED.uid)
    model = root / "run/hyperhive-model"
    model.mkdir()
    os.chown(model, services.SCRIPTED.uid, services.GATEWAY.uid)
    model.chmod(0o2750)  # the gateway, and nobody else, reaches the scripted model's socket


def main() -> None:
    """Never returns: the process becomes the supervisor."""
    # Still the host's /proc: the number that the host knows us by.
    pid = int(Path("/proc/self").readlink().name)
    plan = Plan.from_json(sys.stdin.read())
    build(plan, cgroups.join(pid))
    enter(Place.of(plan.folder).mount_point)
    chosen = plan.services
    if chosen is None:
        chosen = services.services(plan.port, scripted=plan.credential is None, proxies=plan.proxies)
    write_services(SERVICES_FILE, chosen)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": services.SOURCE, "LANG": "C.UTF-8"}
    argv = [services.PYTHON, "-P", "-m", "reconciler.demo.supervisor", str(pid)]
    os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main()
