"""The systemd driver on hosts with systemd as PID 1, in both versions of it that Debian has."""

from __future__ import annotations

from checks.bed.guest import Bed
from tests.support.bed import pytest_in_bed

_ENVIRONMENT = {"HIVE_TEST_DRIVER": "systemd"}


def test_the_systemd_driver_keeps_the_contract_of_all_drivers(bed: Bed) -> None:
    results = pytest_in_bed(bed, "tests/contract/test_containers.py", "-k", "systemd", env=_ENVIRONMENT)
    assert len(results) >= 20
