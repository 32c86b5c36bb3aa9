"""What runs in the demo's world, as whom, with which configuration.

The same processes, users and paths as on a real host; only their supervisor differs (`supervisor.py` instead
of systemd).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = "/opt/hyperhive"
STATE = "/var/lib/hyperhive"
RUN = "/run/hyperhive"
PYTHON = f"{SOURCE}/.venv/bin/python"
CONFIG_FILE = "/etc/hyperhive/config.json"
CREDENTIAL_FILE = "/etc/hyperhive/credential"
SCRIPTED_SOCKET = "/run/hyperhive-model/scripted.sock"
SERVICES_FILE = Path("/run/supervisor.json")
MODEL_LOG = f"{STATE}/log/requests.jsonl"
REAL_UPSTREAM = "https://api.anthropic.com"

ENVIRONMENT = {
    "HOME": "/",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": SOURCE,
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "NIX_REMOTE": "daemon",
}


@dataclass(frozen=True, slots=True)
class User:
    """A user of the world, known in its own /etc only. On disk its files belong to the bare number."""

    name: str
    uid: int
    home: str = "/nonexistent"
    groups: tuple[str, ...] = ()


# Numbers that neither Debian nor agents' ranges (from 1048576) use.
UI = User("hive-ui", 64101)
GATEWAY = User("hive-gateway", 64102)
BUILD = User("hive-build", 64103, home=f"{STATE}/build")
SCRIPTED = User("hive-scripted", 64104)
OPERATORS_GID = 64100
NIX_BUILDERS_GID = 30000
NIX_BUILDERS = tuple(User(f"nixbld{n}", NIX_BUILDERS_GID + n, groups=("nixbld",)) for n in range(1, 9))
SERVICE_USERS = (UI, GATEWAY, BUILD, SCRIPTED)


@dataclass(frozen=True, slots=True)
class Credential:
    """What the gateway adds to requests: `kind` is "api-key" or "bearer"."""

    secret: str
    kind: str

    def __repr__(self) -> str:
        return f"Credential({self.kind})"


@dataclass(frozen=True, slots=True)
class Listening:
    """A unix socket that the supervisor listens at for a service: who connects while it is away, waits."""

    name: str
    path: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Service:
    """One long-running process. It is started again when it ends, with a growing delay.

    `is_watcher`: it reacts to the end of others, so it is ended before them. `sockets` are passed to it as
    systemd passes them (sd_listen_fds(3)); at most one service has some.
    """

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    uid: int = 0
    gid: int = 0
    is_watcher: bool = False
    sockets: tuple[Listening, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Service:
        """The inverse of `dataclasses.asdict`, after its detour through JSON."""
        sockets = tuple(Listening(**entry) for entry in data["sockets"])
        return cls(**data | {"argv": tuple(data["argv"]), "sockets": sockets})


# Names, owners and modes as in the units of a real host.
HIVED_SOCKETS = (
    Listening("control.sock", f"{RUN}/control.sock", 0o660, 0, OPERATORS_GID),
    Listening("ui.sock", f"{RUN}/ui.sock", 0o600, UI.uid, UI.uid),
)


def configuration(port: int, credential: Credential | None) -> dict[str, object]:
    """/etc/hyperhive/config.json of the world, as reconciler/config.py reads it."""
    gateway: dict[str, object] = {"upstream": f"unix:{SCRIPTED_SOCKET}", "label": "the scripted model"}
    if credential is not None:
        gateway = {
            "upstream": REAL_UPSTREAM,
            "label": "the Anthropic API",
            "credential_file": CREDENTIAL_FILE,
            "credential_kind": credential.kind,
        }
    return {
        "platform": "bare",
        "driver": "shim",
        "ui_port": port,
        "modules": f"{SOURCE}/modules",
        "gateway": gateway,
        "harness": {"package": f"{SOURCE}/harness", "venv": f"{SOURCE}/.venv-harness"},
    }


def services(port: int, *, scripted: bool, proxies: dict[str, str]) -> tuple[Service, ...]:
    """In the order of their start. `proxies`: the host's settings, for the one that goes out."""
    model = (
        _python(
            "model",
            "reconciler.scripted",
            *("--socket", SCRIPTED_SOCKET),
            *("--scenarios", f"{SOURCE}/reconciler/scripted/scenarios"),
            *("--log", MODEL_LOG),
            user=SCRIPTED,
        ),
    )
    return (
        Service("nix-daemon", ("nix-daemon",), ENVIRONMENT | {"NIX_REMOTE": ""}),
        *(model if scripted else ()),
        _python("gateway", "reconciler.gateway", user=GATEWAY, environment=proxies),
        dataclasses.replace(_python("hived", "reconciler"), is_watcher=True, sockets=HIVED_SOCKETS),
        dataclasses.replace(_python("ui", "ui", "--port", str(port), user=UI), is_watcher=True),
    )


def _python(
    name: str,
    module: str,
    *arguments: str,
    user: User | None = None,
    environment: dict[str, str] | None = None,
) -> Service:
    uid = user.uid if user else 0
    argv = (PYTHON, "-m", module, *arguments)
    return Service(name, argv, ENVIRONMENT | (environment or {}), uid, uid)


# ---------------------------------------------------------------------------- what the supervisor is told
def write_services(path: Path, services: tuple[Service, ...]) -> None:
    """The list that the supervisor reads. Here and not there: it is written where nothing is installed."""
    path.write_text(json.dumps([dataclasses.asdict(service) for service in services]))
    path.chmod(0o600)


def read_services(path: Path) -> tuple[Service, ...]:
    """The inverse of `write_services`."""
    return tuple(Service.from_json(entry) for entry in json.loads(path.read_text()))
