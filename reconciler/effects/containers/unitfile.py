"""The text of the template unit `hive-agent@.service`, and how another text differs from it.

One text for `hive install-units`, for the driver that looks whether it is still so, and (declared in Nix) for
the host module. Pure but for where this program lies.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from reconciler.config import Config

TEMPLATE = "hive-agent@.service"
SLICE = "hive.slice"
START_S = 20
STOP_S = 15
_SOURCE = Path(__file__).resolve().parents[3]

# The sections and keys are systemd's. `-`: a failure of the note must not change the result of the unit.
_TEXT = """\
# Made by `hive install-units`; hived rewrites it when it differs from what its version needs.
[Unit]
Description=hyperhive: the agent %i
# Going down, hived ends first, and asks nobody back.
Before=hived.service
# How often a crashed agent is started again is decided by hived.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{environment}
ExecStart={command} start {directory}
ExecStop=-{command} stop {directory}
ExecStopPost=-{command} ended {directory}
Restart=no
KillMode=mixed
KillSignal=SIGTERM
TimeoutStartSec={start_s}
TimeoutStopSec={stop_s}
Slice={slice}
Delegate=yes
# One process that ends for want of memory is the agent's own matter, unless the agent ends with it.
OOMPolicy=continue
OOMScoreAdjust=300
UMask=0077
StandardInput=null
StandardOutput=journal
StandardError=journal
SyslogIdentifier=hive-%i
# The console is hostile: no priorities of its own, and not more than the journal can bear.
SyslogLevelPrefix=no
LogRateLimitIntervalSec=10
LogRateLimitBurst=2000
"""


def unit_name(name: str) -> str:
    """The unit of an agent."""
    return TEMPLATE.replace("@", f"@{name}")


def text(config: Config, *, python: str = sys.executable, source: Path = _SOURCE) -> str:
    """The whole file. `python` is the interpreter and `source` the directory of the package `reconciler`
    that the unit's commands use: by default those of the running program."""
    containers = Path(config.state_dir) / "containers"
    environment = {
        "PYTHONPATH": str(source),
        # The product's files may be read-only; each start would compile the helper anew.
        "PYTHONPYCACHEPREFIX": str(containers / ".compiled"),
    }
    return _TEXT.format(
        environment="\n".join(
            f"Environment={_quoted(f'{key}={value}')}" for key, value in environment.items()
        ),
        command=f"{_argument(python)} -S -P -m reconciler.effects.containers.unit",
        directory=_argument(str(containers), "/%i"),
        start_s=START_S,
        stop_s=STOP_S,
        slice=SLICE,
    )


def differences(wanted: str, found: str) -> list[str]:
    """Settings of `wanted` that `found` lacks or has otherwise, and more commands than wanted, as
    `Key=`; empty if both mean the same to systemd. More settings (of the host's module) are no difference."""
    ours, theirs = _settings(wanted), _settings(found)
    differing = []
    for key, values in ours.items():
        if key == "Environment":
            if not set(values) <= set(theirs[key]):
                differing.append(key)
        elif theirs[key] != values:
            differing.append(key)
    differing += [key for key in theirs if key.startswith("Exec") and key not in ours]
    return [f"{key}=" for key in sorted(differing)]


def _settings(text: str) -> defaultdict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            found[key.strip()].append(" ".join(value.replace('"', "").split()))
    return found


def _argument(word: str, end: str = "") -> str:
    """A word of a command line as systemd reads it; `end` may have specifiers."""
    return _quoted(word.replace("$", "$$"), end)


def _quoted(word: str, end: str = "") -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}{end}"' if any(c in escaped for c in " \t'\"\\;$") else f"{escaped}{end}"


__all__ = ["SLICE", "TEMPLATE", "differences", "text", "unit_name"]
