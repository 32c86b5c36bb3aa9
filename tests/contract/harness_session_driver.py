"""Runs a `harness.session.Session` alone, driven by lines of JSON: started by its contract tests inside a
container.

In: `{"run": prompt, "command"?: bool}`, `{"interrupt": true}`, `{"model": name}`, `{"close": true}`,
`{"rules": {…}}` for other rules of the policy, `{"broken": how}` for one that crashes or hangs.
Out: `{"event": kind, "data": …}` as they come, `{"facts": …}` at the end of each run, `{"tool": name,
"arguments": …}` for each call of its one tool, `{"ready": true}` after the other commands.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config import Config, agent_environment, cli_environment
from harness.forward import Forwarder
from harness.policy.engine import Policy, Rules
from harness.programs import AgentPrograms
from harness.session import Session, Settings
from harness.spec import McpServer
from harness.tools.tool import Tool, arguments_schema, text

SESSION = "6f1d3f52-3b8e-4f0a-9f54-0d5a8a3f0009"


def say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Broken:
    """A policy that does not decide."""

    def __init__(self, how: str) -> None:
        self._how = how

    async def decide(self, *_call: object) -> Any:
        if self._how == "hangs":
            await asyncio.Event().wait()
        if self._how == "talks rubbish":
            return "certainly"
        raise RuntimeError("a bug")


def rules_of(order: Mapping[str, Any]) -> Rules:
    return Rules(
        allow=tuple(order.get("allow", ())),
        deny=tuple(order.get("deny", ())),
        tools=tuple(order.get("tools", ("Read", "Write"))),
        roots=("/state", "/config", "/home/agent"),
        work_tree=("/state", "/config"),
        mcp_tools=frozenset(order.get("mcp_tools", ())),
        values={"HOME": "/home/agent"},
    )


async def send(arguments: Mapping[str, Any]) -> str:
    say({"tool": "send", "arguments": dict(arguments)})
    return "sent as message 1"


async def main() -> None:
    config = Config.from_environment({"HIVE_STALL_S": "60", "HIVE_API_RETRIES": "0", **os.environ})
    environment = cli_environment("scout", config) | json.loads(os.environ.get("CLI_ENVIRONMENT", "{}"))
    environment["SERVERS"] = os.environ.get("SERVERS", "{}")
    model = os.environ.get("MODEL", "claude-sonnet-5")
    os.environ.clear()
    os.environ["PATH"] = "/usr/bin:/bin"
    programs = AgentPrograms(agent_environment("scout", config))

    async def resolve(paths: Sequence[str]) -> Sequence[str]:
        found = await programs.run(["realpath", "-m", "-z", "--", *paths])
        return found.rstrip(b"\0").decode().split("\0")

    decides: list[Any] = [Policy(rules_of({"allow": ["git *", "sleep *"]}), resolve)]
    tool = Tool(
        "send", "Send a message.", arguments_schema({"to": text("to", 64), "body": text("body", 1000)}), send
    )
    servers = {
        name: McpServer.model_validate(one)
        for name, one in json.loads(environment.pop("SERVERS", "{}")).items()
    }
    session = Session(
        Settings(
            SESSION,
            resume=False,
            model=model,
            system_prompt="You are `scout`.",
            tools=("Bash", "Read", "Write"),
            servers=servers,
        ),
        cli=config.cli,
        environment=environment,
        policy=lambda: decides[0],
        tools=lambda: [tool],
        sweep=programs.kill_all,
        patience=config.patience,
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with Forwarder(config.model_socket, session.sign_of_life).serving(config.model_port):
        runs: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            order = json.loads(line)
            if "run" in order:
                runs.add(asyncio.create_task(run(session, order)))
                continue
            if "interrupt" in order:
                await session.interrupt()
            elif "rules" in order:
                decides[0] = Policy(rules_of(order["rules"]), resolve)
            elif "broken" in order:
                decides[0] = Broken(order["broken"])
            elif "model" in order:
                await session.apply(dataclasses.replace(session.settings, model=order["model"]))
            elif "close" in order:
                await session.close()
            say({"ready": True})
        await session.close()


async def run(session: Session, order: Mapping[str, Any]) -> None:
    facts = await session.run(
        order["run"],
        lambda kind, data: say({"event": kind, "data": dict(data)}),
        command=bool(order.get("command")),
    )
    say({"facts": dataclasses.asdict(facts), "context": session.context})


asyncio.run(main())
