"""From a message sent to the request at the model, in a warm session."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from bench.figures import Figure
from tests.support.demohive import DemoHive

AGENT = "scout"


def requests_of(demo: DemoHive, agent: str) -> list[dict[str, Any]]:
    """What the scripted model was asked by `agent`, oldest first."""
    lines = demo.state_file("log", "requests.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if entry.get("agent") == agent and entry["path"] == "/v1/messages"]


def measure(demo: DemoHive, samples: int, bare_ms: list[float]) -> list[Figure]:
    """Times in milliseconds; the session is warmed by one turn first."""
    demo.hive("send", AGENT, "warm up", "--wait")
    taken = []
    for number in range(samples):
        before = len(requests_of(demo, AGENT))
        demo.until(lambda: demo.agent(AGENT)["state"] == "idle", "the agent rests")
        demo.hive("send", AGENT, f"bench {number}", "--wait")
        first = requests_of(demo, AGENT)[before]
        sent = next(
            m for m in demo.json("messages", "--agent", AGENT)["items"] if m["body"] == f"bench {number}"
        )
        at = dt.datetime.fromisoformat(sent["sent_at"]).timestamp()
        taken.append((first["at"] - at) * 1000)
    return [
        Figure(
            "message sent → request at the model, warm",
            "ms",
            taken,
            "a bare `claude --print`, start → request",
            bare_ms,
        )
    ]
