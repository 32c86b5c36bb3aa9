"""Agents on their sockets, as the harness speaks there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from harness import wire
from reconciler.control.agentcalls import AgentRoute
from reconciler.control.meters import RATES, Rate
from reconciler.model.names import AgentName
from tests.fakes.objects import COMMIT
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Answer, Api, until

SCOUT, MANAGER = AgentName("scout"), AgentName("hm1nd")
BASE = 1048576
BOOT = "ab" * 16
HEADERS = {wire.WIRE_HEADER: "1", wire.BOOT_HEADER: BOOT}
KEY = "k" * 8
UNBOUNDED = {sort: Rate(1e9, 1e9) for sort in RATES}
BODIES: dict[str, Any] = {
    "Hello": {"wire": 1, "boot": BOOT},
    "SendMessage": {"to": "manager", "body": "done", "key": KEY},
    "BeginTurn": {"lease": None, "key": KEY},
    "TurnEvents": {"events": [{"seq": 1, "at": "now", "kind": "text", "data": {"text": "hi"}}]},
    "EndTurn": {"outcome": "ok"},
    "AskOperator": {"question": "which?", "key": KEY},
    "Nap": {"seconds": 5},
    "Status": {"text": "busy"},
    "SpawnDraft": {"name": "scribe"},
    "Spawn": {"name": "scribe"},
}


def socket_of(place: Path, name: str) -> Path:
    return place / "run" / "agents" / name / "agent.sock"


def path_of(route: AgentRoute, name: str = "smith") -> str:
    path = route.path.replace("{name}", name).replace("{id}", "1")
    return f"{path}?commit={COMMIT}" if route.uploads else path


def form(**parts: bytes) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, content in parts.items():
        data.add_field(name, content, filename=name)
    return data


async def post_form(api: Api, path: str, data: aiohttp.FormData) -> Answer:
    async with api._http.post(f"http://hive{path}", data=data) as answer:
        return Answer(answer.status, dict(answer.headers), await answer.read())


async def called(services: FakeServices, name: str) -> None:
    """Wait until the fake broker has been called."""
    await until(lambda: name in [call for call, _ in services.broker.calls])
