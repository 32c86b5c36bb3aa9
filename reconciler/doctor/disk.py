"""What the disk and the kernel tell without a running hived: configuration, files, programs, room. Reads
only, blocks."""

from __future__ import annotations

import ctypes
import datetime as dt
import grp
import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reconciler import kernel
from reconciler.approvals.hostids import reserved
from reconciler.approvals.rules import RANGE
from reconciler.backup.restore import RESTORING
from reconciler.config import Config, load
from reconciler.doctor.facts import AgentRow, CredentialFact, Facts, PathFact, PricesFact, Space
from reconciler.doctor.host import PROGRAMS
from reconciler.effects.process import PATH
from reconciler.errors import HiveError
from reconciler.gateway.catalog import known
from reconciler.store import copies

STALE_S = 3600.0
_OTHERS_WRITE = 0o022
_OTHERS = 0o077
_AGENT_UID = 1000
_TIME_ERROR = 5
_CREDENTIAL_MAX_BYTES = 16_384


def offline_facts(config: Config) -> Facts:
    """All that can be known while hived is away. What only root may read is left unknown to others."""
    state = Path(config.state_dir)
    agents = None
    if os.access(state / "state.db", os.R_OK):
        found = copies.facts(state / "state.db").agents if not copies.faults(state / "state.db") else ()
        agents = tuple(AgentRow(name, base, desired, None, None) for name, base, _, desired, _ in found)
    databases: dict[str, tuple[str, ...]] = {}
    known: dict[str, tuple[int, int]] = {}
    for name in ("state.db", "events.db"):
        if os.access(state / name, os.R_OK):
            databases[name] = tuple(copies.faults(state / name))
            if not databases[name]:
                known[name] = (copies.schema(state / name), copies.newest_schema(name))
    audit = copies.audit_chain(state / "state.db") if "state.db" in known else None
    return replace(
        disk_facts(config, agents or ()),
        agents=agents,
        databases=databases or None,
        schemas=known,
        audit=audit,
    )


def disk_facts(config: Config, agents: tuple[AgentRow, ...]) -> Facts:
    """What the disk and the kernel tell. `agents` are those of the rows."""
    state = Path(config.state_dir)
    return Facts(
        now=time.time(),
        uid_range=(config.uid_range.start, config.uid_range.end),
        reserved=reserved(),
        config_faults=tuple(_config_faults(config)),
        config_notes=tuple(_config_notes(config)),
        recorded_bases=_recorded_bases(state),
        synchronised=_is_synchronised(),
        paths=tuple(_paths(config, agents)),
        leftovers=tuple(_leftovers(state)),
        space=tuple(_space(config)),
        programs={name: shutil.which(name, path=PATH) for name in PROGRAMS},
        file_system=kernel.file_system(state),
        store_file_system=kernel.file_system(Path("/nix/store")),
        user_namespaces=kernel.number("/proc/sys/user/max_user_namespaces"),
        credential=_credential(config),
        prices=_prices(config),
    )


# ------------------------------------------------------------------------------------------- configuration
def _config_faults(config: Config) -> Iterator[str]:
    for field in ("ui_user", "gateway_user", "build_user"):
        try:
            pwd.getpwnam(getattr(config, field))
        except KeyError:
            yield f"{field}: the user {getattr(config, field)!r} does not exist"
    try:
        grp.getgrnam(config.operator_group)
    except KeyError:
        yield f"operator_group: the group {config.operator_group!r} does not exist"
    if config.uid_range.end < config.uid_range.start + RANGE:
        yield "uid_range: there is no room for a single agent in it"
    places = {
        "harness.package": Path(config.harness.package, "__main__.py"),
        "harness.venv": Path(config.harness.venv, "bin/python"),
        "modules": Path(config.modules, "bare/default.nix"),
    }
    for field, path in places.items():
        if config.platform == "bare" and not path.exists():
            yield f"{field}: {path} is not there"
    catalog = known()
    for model in config.gateway.allowed_models:
        if not catalog.ids([model]):
            yield f"gateway.allowed_models: {model!r} is no model that the gateway knows"
    if config.gateway.upstream.startswith("https:") and config.gateway.credential_file is None:
        yield "gateway.credential_file: this upstream needs a credential"


def _config_notes(config: Config) -> Iterator[str]:
    try:
        now = load()
    except HiveError as error:
        yield f"the file has changed since hived was started, and is wrong now: {error.message}"
        return
    changed = [name for name in type(config).model_fields if getattr(now, name) != getattr(config, name)]
    if changed:
        yield f"the file has changed since hived was started: {', '.join(changed)}"


def _prices(config: Config) -> PricesFact:
    source = known().source
    day = dt.datetime.combine(source.as_of, dt.time(), dt.UTC).timestamp()
    return PricesFact(day, source.text, config.budget.prices_max_age_days)


def _credential(config: Config) -> CredentialFact | None:
    if config.gateway.credential_file is None:
        return None
    path = Path(config.gateway.credential_file)
    try:
        found = path.stat()
    except OSError as error:
        return CredentialFact(str(path), problem=str(error.strerror))
    try:
        owner = pwd.getpwnam(config.gateway_user).pw_uid
    except KeyError:
        owner = -1
    who = ""
    if path.resolve().is_relative_to("/nix/store"):
        who = "everybody (it lies in the Nix store)"
    elif found.st_mode & 0o007:
        who = "everybody"
    elif found.st_uid not in {0, owner}:
        who = f"uid {found.st_uid}"
    elif found.st_mode & 0o070 and found.st_gid not in {0, _gid_of(config.gateway_user)}:
        who = f"the group {found.st_gid}"
    problem = ""
    if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= _CREDENTIAL_MAX_BYTES:
        problem = "it is empty, too large, or no file"
    elif not (found.st_uid == owner and found.st_mode & 0o400) and not found.st_mode & 0o044:
        problem = f"{config.gateway_user} cannot read it"
    return CredentialFact(str(path), problem, who)


def _gid_of(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_gid
    except KeyError:
        return -1


# ------------------------------------------------------------------------------------------- files
def _paths(config: Config, agents: tuple[AgentRow, ...]) -> Iterator[PathFact]:
    state, run = Path(config.state_dir), Path(config.run_dir)
    yield _path(state, 0, None, _OTHERS_WRITE, required=True)
    for name in ("state.db", "events.db"):
        yield _path(state / name, 0, None, _OTHERS, required=True)
        for suffix in ("-wal", "-shm"):
            yield _path(state / f"{name}{suffix}", 0, None, _OTHERS)
    for name in ("repos", "meta", "staged", "agents", "containers", "backup/staged"):
        yield _path(state / name, 0, None, _OTHERS)
    yield _path(state / "profiles", 0, None, _OTHERS_WRITE)
    for path in sorted((state / "repos").glob("*.git")):
        yield _path(path, 0, None, _OTHERS)
    gateway, ui = _uid_of(config.gateway_user), _uid_of(config.ui_user)
    yield _path(state / "gateway", gateway, None, _OTHERS)
    yield _path(state / "gateway/ledger.db", gateway, None, _OTHERS)
    for folder in (run, run / "agents"):
        yield _path(folder, 0, None, _OTHERS_WRITE)
    yield _path(run / "control.sock", 0, _group_of(config.operator_group), 0o007)
    yield _path(run / "ui.sock", ui, None, _OTHERS)
    for agent in agents:
        yield from _agent_paths(state / "agents" / agent.name, run / "agents" / agent.name, agent)
    for place in (config.modules, config.harness.package, config.harness.venv):
        yield _path(Path(place), 0, None, _OTHERS_WRITE)
    yield _path(Path(os.environ.get("HIVE_CONFIG", "/etc/hyperhive/config.json")), 0, None, _OTHERS_WRITE)


def _agent_paths(trees: Path, sockets: Path, agent: AgentRow) -> Iterator[PathFact]:
    owner = agent.uid_base + _AGENT_UID
    yield _path(trees, 0, 0, _OTHERS)
    for part in ("state", "home", "config", "agents"):
        yield _path(trees / part, owner, owner, 0)
    if agent.desired == "running":
        yield _path(sockets, agent.uid_base, None, _OTHERS)
        for name in ("agent.sock", "model.sock", "egress.sock"):
            yield _path(sockets / name, agent.uid_base, None, _OTHERS)


def _path(
    path: Path, uid: int | None, gid: int | None, forbidden: int, *, required: bool = False
) -> PathFact:
    try:
        found = path.lstat()
    except OSError:
        return PathFact(str(path), None, -1, 0, uid, gid, forbidden, required)
    mode = 0 if stat.S_ISLNK(found.st_mode) else stat.S_IMODE(found.st_mode)
    return PathFact(str(path), found.st_uid, found.st_gid, mode, uid, gid, forbidden, required)


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _group_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _leftovers(state: Path) -> Iterator[str]:
    """What an interrupted act leaves: things that no longer grow, an hour old (younger ones may be at
    work)."""
    if (state / RESTORING).exists():
        yield f"{state / RESTORING}: a restore was interrupted"
    folders = ("quarantine", "trees", "clients", "incoming")
    places = [path for folder in folders for path in (state / folder).glob("*")]
    places += (state / "repos").glob(".new-*")
    for path in [*places, state / "backup"]:
        try:
            age = time.time() - path.lstat().st_mtime
        except OSError:
            continue
        if age > STALE_S:
            yield f"{path}: {age / 3600:.0f} h old"


def _recorded_bases(state: Path) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for path in (state / "agents").glob("*/.uid_base") if os.access(state / "agents", os.R_OK) else ():
        try:
            text = path.read_text()
        except OSError:
            continue
        if text.strip().isdecimal():
            found[path.parent.name] = int(text)
    return found


# ------------------------------------------------------------------------------------------- the host
def _space(config: Config) -> Iterator[Space]:
    seen: set[int] = set()
    for place in (config.state_dir, config.run_dir, "/nix/store"):
        path = Path(place)
        if not path.exists() or path.stat().st_dev in seen:
            continue
        seen.add(path.stat().st_dev)
        room = os.statvfs(path)
        yield Space(
            str(path),
            room.f_bavail * room.f_frsize,
            room.f_blocks * room.f_frsize,
            room.f_favail,
            room.f_files,
        )


def _is_synchronised() -> bool | None:
    """What the kernel knows of who keeps its clock."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else bool(answer != _TIME_ERROR)
