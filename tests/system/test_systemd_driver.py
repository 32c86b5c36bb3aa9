"""The systemd driver on hosts with systemd as PID 1, in both versions of it that Debian has."""

from __future__ import annotations

import json
import os
from typing import Any

from checks.bed.guest import SOURCE, Bed
from tests.support.bed import pytest_in_bed

# Every crash of a row is a start and an end of about 0.3 s; long rows are for `make test-full`.
_FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
_CRASHES = 200 if _FULL else 40
_PYTHON = f"{SOURCE}/.venv/bin/python"
_PLACE = "/bed/hived"
_HIVED = """
export HIVE_CONFIG={place}/config.json HIVE_STATE={place}/state HIVE_RUN={place}/run
printf '[Service]\\nExecStart=/bin/sleep infinity\\n' > /etc/systemd/system/container@.service
systemctl daemon-reload
systemctl start container@other
{python} -m reconciler > {place}/log 2>&1 &
hived=$!
until {python} -m reconciler.cli status > /dev/null 2>&1; do sleep 0.1; kill -0 $hived; done
systemctl restart dbus
systemctl kill --signal=KILL container@other
until {python} -m reconciler.cli events --json | grep -q foreign.changed; do sleep 0.1; kill -0 $hived; done
{python} -m reconciler.cli events --json
kill $hived
wait $hived
systemctl reset-failed container@other
rm /etc/systemd/system/container@.service
systemctl daemon-reload
"""


def _agent(bed: Bed, verb: str) -> dict[str, Any]:
    done = bed.run(_PYTHON, "-m", "tests.system.inside.agent", verb)
    status = json.loads(done.stdout)
    assert isinstance(status, dict)
    return status


def test_the_systemd_driver_keeps_the_contract_of_all_drivers(bed: Bed) -> None:
    results = pytest_in_bed(
        bed, "tests/contract/test_containers.py", env={"HIVE_TEST_DRIVER": "systemd"}, timeout_s=240
    )
    assert len(results) >= 20
    assert all("[systemd]" in result.name for result in results)


def test_whoever_dies_or_meddles_is_seen_and_nothing_is_left(bed: Bed) -> None:
    results = pytest_in_bed(
        bed, "tests/system/inside/systemd_driver.py",
        env={"HIVE_TEST_CRASHES": str(_CRASHES)}, timeout_s=280,
    )  # fmt: skip
    assert len(results) >= 15


def test_after_a_power_cut_and_a_reboot_of_the_host_its_containers_are_known_to_have_ended(
    fresh_bed: Bed,
) -> None:
    started = _agent(fresh_bed, "start")
    assert started["phase"] == "running"
    fresh_bed.cut()
    fresh_bed.boot()
    after = _agent(fresh_bed, "status")
    assert (after["phase"], after["host_restarted"], after["names"]) == ("exited", True, ["probe"])
    assert (after["invocation"], after["result"]) == (started["invocation"], "")
    again = _agent(fresh_bed, "start")
    assert again["invocation"] != started["invocation"]
    # A frozen unit costs systemd 257 its whole stop time-out on the way down; 252 thaws it.
    thaws = fresh_bed.image.suite == "bookworm"
    if thaws or _FULL:
        assert _agent(fresh_bed, "freeze")["frozen"]
    fresh_bed.reboot()
    after = _agent(fresh_bed, "status")
    assert (after["phase"], after["host_restarted"], after["frozen"]) == ("exited", True, False)
    assert after["invocation"] == again["invocation"]
    if thaws:
        assert (after["exit_code"], after["result"], after["stop_asked"]) == (0, "success", True)


def test_hived_drives_systemd_and_tells_of_the_hosts_own_containers(bookworm: Bed) -> None:
    config = {
        "driver": "systemd", "state_dir": f"{_PLACE}/state", "run_dir": f"{_PLACE}/run", "ui_user": "root",
        "gateway_user": "root", "build_user": "root", "operator_group": "root",
    }  # fmt: skip
    bookworm.path(_PLACE).mkdir()
    bookworm.path(f"{_PLACE}/config.json").write_text(json.dumps(config))
    told = json.loads(bookworm.sh(_HIVED.format(place=_PLACE, python=_PYTHON), timeout_s=60).stdout)
    (event,) = [event for event in told["items"] if event["kind"] == "foreign.changed"]
    assert event["data"] == {"unit": "container@other.service", "state": "failed", "result": "signal"}
