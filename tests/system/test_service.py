"""hived, gateway and web server as the units of `hive install-units`, on hosts with systemd as PID 1.

The tests of one host stand in an order: it is installed, serves, is restarted, hangs, is stopped.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from checks.bed import images
from checks.bed.guest import SOURCE, Bed
from checks.bed.images import SUITES
from reconciler.units import catalogue
from reconciler.units.files import first_config
from tests.support.bed import watched as watched_bed

CONFIG = "/etc/hyperhive/config.json"
MODEL = "/run/hive-model/scripted.sock"
ALL = (*catalogue.SOCKETS, *catalogue.SERVICES)
PARTS = 14
# A turn that calls the host all the time, also while it is away.
SCENARIO = {
    "scenarios": [
        {
            "name": "parts",
            "when": {"tools": ["mcp__hyperhive__send"], "prompt": "in parts"},
            "steps": [
                *(
                    {
                        "delay": 0.4,
                        "tools": [
                            {
                                "name": "mcp__hyperhive__send",
                                "input": {"to": "operator", "body": f"part {number}"},
                            }
                        ],
                    }
                    for number in range(PARTS)
                ),
                {"text": "Done."},
            ],
        }
    ]
}
HAMMER = """
import json, pathlib, sys, threading, time
from reconciler.cli.api import Hive
from reconciler.cli.failure import Failure
end, failures, counts, longest = pathlib.Path("/bed/hammer.end"), [], [0] * 3, [0.0] * 3
def work(number):
    while not end.exists():
        began = time.monotonic()
        try:
            Hive().get("/status")
            counts[number] += 1
        except Failure as failure:
            failures.append(failure.message)
        longest[number] = max(longest[number], time.monotonic() - began)
        pathlib.Path(f"/bed/hammer.{number}").write_text(str(counts[number]))
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
pathlib.Path("/bed/hammer.json").write_text(json.dumps([sum(counts), failures, max(longest)]))
"""


class Served:
    """A host on which the hive is installed."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    def hive(self, *arguments: str, check: bool = True) -> Any:
        """`hive … --json`."""
        done = self.bed.run("hive", *arguments, "--json", check=check)
        return json.loads(done.stdout)

    def show(self, unit: str, key: str) -> str:
        return self.bed.run("systemctl", "show", "--value", f"--property={key}", unit).stdout.strip()

    def pid(self) -> int:
        return int(self.show("hived", "MainPID"))

    def is_ready(self) -> bool:
        return self.show("hived", "ActiveState") == "active"

    def invocation(self) -> str:
        return self.show("hived", "InvocationID")


@pytest.fixture(scope="module", params=SUITES)
def host(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Installed as the documentation says; the model is the scripted one."""
    with Bed(images.ensure(request.param)) as bed:
        config = first_config(SOURCE) | {"gateway": {"upstream": f"unix:{MODEL}", "label": "scripted"}}
        bed.path(CONFIG).parent.mkdir(parents=True, exist_ok=True)
        bed.path(CONFIG).write_text(json.dumps(config))
        bed.path("/bed/scenarios").mkdir()
        bed.path("/bed/scenarios/parts.yaml").write_text(json.dumps(SCENARIO))
        bed.run(f"{SOURCE}/.venv/bin/python", "-m", "reconciler.cli", "install-units")
        bed.run(
            *("systemd-run", "--quiet", "--unit=model", "--property=RuntimeDirectory=hive-model"),
            *(f"--setenv=PYTHONPATH={SOURCE}", f"{SOURCE}/.venv/bin/python", "-m", "reconciler.scripted"),
            *("--socket", MODEL, "--socket-mode", "0666", "--log", "/bed/model.log"),
            *("--scenarios", "/bed/scenarios"),
        )
        bed.run("systemctl", "enable", "--quiet", "--now", *ALL)
        yield Served(bed)


@pytest.fixture(autouse=True)
def watched(request: pytest.FixtureRequest, host: Served) -> Iterator[None]:
    """The journal of a host whose test failed."""
    yield from (None for _ in watched_bed(request, host.bed))


def test_it_is_installed_and_installing_it_again_changes_nothing(host: Served) -> None:
    files = [f"/etc/systemd/system/{unit}" for unit in (*ALL, "hive.slice", "hive-agent@.service")]
    verified = host.bed.run("systemd-analyze", "verify", *files)
    assert (verified.stdout, verified.stderr) == ("", "")
    again = host.hive("install-units")
    assert {change["action"] for change in again["changes"]} == {"keep"}
    assert [host.show(unit, "NRestarts") for unit in catalogue.SERVICES] == ["0", "0", "0"]


def test_it_is_ready_when_it_answers_and_its_sockets_are_systemds(host: Served) -> None:
    assert host.show("hived", "StatusText").startswith(("serving", "first read"))
    assert host.hive("status")["driver"] == "systemd"
    modes = host.bed.sh("stat -c '%a %U %G' /run/hyperhive/control.sock /run/hyperhive/ui.sock").stdout
    assert modes.splitlines() == ["660 root hive", "600 hive-ui hive-ui"]
    assert host.show("hived.socket", "NAccepted") == "0", "hived itself accepts"
    page = host.bed.sh("curl -s -o /dev/null -w '%{http_code}' http://localhost:7000/login").stdout
    assert page == "200"


def test_no_service_opens_a_port_but_the_web_server_on_loopback(host: Served) -> None:
    lines = host.bed.run("ss", "-Hltunp").stdout.splitlines()
    ours = [line for line in lines if "python" in line]
    assert len(ours) == 1, lines
    assert "127.0.0.1:7000" in ours[0]


def test_an_agent_is_examined_built_and_started_under_the_hardened_units(host: Served) -> None:
    host.bed.run("hive", "new", "scout", check=False)
    host.bed.until(lambda: _state_of(host, 1) == "pending", "the examination")
    host.hive("approve", "1", "--yes")
    host.bed.until(lambda: _state_of(host, 1) in {"deployed", "failed"}, "the deployment", 60)
    assert _state_of(host, 1) == "deployed"


def test_a_restart_in_the_middle_of_a_turn_loses_nothing_and_refuses_nobody(host: Served) -> None:
    leader = _scout(host)["container"]["leader_pid"]
    host.hive("send", "scout", "answer in parts")
    host.bed.until(lambda: bool(_parts(host)), "the first part of the answer")
    for path in host.bed.path("/bed").glob("hammer.*"):
        path.unlink()
    host.bed.path("/bed/hammer.py").write_text(HAMMER)
    host.bed.run(
        *("systemd-run", "--quiet", "--unit=hammer", f"--setenv=PYTHONPATH={SOURCE}"),
        *(f"{SOURCE}/.venv/bin/python", "/bed/hammer.py"),
    )
    took = []
    for _ in range(2):
        _hammered(host, 10)
        began = time.monotonic()
        host.bed.run("systemctl", "restart", "hived")
        took.append(time.monotonic() - began)
    _hammered(host, 10)
    host.bed.path("/bed/hammer.end").touch()
    result = host.bed.path("/bed/hammer.json")
    host.bed.until(result.exists, "the end of the hammer")
    answered, failures, longest_s = json.loads(result.read_text())
    assert failures == []
    assert answered >= 30
    print(f"\nrestarts {took} s, longest call {longest_s:.2f} s, {answered} calls")

    host.bed.until(lambda: bool(_scout(host)["state"] == "idle"), "the end of the turn", 60)
    assert _parts(host) == [f"part {number}" for number in range(PARTS)]
    kinds = [line["kind"] for line in host.hive("transcript", "scout", "--limit", "500")["items"]]
    assert kinds.count("turn_begin") == kinds.count("turn_end") == 1
    assert kinds.count("tool_call") == kinds.count("tool_result") == PARTS
    assert _scout(host)["container"]["leader_pid"] == leader
    assert host.show("hive-gateway", "NRestarts") == "0"


def test_a_loop_that_no_longer_moves_trips_the_watchdog_and_hived_is_back(host: Served) -> None:
    drop_in = host.bed.path("/run/systemd/system/hived.service.d/soon.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=2s\n")
    host.bed.run("systemctl", "daemon-reload")
    host.bed.run("systemctl", "restart", "hived")
    before, invocation = host.pid(), host.invocation()
    host.bed.run("kill", f"-{signal.SIGSTOP.value}", str(before))
    host.bed.until(lambda: host.invocation() != invocation and host.is_ready(), "the next hived", 30)
    assert host.pid() != before
    assert "watchdog" in host.bed.run("journalctl", "-u", "hived", "-o", "cat").stdout.lower()
    assert host.hive("status")["agents"] == 1
    drop_in.unlink()
    host.bed.run("systemctl", "daemon-reload")


def test_a_stop_takes_less_than_five_seconds_and_agents_go_on(host: Served) -> None:
    leader = _scout(host)["container"]["leader_pid"]
    began = time.monotonic()
    host.bed.run("systemctl", "stop", *catalogue.SOCKETS, "hived")
    assert time.monotonic() - began < 5
    assert host.show("hived", "Result") == "success"
    assert not host.bed.path("/run/hyperhive/control.sock").exists()
    assert host.show("hive-agent@scout", "MainPID") != "0"
    host.bed.run("systemctl", "start", *ALL)
    assert _scout(host)["container"]["leader_pid"] == leader


def test_uninstalling_leaves_the_state_and_no_unit(host: Served) -> None:
    host.hive("uninstall-units")
    assert host.bed.run("systemctl", "list-units", "--no-legend", "hive-agent@*").stdout == ""
    left = host.bed.sh("systemctl list-unit-files --no-legend 'hive*' | cat").stdout
    assert left.strip() == ""
    assert host.bed.path("/var/lib/hyperhive/state.db").exists()
    assert host.bed.path(CONFIG).exists()


def _state_of(host: Served, proposal: int) -> str:
    return str(host.hive("proposals", str(proposal))["state"])


def _scout(host: Served) -> Any:
    return next(agent for agent in host.hive("agents")["items"] if agent["name"] == "scout")


def _parts(host: Served) -> list[str]:
    """What scout has sent to the operator, oldest first."""
    return [
        m["body"] for m in reversed(host.hive("messages", "--limit", "100")["items"]) if m["from"] == "scout"
    ]


def _hammered(host: Served, more: int) -> None:
    def count() -> int:
        return sum(int(path.read_text() or 0) for path in host.bed.path("/bed").glob("hammer.[0-9]"))

    wanted = count() + more
    host.bed.until(lambda: count() >= wanted, "calls of the hammer", 30)
