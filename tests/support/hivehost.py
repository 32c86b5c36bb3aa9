"""A hive on a bed, installed as an operator installs one: `hive install-units`, real units, `hive`.

Only the model is not the real one: a unit of the bed's serves the scenarios to the gateway over a socket.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from checks.bed.guest import SOURCE, Bed, Done
from reconciler.cli.api import Hive
from reconciler.cli.failure import Failure

T = TypeVar("T")

PYTHON = f"{SOURCE}/.venv/bin/python"
UNITS = ("hived.socket", "hived-ui.socket", "hived.service", "hive-gateway.service", "hive-ui.service")
_AWAY_S = 20.0
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

    def get(
        self,
        path: str,
        *,
        agent: str | None = None,
        kind: str | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> Any:
        """What the control API answers, asked from outside the guest: a command of it would cost 0.3 s.

        While hived is away it is asked again.
        """
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return Hive(str(self.bed.path("/run/hyperhive/control.sock"))).get(
                    path, agent=agent, kind=kind, after=after, limit=limit
                )
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def agent(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/agents/{name}"))

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
            found = {one["name"]: one for one in self.get("/agents")["items"]}
            return all(found[name]["state"] == "idle" and not found[name]["inbox_depth"] for name in names)

        self.until(look, f"{' and '.join(names)} at rest")

    def events(self, agent: str, kind: str, after: int = 0) -> list[dict[str, Any]]:
        """Events of an agent after that number, oldest first."""
        found = self.get("/events", agent=agent, kind=kind, after=after, limit=500)["items"]
        return [dict(one) for one in found]

    def last_event(self) -> int:
        """The number of the newest event of all."""
        return int(self.get("/status")["last_event_id"])

    def messages(self, agent: str) -> list[dict[str, Any]]:
        """The newest messages from and to an agent, oldest first."""
        found = self.get("/messages", agent=agent, limit=200)["items"]
        return sorted(found, key=lambda one: int(one["id"]))
