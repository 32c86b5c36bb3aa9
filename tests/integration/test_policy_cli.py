"""The Bash policy through the genuine CLI: what it refuses does not run, what it allows does, and nothing is
left to the CLI's own opinion.

The table of tests/support/policycases.py is played by the scripted model, many commands in one turn.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.outcomes import classify
from tests.contract.harness_session_kit import Session, plays, session
from tests.fakes.container import needs_container
from tests.support.policycases import Case, cases

pytestmark = [needs_container, pytest.mark.asyncio, pytest.mark.integration]

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
_BACK = "cd /state"
_STEP = 20  # calls in one answer of the model
# The CLI refuses to leave anything in the background, whatever its hook answers.
_REFUSED_BY_THE_CLI = frozenset({"ls & echo x"})
# How the CLI words a refusal of its own; none may be the last word on a command.
_OWN_REFUSALS = ("requires approval", "needs approval", "has been denied", "can't be checked before it runs")


def bash(commands: Sequence[str]) -> list[dict[str, Any]]:
    """Steps of the model that call the shell with each of these."""
    escaped = []
    for command in commands:
        # the CLI's shell stays where a command goes
        escaped += [command.replace("${", "$${"), *([_BACK] if "cd" in command else [])]
    return [
        {"tools": [{"name": "Bash", "input": {"command": one}} for one in escaped[at : at + _STEP]]}
        for at in range(0, len(escaped), _STEP)
    ]


async def outcomes(talk: Session, prompt: str) -> list[tuple[bool, str]]:
    """Runs a turn; of each call in order: whether it was let run, and its result."""
    assert classify(await talk.run(prompt)).outcome == "ok"
    calls = [data["id"] for data in talk.of("tool_call") if data["input"].get("command") != _BACK]
    results = {data["id"]: data["text"] for data in talk.of("tool_result")}
    return [("refused: " not in results[one], results[one]) for one in calls]


@contextlib.asynccontextmanager
async def one_turn(
    folder: Path, steps: list[dict[str, Any]], rules: dict[str, Any], **environment: str
) -> AsyncIterator[tuple[Session, list[tuple[bool, str]]]]:
    async with session(folder, plays("go", *steps), **environment) as talk:
        await talk.do(rules=rules)
        yield talk, await outcomes(talk, "go")


def _chosen() -> list[Case]:
    """All in the full profile, else every eighth; without what the CLI does not even ask about."""
    table = [case for case in cases() if case.command.strip() and not re.search(r"[\x00\r]", case.command)]
    return table if FULL else table[::8]


@pytest.mark.timeout(900)
async def test_the_genuine_cli_runs_what_the_table_allows_and_nothing_else(tmp_path: Path) -> None:
    groups = [
        (rules, list(group))
        for rules, group in itertools.groupby(_chosen(), key=lambda case: (case.allow, case.deny))
    ]
    plans = [
        plays(f"group-{number}-of-the-table", *bash([case.command for case in group]))
        for number, (_, group) in enumerate(groups)
    ]
    wrong = []
    async with session(tmp_path, *plans) as talk:
        for name in ("state/src", "state/sub", "config/sub"):
            (tmp_path / name).mkdir(parents=True)
            os.chown(tmp_path / name, 1000, 1000)
        for number, ((allow, deny), group) in enumerate(groups):
            await talk.do(rules={"allow": allow, "deny": deny})
            found = await outcomes(talk, f"group-{number}-of-the-table")
            assert len(found) == len(group)
            for case, (ran, result) in zip(group, found, strict=True):
                own = ran and any(words in result for words in _OWN_REFUSALS)
                if case.command in _REFUSED_BY_THE_CLI:
                    assert "has been denied" in result
                elif ran is not case.allowed or case.why not in result or own:
                    wrong.append((case, result))
    assert wrong == []


async def test_the_clis_own_read_only_commands_do_not_run_unless_matched(tmp_path: Path) -> None:
    commands = [
        *(
            "ls",
            "pwd",
            "cat notes.txt",
            "id",
            "echo hi",
            "whoami",
            "head -1 notes.txt",
            "wc -l notes.txt",
            "date",
        ),
        *("grep x notes.txt", "git log", "LANG=C git status", "timeout 5 git status", "command git status"),
    ]
    plans = [plays("none", *bash(commands)), plays("some", *bash(commands[:5]))]
    async with session(tmp_path, *plans) as talk:
        await talk.do(rules={"allow": ["git status"]})
        assert [ran for ran, _ in await outcomes(talk, "none")] == [False] * len(commands)
        await talk.do(rules={"allow": ["ls", "pwd"]})
        assert [ran for ran, _ in await outcomes(talk, "some")] == [True, True, False, False, False]


async def test_a_policy_that_does_not_decide_lets_nothing_run(tmp_path: Path) -> None:
    bash_call = {"name": "Bash", "input": {"command": "touch /state/ran; ls"}}
    write_call = {"name": "Write", "input": {"file_path": "/state/ran", "content": "x"}}
    send_call = {"name": "mcp__hyperhive__send", "input": {"to": "operator", "body": "x"}}
    plans = {
        "crashes": [{"tools": [bash_call, write_call, send_call]}],
        "talks rubbish": [{"tools": [bash_call, write_call, send_call]}],
        "hangs": [{"tools": [bash_call]}],
    }
    async with session(tmp_path, *(plays(how.split()[0], *steps) for how, steps in plans.items())) as talk:
        for how, steps in plans.items():
            await talk.do(broken=how)
            await talk.run(how)
            assert not (tmp_path / "state/ran").exists(), how
            assert talk.sent == [], how
            results = talk.of("tool_result")
            assert len(results) == len(steps[0]["tools"])
            assert all(data["is_error"] for data in results), how


async def test_file_tools_stay_in_their_folders_and_behind_links(tmp_path: Path) -> None:
    paths = {
        "/state/fine": True, "/config/fine": True, "/etc/new": False, "/state/../etc/x": False,
        "/tmp/x": False, "/state/.git/config": False, "/state/out/x": False, "/state/in/config": False,
        "/home/agent/.bashrc": False, "/home/agent/.claude/settings.json": False, "/run/hive/x": False,
    }  # fmt: skip
    steps: list[dict[str, Any]] = [
        {"tools": [{"name": "Write", "input": {"file_path": path, "content": "x"}} for path in paths]}
    ]
    steps += [
        {
            "tools": [
                {"name": "Edit", "input": {"file_path": "/state/fine", "old_string": "x", "new_string": "y"}}
            ]
        }
    ]
    steps += [{"tools": [{"name": "WebFetch", "input": {"url": "http://x", "prompt": "x"}}]}]
    steps += [{"tools": [{"name": "Agent", "input": {"description": "x", "prompt": "x"}}]}]
    (tmp_path / "world").mkdir()
    async with session(tmp_path / "world", plays("go", *steps)) as talk:
        state = tmp_path / "world/state"
        (state / "out").symlink_to("/etc")
        (state / ".git").mkdir()
        (state / "in").symlink_to(".git")
        assert classify(await talk.run("go")).outcome == "ok"
        calls = [data["id"] for data in talk.of("tool_call")]
        failed = {data["id"] for data in talk.of("tool_result") if data["is_error"]}
        assert [one not in failed for one in calls[: len(paths)]] == list(paths.values())
        assert (state / "fine").read_text() == "x"  # Edit is not in tools.allow
        assert not (state / ".git/config").exists()
        assert all(data["is_error"] for data in talk.of("tool_result")[-3:])


_SERVER = """
import json, sys
for line in sys.stdin:
    call = json.loads(line)
    method = call.get("method")
    if method == "initialize":
        result = {"protocolVersion": call["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "x", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in ("read", "destroy")]}
    elif method == "tools/call":
        open("/state/" + call["params"]["name"], "w").close()
        result = {"content": [{"type": "text", "text": "done"}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}), flush=True)
"""


async def test_of_a_further_mcp_server_only_the_listed_tools_run(tmp_path: Path) -> None:
    steps = [{"tools": [{"name": f"mcp__docs__{name}", "input": {}} for name in ("read", "destroy")]}]
    servers = {"docs": {"command": "/usr/bin/python3", "args": ["-c", _SERVER], "env": {}, "allow": ["read"]}}
    rules = {"allow": ["ls"], "mcp_tools": ["mcp__docs__read"]}
    async with one_turn(tmp_path, steps, rules, SERVERS=json.dumps(servers)) as (_, found):
        assert [ran for ran, _ in found] == [True, False]
        assert (tmp_path / "state/read").exists()
        assert not (tmp_path / "state/destroy").exists()
