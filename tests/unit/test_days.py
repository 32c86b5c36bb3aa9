"""Days of the host's local time begin and end where the clocks of the place say so."""

from __future__ import annotations

import datetime as dt
import os
import time
import zoneinfo
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.days import days_before, local_day, next_midnight

# Clocks that change at midnight, at the hour, by half an hour, never; and one a day ahead of the other.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/Havana", "Africa/Cairo",
    "Asia/Beirut", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago",
)  # fmt: skip


@given(st.sampled_from(ZONES), st.integers(1_700_000_000_000, 2_000_000_000_000))
def test_a_day_ends_when_the_next_date_begins(zone: str, now_ms: int) -> None:
    place, now = zoneinfo.ZoneInfo(zone), now_ms / 1000
    end = next_midnight(now, place)
    assert 0 < end - now <= 25 * 3600
    assert local_day(end - 0.001, place) == local_day(now, place)
    assert local_day(end, place) == days_before(now, -1, place)


@pytest.mark.parametrize(("zone", "day", "hours"), [
    ("Europe/Berlin", (2026, 3, 29), 23), ("Europe/Berlin", (2026, 10, 25), 25),
    ("Europe/Berlin", (2026, 11, 23), 24), ("Africa/Cairo", (2026, 4, 24), 23),
])  # fmt: skip
def test_days_on_which_clocks_change_are_shorter_and_longer(
    zone: str, day: tuple[int, int, int], hours: int
) -> None:
    place = zoneinfo.ZoneInfo(zone)
    noon_before = dt.datetime.combine(dt.date(*day), dt.time(12), place) - dt.timedelta(days=1)
    begin = next_midnight(noon_before.timestamp(), place)
    assert next_midnight(begin, place) - begin == hours * 3600


@pytest.fixture
def host_zone(request: pytest.FixtureRequest) -> Iterator[str]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield request.param
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize("host_zone", ["Europe/Berlin", "Africa/Cairo", "America/Havana"], indirect=True)
def test_without_a_zone_it_is_the_hosts(host_zone: str) -> None:
    place = zoneinfo.ZoneInfo(host_zone)
    for hours in range(0, 24 * 366, 5):
        now = 1_790_000_000.0 + 3600 * hours
        assert (local_day(now), next_midnight(now)) == (local_day(now, place), next_midnight(now, place))
