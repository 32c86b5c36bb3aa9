"""All files that are installed on a host: paths and texts, from where this program lies and its settings.

Pure but for looking where the program lies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.config import DEFAULT_PATH, Config
from reconciler.effects.containers import unitfile
from reconciler.units import catalogue
from reconciler.units.model import HEADER, Setting, Unit, setting, word

SOURCE = Path(__file__).resolve().parents[2]
UNITS = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/hyperhive.conf")
TMPFILES = Path("/etc/tmpfiles.d/hyperhive.conf")
COMMAND = Path("/usr/local/bin/hive")
CREDENTIAL = Path("/etc/hyperhive/credential")
HANDED_OVER = f"/run/credentials/{catalogue.GATEWAY}/credential"


@dataclass(frozen=True, slots=True)
class Host:
    """What the files of one host depend on. `build_group` is the build user's primary group: itself, or the
    one that may speak to the Nix daemon."""

    config: Config
    python: str = sys.executable
    source: Path = SOURCE
    config_file: Path = DEFAULT_PATH
    build_group: str = ""

    def values(self) -> dict[str, str]:
        """What stands for the `@names@` of the units."""
        config = self.config
        return {
            "python": word(self.python), "source": word(str(self.source)),
            "config": word(str(self.config_file)), "state": word(config.state_dir),
            "run": word(config.run_dir), "ui_port": str(config.ui_port),
            "ui_user": config.ui_user, "gateway_user": config.gateway_user,
            "operator_group": config.operator_group,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """One file to be there. `ours`: it is brought up to date and removed; else it is only made."""

    path: Path
    text: str
    mode: int = 0o644
    ours: bool = True


def first_config(source: Path = SOURCE) -> dict[str, object]:
    """The configuration of a host that has none."""
    return {
        "driver": "systemd",
        "modules": str(source / "modules"),
        "harness": {"package": str(source / "harness"), "venv": str(source / ".venv-harness")},
        "gateway": {"credential_file": HANDED_OVER, "credential_kind": "api-key"},
    }


def files(host: Host) -> tuple[File, ...]:
    """All of them; the configuration first, which is only made if there is none."""
    values = host.values()
    units = [_with_credential(unit, host) for unit in catalogue.units(host.config.driver)]
    return (
        File(host.config_file, json.dumps(first_config(host.source), indent=2) + "\n", ours=False),
        File(SYSUSERS, _sysusers(host)),
        File(TMPFILES, _tmpfiles(host)),
        *(File(UNITS / unit.name, unit.text(values)) for unit in units),
        File(UNITS / unitfile.TEMPLATE, unitfile.text(host.config, python=host.python, source=host.source)),
        File(COMMAND, _command(host), mode=0o755),
    )


def _with_credential(unit: Unit, host: Host) -> Unit:
    """The gateway's unit hands the credential over if the configuration looks for it there."""
    if unit.name != catalogue.GATEWAY or host.config.gateway.credential_file != HANDED_OVER:
        return unit
    why = "Readable by root only; the gateway gets a copy that nobody else sees."
    service: tuple[Setting, ...] = (
        *unit.sections["Service"],
        setting("LoadCredential", f"credential:{CREDENTIAL}", why),
    )
    return Unit(unit.name, {**unit.sections, "Service": service})


def _sysusers(host: Host) -> str:
    config = host.config
    group = f":{host.build_group}" if host.build_group not in {"", config.build_user} else ""
    lines = [
        HEADER,
        f"g {config.operator_group} -",
        f'u {config.ui_user} - "web server of hyperhive"',
        f'u {config.gateway_user} - "model gateway of hyperhive"',
        f'u {config.build_user} -{group} "builds of hyperhive"',
    ]
    return "\n".join(lines) + "\n"


def _tmpfiles(host: Host) -> str:
    config = host.config
    gateway = f"0700 {config.gateway_user} {config.gateway_user}"
    rows: Mapping[str, str] = {
        # The build user passes through to its trees, and lists nothing.
        config.state_dir: "0711 root root",
        config.run_dir: "0711 root root",
        f"{config.run_dir}/agents": "0711 root root",
        f"{config.state_dir}/gateway": gateway,
        f"{config.run_dir}/gateway": gateway,
    }
    return "\n".join([HEADER, *(f"d {_path(path)} {owner} -" for path, owner in rows.items())]) + "\n"


def _path(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}"' if " " in escaped else escaped


def _command(host: Host) -> str:
    def shell(text: str) -> str:
        return "'" + text.replace("'", "'\\''") + "'"

    return (
        f"#!/bin/sh\n{HEADER}\n"
        f"export PYTHONPATH={shell(str(host.source))} PYTHONSAFEPATH=1\n"
        f'HIVE_RUN="${{HIVE_RUN:-{host.config.run_dir}}}" exec {shell(host.python)} -m reconciler.cli "$@"\n'
    )
