"""From the start of a container to its harness's hello, over restarts of one agent."""

from __future__ import annotations

import datetime as dt
import functools
import json
from typing import Any

from bench.figures import Figure
from tests.support.demohive import DemoHive

AGENT = "smith"


def measure(demo: DemoHive, samples: int) -> list[Figure]:
    """Milliseconds from the shim's recorded start to the event of the hello, and from the operator's restart
    to the agent being idle again."""
    whole, hello = [], []
    for _ in range(samples):
        before = demo.agent(AGENT)["container"]["leader_pid"]
        last = max((e["id"] for e in _events(demo)), default=0)
        demo.hive("restart", AGENT)
        demo.until(functools.partial(_is_back, demo, before), "the agent is back")
        record = json.loads(demo.state_file("containers", AGENT, "record.json").read_text())
        events = [e for e in _events(demo) if e["id"] > last and e["kind"] == "agent.state"]
        idle = next(e for e in events if e["data"].get("state") == "idle")
        hello.append((_epoch(idle["ts"]) - float(record["started_at"])) * 1000)
        first = events[0]
        whole.append((_epoch(idle["ts"]) - _epoch(first["ts"])) * 1000)
    return [
        Figure("container start → harness hello", "ms", hello),
        Figure("stop seen → idle again after a restart", "ms", whole),
    ]


def _is_back(demo: DemoHive, before: int) -> bool:
    agent = demo.agent(AGENT)
    return bool(agent["state"] == "idle" and agent["container"]["leader_pid"] not in {before, None})


def _events(demo: DemoHive) -> list[dict[str, Any]]:
    return list(demo.json("events", "--agent", AGENT)["items"])


def _epoch(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()
