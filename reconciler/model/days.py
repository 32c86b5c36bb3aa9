"""Days of the host's local time, by which budgets are counted: which one an instant belongs to, and when the
next begins.

`zone` None is the host's own. A day begins at the first instant that its date has: where the clocks skip
midnight that is the instant of the change.
"""

from __future__ import annotations

import datetime as dt


def local_day(now: float, zone: dt.tzinfo | None = None) -> str:
    """The date of an instant (epoch seconds) as YYYY-MM-DD."""
    return _local(now, zone).date().isoformat()


def next_midnight(now: float, zone: dt.tzinfo | None = None) -> float:
    """When the day of this instant ends, in epoch seconds: 23, 24 or 25 hours after it began."""
    tomorrow = _local(now, zone).date() + dt.timedelta(days=1)
    midnight = dt.datetime.combine(tomorrow, dt.time.min, zone)
    # The first of two equal times; of one that does not exist, the instant of the change.
    return midnight.replace(fold=0).timestamp()


def days_before(now: float, days: int, zone: dt.tzinfo | None = None) -> str:
    """The date so many days before that of the instant."""
    return (_local(now, zone).date() - dt.timedelta(days=days)).isoformat()


def _local(now: float, zone: dt.tzinfo | None) -> dt.datetime:
    return dt.datetime.fromtimestamp(now, dt.UTC).astimezone(zone)
