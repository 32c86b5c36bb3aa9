"""From the agent's clone to a bundle at the host: real git inside and outside, through the model's tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness import wire
from tests.fakes import model as scripted
from tests.fakes.agenthost import FakeHost, welcome
from tests.fakes.container import Container, needs_container
from tests.support.harnesses import calling, hive, scenario

pytestmark = [needs_container, pytest.mark.asyncio]


def run(*argv: str | Path) -> bytes:
    """What a program prints."""
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True).stdout


def repository(folder: Path, files: dict[str, str]) -> tuple[bytes, str]:
    """A bundle of `main` with one commit of these files, and the commit's id."""
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    folder.mkdir()
    run("git", "init", "-q", "-b", "main", folder)
    for name, text in files.items():
        (folder / name).write_text(text)
    run(*git, "add", ".")
    run(*git, "commit", "-q", "-m", "first")
    bundle = run(*git, "bundle", "create", "-q", "-", "main")
    return bundle, run(*git, "rev-parse", "HEAD").decode().strip()


async def test_an_agent_edits_its_clone_and_proposes_a_commit(tmp_path: Path) -> None:
    bundle, commit = repository(tmp_path / "origin", {"agent.nix": "{ }\n"})
    plan = scenario(
        "go",
        calling("Read", file_path="/config/agent.nix"),
        calling("Write", file_path="/config/agent.nix", content='{ hyperhive.model = "opus"; }\n'),
        calling("Bash", command="git -C /config commit -q -a -m change"),
        hive("propose", commit="main", description="no"),
        hive("propose", commit="HEAD", description="a dearer model"),
    )
    (tmp_path / "box").mkdir()
    container = Container(tmp_path / "box")
    host = FakeHost(container.run, welcome())
    host.bundles["scout"] = bundle
    await host.start()
    try:
        async with scripted.serving(container.run / "model.sock", [plan]), container.harness():
            await host.deliver("go")
            turn = await host.ended(1)
    finally:
        await host.stop()
    results = turn.of("tool_result")
    assert [one["is_error"] for one in results] == [False, False, False, True, False], results
    assert "give all 40 digits" in results[3]["text"]
    ((query, data),) = [call for kind, call in host.calls if kind == "proposals"]
    assert (query["agent"], query["description"]) == ("scout", "a dearer model")
    got = tmp_path / "proposal.bundle"
    got.write_bytes(data)
    assert run("git", "bundle", "list-heads", got).decode().split() == [query["commit"], "refs/hive/propose"]
    clone = tmp_path / "clone"
    run("git", "clone", "-q", "--bare", tmp_path / "origin", clone)
    run("git", "-C", clone, "fetch", "-q", got, "refs/hive/propose:refs/p")
    log = run("git", "-C", clone, "log", "--format=%an <%ae> %P", "-1", "refs/p").decode()
    assert log.strip() == f"scout <scout@hive> {commit}"


async def test_the_manager_drafts_an_agent_with_state_and_sends_both(tmp_path: Path) -> None:
    bundle, _commit = repository(tmp_path / "origin", {"agent.nix": "{ }\n"})
    plan = scenario(
        "go",
        hive("request_spawn_draft", name="scribe"),
        calling("Write", file_path="/agents/scribe/state/notes.md", content="# Notes\n"),
        calling("Write", file_path="/agents/scribe/config/prompt.md", content="You keep minutes.\n"),
        calling(
            "Bash",
            command="git -C /agents/scribe/config add . && git -C /agents/scribe/config commit -q -m draft",
        ),
        hive("request_spawn_commit", name="scribe", commit_ref="HEAD", description="keeps minutes"),
        hive("list_agents"),
        hive("get_logs", name="smith"),
        hive("restart", name="smith"),
    )
    (tmp_path / "box").mkdir()
    container = Container(tmp_path / "box")
    told = welcome(agent="hm1nd", role="manager")
    told = told.model_copy(update={"spec": {**told.spec, "bash": {"allow": ["git *"]}}})
    host = FakeHost(container.run, told)
    host.bundles |= {"scribe": bundle, "hm1nd": bundle, "smith": bundle}
    host.agents = [
        wire.PeerAgent(name="smith", role="agent", state="idle", model="haiku", generation=1, commit=None)
    ]
    await host.start()
    try:
        async with scripted.serving(container.run / "model.sock", [plan]), container.harness():
            await host.deliver("go")
            turn = await host.ended(1)
    finally:
        await host.stop()
    assert not [one for one in turn.of("tool_result") if one["is_error"]], turn.of("tool_result")
    assert (tmp_path / "box/agents/smith/config/agent.nix").exists()
    calls = dict(host.calls)
    name, query, parts = calls["draft-commit"]
    assert (name, query["description"]) == ("scribe", "keeps minutes")
    got = tmp_path / "state.tar"
    got.write_bytes(parts["state"])
    assert run("tar", "-tf", got).decode().split() == ["./", "./notes.md"]
    assert parts["bundle"].startswith(b"# v2 git bundle\n" + query["commit"].encode())
    assert calls["restart"] == "smith"
