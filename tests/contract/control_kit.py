"""Requests that fit each route of the control API."""

from __future__ import annotations

from typing import Any

from reconciler.control.call import Route
from reconciler.control.client import SESSION_HEADER
from tests.fakes.objects import DIGEST

BODIES: dict[str, Any] = {
    "NewAgent": {"name": "scribe"},
    "Purge": {"confirm": "scout"},
    "SetModel": {"model": "opus"},
    "RaiseBudget": {"usd": 1.5},
    "NewMessage": {"to": "scout", "body": "hello"},
    "Propose": {"agent": "smith", "commit": "0" * 40},
    "Approve": {"digest": DIGEST},
    "Login": {"token": "tok"},
    "NapAgent": {"seconds": 60},
    "DecideLoop": {"deliver": True},
    "Scrape": {"token": "right"},
}


def body_of(route: Route) -> object:
    return None if route.request is None else BODIES.get(route.request.__name__, {})


def path_of(route: Route) -> str:
    path = route.path.replace("{name}", "scout").replace("{id}", "1").replace("{peer}", "hm1nd")
    return path.replace("{attachment}", "0" * 16)


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def session(secret: str) -> dict[str, str]:
    return {SESSION_HEADER: secret}
