"""Instants: microseconds since the epoch inside, RFC 3339 in UTC on the outside. Pure."""

from __future__ import annotations

import datetime as dt

MICRO = 1_000_000


def stamp(micros: int) -> str:
    """RFC 3339 in UTC with milliseconds, of microseconds since the epoch."""
    moment = dt.datetime.fromtimestamp(micros / MICRO, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stamp_or_none(micros: int | None) -> str | None:
    """The same for an instant that may be absent."""
    return None if micros is None else stamp(micros)


def parse_stamp(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 instant; `ValueError` if it is none or names no zone."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return round(moment.timestamp() * MICRO)


def micros(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return int(seconds * MICRO)
