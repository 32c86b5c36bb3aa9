"""A hive on a bed, installed as an operator installs one: `hive install-units`, real units, `hive`.

Only the model is not the real one: a unit of the bed's serves the scenarios to the gateway over a socket.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from checks.bed.guest import SOURCE, Bed, Done

T = TypeVar("T")

PYTHON = f"{SOURCE}/.venv/bin/python"
UNITS = ("hived.socket", "hived-ui.socket", "hived.service", "hive-gateway.service", "hive-ui.service")
_MODEL_SOCKET = "/run/hyperhive-model/model.sock"
_CONFIG = {
    "driver": "systemd",
    "modules": f"{SOURCE}/modules",
    "harness": {"package": f"{SOURCE}/harness", "venv": f"{SOURCE}/.venv-harness"},
    "gateway": {"upstream": f"unix:{_MODEL_SOCKET}", "label": "the scripted model"},
}
_MODEL = f"""\
[Service]
Type=exec
DynamicUser=yes
RuntimeDirectory=hyperhive-model
Environment=PYTHONPATH={SOURCE} PYTHONDONTWRITEBYTECODE=1
ExecStart={PYTHON} -m reconciler.scripted --socket {_MODEL_SOCKET} --socket-mode 666 \\
  --scenarios /bed/scenarios
Restart=always
[Install]
WantedBy=multi-user.target
"""
# The product's own scenarios, and one that is under way long enough to do something to the hive meanwhile.
_UNDER_WAY = r"""
scenarios:
  - name: under-way
    when:
      tools: [mcp__hyperhive__send]
      prompt: '(?m)^\[message (?P<message>\d+) from operator,[^\n]*\]\n\| take (?P<task>\w+)'
    steps:
      - delay: 2
        tools:
          - name: mcp__hyperhive__send
            input: {to: operator, body: 'took ${task}', in_reply_to: '${message|int}'}
      - text: Done.
"""


class HiveHost:
    """The hive of one bed. Everything is done with the `hive` command and systemctl, as by its operator."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    def install(self) -> None:
        """Install and start all services."""
        bed = self.bed
        bed.sh("mkdir -p /etc/hyperhive /bed/scenarios")
        bed.sh(f"cp {SOURCE}/reconciler/scripted/scenarios/*.yaml /bed/scenarios")
        bed.path("/bed/scenarios/05-bed.yaml").write_text(_UNDER_WAY)
        bed.path("/etc/hyperhive/config.json").write_text(json.dumps(_CONFIG))
        bed.path("/etc/systemd/system/hive-model.service").write_text(_MODEL)
        bed.run(PYTHON, "-m", "reconciler.cli", "install-units")
        bed.run("systemctl", "enable", "--now", "hive-model.service", *UNITS)

    def hive(self, *arguments: str, check: bool = True, timeout_s: float = 90.0) -> Done:
        """Run `hive`, as root."""
        return self.bed.run("/usr/local/bin/hive", *arguments, check=check, timeout_s=timeout_s)

    def json(self, *arguments: str) -> Any:
        """What `hive … --json` prints."""
        return json.loads(self.hive(*arguments, "--json").stdout)

    def agent(self, name: str) -> dict[str, Any]:
        return dict(self.json("agents", name))

    def unit(self, name: str) -> dict[str, str]:
        """Properties of a unit: state, result, main process, invocation."""
        keys = "ActiveState,SubState,Result,MainPID,InvocationID,ControlGroup,NRestarts"
        lines = self.bed.run("systemctl", "show", f"--property={keys}", name).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def leader(self, name: str) -> int:
        """The first process of an agent's container, by the guest's own count; 0 if there is none."""
        return int(self.agent(name)["container"]["leader_pid"] or 0)

    def until(self, look: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
        """Look until what is seen is true, and return it."""
        seen: list[T] = []

        def condition() -> bool:
            seen[:] = [look()]
            return bool(seen[0])

        self.bed.until(condition, what, timeout_s)
        return seen[0]

    def until_idle(self, *names: str) -> None:
        """Wait until these agents are at rest with empty inboxes."""

        def look() -> bool:
            found = {one["name"]: one for one in self.json("agents")["items"]}
            return all(found[name]["state"] == "idle" and not found[name]["inbox_depth"] for name in names)

        self.until(look, f"{' and '.join(names)} at rest")

    def events(self, agent: str, kind: str = "", after: int = 0) -> list[dict[str, Any]]:
        """Events of an agent, oldest first."""
        found = self.json("events", "--agent", agent, "--limit", "500")["items"]
        return sorted(
            (one for one in found if one["id"] > after and (not kind or one["kind"] == kind)),
            key=lambda one: int(one["id"]),
        )

    def messages(self, agent: str) -> list[dict[str, Any]]:
        """Messages from and to an agent, oldest first."""
        found = self.json("messages", "--agent", agent, "--limit", "200")["items"]
        return sorted(found, key=lambda one: int(one["id"]))
