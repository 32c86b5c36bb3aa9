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


def _agent(bed: Bed, verb: str) -> dict[str, Any]:
    done = bed.run(f"{SOURCE}/.venv/bin/python", "-m", "tests.system.inside.agent", verb)
    status = json.loads(done.stdout)
    assert isinstance(status, dict)
    return status


def test_the_systemd_driver_keeps_the_contract_of_all_drivers(bed: Bed) -> None:
    results = pytest_in_bed(
        bed, "tests/contract/test_containers.py", env={"HIVE_TEST_DRIVER": "systemd"}, timeout_s=120
    )
    assert len(results) >= 20
    assert all("[systemd]" in result.name for result in results)


def test_whoever_dies_or_meddles_is_seen_and_nothing_is_left(bed: Bed) -> None:
    results = pytest_in_bed(
        bed, "tests/system/inside/systemd_driver.py",
        env={"HIVE_TEST_CRASHES": str(_CRASHES)}, timeout_s=240,
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
