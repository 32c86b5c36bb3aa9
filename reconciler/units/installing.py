"""`hive install-units` and its opposite: files brought to what they should be, users made, systemd told.

Level-triggered: it compares, writes what differs (each file at once, by rename), and may be repeated.
"""

from __future__ import annotations

import difflib
import grp
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.config import Config, load
from reconciler.effects import process
from reconciler.errors import OperatorError, PermanentError
from reconciler.units import catalogue
from reconciler.units.files import (
    CREDENTIAL,
    HANDED_OVER,
    SYSUSERS,
    TMPFILES,
    File,
    Host,
    files,
    first_config,
)
from reconciler.units.model import MARK

COMMAND_S = 60.0
_DAEMON_SOCKET = Path("/nix/var/nix/daemon-socket")


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one file; `diff` is unified, from what is there to what will be."""

    path: str
    action: Literal["create", "update", "remove", "keep"]
    diff: str = ""


@dataclass(frozen=True, slots=True)
class Installation:
    """What was done, or would be: files, commands, and what is left to the operator."""

    changes: tuple[Change, ...]
    commands: tuple[tuple[str, ...], ...]
    following: tuple[str, ...]


async def install(*, root: Path = Path("/"), dry_run: bool = False) -> Installation:
    """Bring the host below `root` to what this program needs. With another root than / only files are
    written. `OperatorError` when the program lies where its services cannot read it, or the configuration is
    wrong."""
    host = _host(root)
    if root == Path("/"):
        check_readable(host)
    wanted = files(host)
    changes = tuple(_compare(root, file) for file in wanted)
    commands = _commands() if root == Path("/") else ()
    if not dry_run:
        _check_root(root)
        for file, change in zip(wanted, changes, strict=True):
            if change.action in {"create", "update"}:
                _write(_below(root, file.path), file)
        await _run(commands)
    return Installation(changes, commands, _following(host, root))


async def uninstall(*, root: Path = Path("/"), dry_run: bool = False) -> Installation:
    """Remove what `install` wrote and stop what it described; configuration, users and state stay."""
    host = _host(root)
    present = [file for file in files(host) if file.ours and _is_ours(_below(root, file.path))]
    changes = tuple(Change(str(file.path), "remove") for file in present)
    units = [
        file.path.name for file in present if file.path.name in {*catalogue.SERVICES, *catalogue.SOCKETS}
    ]
    before: list[tuple[str, ...]] = []
    if root == Path("/") and units:
        before = [("systemctl", "disable", "--now", *units), ("systemctl", "stop", "hive.slice")]
    after: list[tuple[str, ...]] = [("systemctl", "daemon-reload")] if root == Path("/") else []
    if not dry_run:
        _check_root(root)
        await _run(before)
        for file in present:
            _below(root, file.path).unlink(missing_ok=True)
        await _run(after)
    config = host.config
    left = f"{host.config_file}, {config.state_dir} and the users stay: remove them by hand if you want to"
    return Installation(changes, (*before, *after), (left,))


# ----------------------------------------------------------------------------------------------- what is
def _host(root: Path) -> Host:
    bare = Host(Config())
    found = _below(root, bare.config_file)
    config = load(found) if found.exists() else Config.model_validate(first_config())
    return Host(config, build_group=_nix_group() if root == Path("/") else "")


def _nix_group() -> str:
    """The group that may speak to the Nix daemon, where not everybody may; else empty."""
    try:
        found = _DAEMON_SOCKET.stat()
        return "" if found.st_mode & 0o001 else grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return ""


def check_readable(host: Host) -> None:
    """The services are other users: they must be able to read program and interpreter, else
    `OperatorError`."""
    for start in (host.source / "reconciler/__init__.py", Path(host.python), Path(host.python).resolve()):
        closed = [folder for folder in start.parents if not folder.stat().st_mode & 0o001]
        if not start.stat().st_mode & 0o004:
            closed.append(start)
        if closed:
            raise OperatorError(
                f"{closed[-1]} is closed to other users, and the services run from {host.source}",
                hint="move the clone to /opt/hyperhive, run `make deps` there, and try again",
            )


def changeable(host: Host) -> str:
    """Which part of the program others than root can change, and who; empty: none. Whoever can is root as
    soon as hived starts again."""
    program = {host.source, host.source / "reconciler", Path(host.python), Path(host.python).resolve()}
    for path in sorted(program | {folder for start in program for folder in start.parents}):
        found = path.lstat()
        if found.st_uid != 0:
            return f"{path} belongs to uid {found.st_uid}"
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}"
    return ""


def _check_root(root: Path) -> None:
    if root == Path("/") and os.geteuid() != 0:
        raise OperatorError(
            "only root may install units", hint="sudo hive install-units; --dry-run shows what"
        )
    if root == Path("/") and not Path("/run/systemd/system").is_dir():
        raise OperatorError(
            "systemd does not run this machine",
            hint="`make demo` needs none; --root DIR writes the files for another machine",
        )


def _compare(root: Path, file: File) -> Change:
    path = _below(root, file.path)
    try:
        found = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return Change(str(file.path), "create", _diff(file.path, "", file.text))
    except OSError as error:
        raise PermanentError(f"cannot read {path}: {error.strerror}") from error
    same = found == file.text and path.stat().st_mode & 0o777 == file.mode
    if same or not file.ours:
        return Change(str(file.path), "keep")
    if not _is_ours(path):
        raise OperatorError(
            f"{path} is there and was not made by `hive install-units`",
            hint="move it away, then try again; settings of your own belong into a drop-in (systemctl edit)",
        )
    return Change(str(file.path), "update", _diff(file.path, found, file.text))


def _is_ours(path: Path) -> bool:
    """By the first words of its header."""
    try:
        with path.open("rb") as opened:
            head = opened.read(400).decode("utf-8", "replace")
    except OSError:
        return False
    return any(line.startswith(MARK) for line in head.splitlines()[:2])


def _diff(path: Path, before: str, after: str) -> str:
    source = "/dev/null" if not before else str(path)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), source, str(path), lineterm="")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- what is done
def _commands() -> tuple[tuple[str, ...], ...]:
    return (
        ("systemd-sysusers", str(SYSUSERS)),
        ("systemd-tmpfiles", "--create", str(TMPFILES)),
        ("systemctl", "daemon-reload"),
    )


async def _run(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        await process.run(command, timeout_s=COMMAND_S)


def _write(path: Path, file: File) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("x") as opened:
            os.fchmod(opened.fileno(), file.mode)
            opened.write(file.text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PermanentError(f"cannot write {path}: {error.strerror}") from error


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _following(host: Host, root: Path) -> tuple[str, ...]:
    found = []
    credential = host.config.gateway.credential_file
    if credential == HANDED_OVER and not _below(root, CREDENTIAL).exists():
        found.append(f"put the API key into {CREDENTIAL}: install -m 0600 /dev/stdin {CREDENTIAL}")
    if root == Path("/") and (open_to := changeable(host)):
        found.append(f"make root the owner of the program, as its services run it as root: {open_to}")
    if root == Path("/") and not _DAEMON_SOCKET.is_dir():
        found.append("install a Nix daemon: apt install nix-setup-systemd")
    found += [
        f"let people in: usermod -aG {host.config.operator_group} NAME",
        f"start it: systemctl enable --now {' '.join((*catalogue.SOCKETS, *catalogue.SERVICES))}",
        "look at it: hive status; systemctl status hived; hive login",
    ]
    return tuple(found)
