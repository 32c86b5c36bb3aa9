"""A whole hive under real units: what dies comes back, is told once, and loses nothing.

The tests share one host per suite with a manager (hm1nd) and an agent (scout), and leave both at work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from checks.bed import images
from checks.bed.guest import Bed
from checks.bed.images import SUITES
from tests.support.bed import watched
from tests.support.hivehost import UNITS, HiveHost

_UNIT = "hive-agent@scout.service"


@pytest.fixture(scope="module", params=SUITES)
def installed(request: pytest.FixtureRequest) -> Iterator[HiveHost]:
    with Bed(images.ensure(request.param)) as bed:
        host = HiveHost(bed)
        try:
            host.install()
            host.hive("new", "hm1nd", "--role", "manager", "--approve", "--wait")
            host.hive("new", "scout", "--allow", "git *", "--approve", "--wait")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{bed.journal()[-8000:]}") from error
        yield host


@pytest.fixture
def host(request: pytest.FixtureRequest, installed: HiveHost) -> Iterator[HiveHost]:
    installed.until_idle("hm1nd", "scout")
    for _ in watched(request, installed.bed):
        yield installed
    # The next test finds a calm hive: `start` forgets earlier crashes.
    installed.hive("start", "scout")


def _last(items: list[dict[str, Any]]) -> int:
    return max((int(one["id"]) for one in items), default=0)


def _told(host: HiveHost, kind: str, after: int) -> list[dict[str, Any]]:
    """Messages of the host to the manager, about ends of containers."""
    return [
        one for one in host.messages("hm1nd") if one["id"] > after and one["body"].startswith(f"{kind}: ")
    ]


def _answers(host: HiveHost, task: str) -> list[str]:
    return [one["body"] for one in host.messages("scout") if one["body"] == f"took {task}"]


def _begin(host: HiveHost, task: str) -> None:
    """Give scout a task, and wait until its turn is under way."""
    host.hive("send", "scout", f"take {task}")
    host.until(lambda: host.agent("scout")["state"] == "thinking", "the turn is under way")


def test_an_agent_is_a_unit_of_its_own_and_answers(host: HiveHost) -> None:
    unit, agent = host.unit(_UNIT), host.agent("scout")
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert unit["ControlGroup"] == f"/hive.slice/{_UNIT}"
    assert agent["container"]["unit"] == _UNIT
    assert agent["container"]["driver"] == "systemd"
    uid_map = host.bed.path(f"/proc/{host.leader('scout')}/uid_map").read_text().split()
    assert uid_map == ["0", str(agent["uid_base"]), "65536"]
    done = host.hive("send", "scout", "what is in your repository?", "--wait")
    assert "I looked at my repository" in done.stdout


def test_units_of_the_hive_are_well(host: HiveHost) -> None:
    for name in UNITS:
        assert host.unit(name)["ActiveState"] == "active", name
    assert host.bed.run("systemctl", "--failed", "--no-legend").stdout == ""
    assert host.bed.run("systemctl", "is-system-running").stdout == "running\n"


@pytest.mark.parametrize("victim", ["leader", "nspawn"])
def test_a_killed_container_is_told_once_and_comes_back(host: HiveHost, victim: str) -> None:
    before, invocation = host.unit(_UNIT), host.unit(_UNIT)["InvocationID"]
    events, messages = host.last_event(), _last(host.messages("hm1nd"))
    pid = host.leader("scout") if victim == "leader" else int(before["MainPID"])
    host.bed.run("kill", "-KILL", str(pid))
    crashed = host.until(lambda: host.events("scout", "agent.crashed", events), "the crash is an event")
    host.until_idle("scout")
    assert [one["data"]["invocation"] for one in crashed] == [invocation]
    assert crashed[0]["data"]["unit"] == _UNIT
    told = _told(host, "container_crash", messages)
    assert len(told) == 1
    assert f"invocation: {invocation}" in told[0]["body"]
    assert "last lines of its console:" in told[0]["body"]
    after = host.unit(_UNIT)
    assert (after["ActiveState"], after["InvocationID"] != invocation) == ("active", True)
    assert len(host.events("scout", "agent.crashed", events)) == 1
    assert host.bed.sh("ls /run/systemd/nspawn/unix-export 2>/dev/null | wc -l").stdout.strip() in {"0", "2"}


def test_a_unit_stopped_by_hand_is_told_and_started_again(host: HiveHost) -> None:
    invocation = host.unit(_UNIT)["InvocationID"]
    events, messages = host.last_event(), _last(host.messages("hm1nd"))
    began = time.monotonic()
    host.bed.run("systemctl", "stop", _UNIT)
    # The harness takes SIGTERM at once; after 3 s the unit would send it to a process that is deaf.
    assert time.monotonic() - began < 3
    host.until(lambda: host.events("scout", "agent.stopped_by_hand", events), "the stop is an event")
    host.until_idle("scout")
    assert host.unit(_UNIT)["InvocationID"] != invocation
    assert len(_told(host, "container_stopped", messages)) == 1
    assert _told(host, "container_crash", messages) == []
    assert host.events("scout", "agent.crashed", events) == []


def test_hived_may_be_killed_while_a_message_is_under_way(host: HiveHost) -> None:
    """And who asks meanwhile waits: systemd holds the sockets."""
    invocation, hived = host.unit(_UNIT)["InvocationID"], host.unit("hived.service")["MainPID"]
    events, task = host.last_event(), f"kill{time.monotonic_ns()}"
    _begin(host, task)
    host.bed.run("kill", "-KILL", hived)
    assert host.hive("status", "--json").status == 0
    host.until(lambda: _answers(host, task), "the answer")
    host.until_idle("scout")
    assert host.unit("hived.service")["MainPID"] not in {"0", hived}
    assert _answers(host, task) == [f"took {task}"]
    assert host.unit(_UNIT)["InvocationID"] == invocation
    assert host.events("scout", "agent.crashed", events) == []


def test_a_container_that_ended_while_hived_was_away_is_told_once(host: HiveHost) -> None:
    events, messages = host.last_event(), _last(host.messages("hm1nd"))
    leader = host.leader("scout")
    host.bed.run("systemctl", "stop", "hived.socket", "hived-ui.socket", "hived.service")
    host.bed.run("kill", "-KILL", str(leader))
    host.bed.until(lambda: host.unit(_UNIT)["ActiveState"] == "failed", "the unit has failed")
    host.bed.run("systemctl", "start", "hived.socket", "hived-ui.socket", "hived.service")
    host.until(lambda: host.events("scout", "agent.crashed", events), "the crash is an event")
    host.until_idle("scout")
    assert len(host.events("scout", "agent.crashed", events)) == 1
    assert len(_told(host, "container_crash", messages)) == 1


def test_crashes_are_seen_after_the_bus_went_and_systemd_executed_itself_anew(host: HiveHost) -> None:
    host.bed.run("systemctl", "daemon-reexec")
    host.bed.run("systemctl", "restart", "dbus.service")
    invocation, hived = host.unit(_UNIT)["InvocationID"], host.unit("hived.service")["MainPID"]
    events = host.last_event()
    host.bed.run("kill", "-KILL", str(host.leader("scout")))
    crashed = host.until(lambda: host.events("scout", "agent.crashed", events), "the crash is an event")
    assert [one["data"]["invocation"] for one in crashed] == [invocation]
    host.until_idle("scout")
    assert host.unit("hived.service")["MainPID"] == hived


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_the_machine_may_go_while_a_message_is_under_way(host: HiveHost, how: str) -> None:
    """Its agents come back with it, the message is answered once, and no crash is told."""
    events, messages, task = host.last_event(), _last(host.messages("hm1nd")), f"boot{time.monotonic_ns()}"
    generation = host.agent("scout")["generation"]
    _begin(host, task)
    if how == "reboot":
        host.bed.reboot()
    else:
        host.bed.cut()
        host.bed.boot()
    host.until(lambda: _answers(host, task), "the answer")
    host.until_idle("hm1nd", "scout")
    assert _answers(host, task) == [f"took {task}"]
    assert host.agent("scout")["generation"] == generation
    for kind in ("agent.crashed", "agent.stopped_by_hand"):
        assert host.events("scout", kind, events) + host.events("hm1nd", kind, events) == []
    assert _told(host, "container_crash", messages) + _told(host, "container_stopped", messages) == []


def test_a_stopped_agent_leaves_no_process_mount_or_machine(host: HiveHost) -> None:
    host.hive("stop", "scout")
    host.bed.until(lambda: host.unit(_UNIT)["ActiveState"] in {"inactive", "failed"}, "the unit has ended")
    assert not host.bed.path(f"/sys/fs/cgroup/hive.slice/{_UNIT}").exists()
    assert "scout" not in host.bed.run("findmnt", "--list", "--noheadings", "--output=TARGET").stdout
    assert "scout" not in host.bed.run("machinectl", "list", "--no-legend").stdout
    assert host.bed.sh("ls /run/systemd/nspawn/propagate | grep -c scout || true").stdout.strip() == "0"
