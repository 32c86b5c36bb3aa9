"""How long the gateway waits for what, and how much it takes at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds.

    `first_byte_s` is for a stream; an answer in one piece may be thought about for `whole_s`. `drain_s`:
    how long a stream is read on after its client has gone, to learn what it cost.
    """

    place_s: float = 60.0
    body_s: float = 30.0
    connect_s: float = 10.0
    first_byte_s: float = 300.0
    whole_s: float = 600.0
    idle_s: float = 120.0
    count_s: float = 10.0
    drain_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one agent: connections, requests that are forwarded at once, bytes of bodies held at once."""

    connections: int = 256
    requests: int = 32
    body_bytes: int = 64 * 1024 * 1024
