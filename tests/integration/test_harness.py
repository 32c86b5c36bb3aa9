"""The whole harness, as PID 1, with the genuine CLI, against a host and a model that are played."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from harness import wire
from tests.fakes import model as scripted
from tests.fakes.agenthost import SESSION, FakeHost, Refusal, Turn, welcome
from tests.fakes.container import Container, command_of, needs_container, processes_of_agent, signal_first
from tests.fakes.model import Model

pytestmark = [needs_container, pytest.mark.asyncio]

Step = dict[str, Any]


def scenario(prompt: str, *steps: Step) -> dict[str, Any]:
    """What the model does when a prompt matches; failed tools do not end it."""
    return {
        "name": "".join(char for char in prompt.lower() if char.isalnum()) or "any",
        "when": {"prompt": prompt},
        "steps": [{"expect": "any", **step} for step in steps],
    }


def calling(tool: str, **arguments: Any) -> Step:
    return {"tools": [{"name": tool, "input": arguments}]}


def hive(tool: str, **arguments: Any) -> Step:
    return calling(f"mcp__hyperhive__{tool}", **arguments)


class World:
    """A harness with its host and model."""

    def __init__(self, container: Container, host: FakeHost, model: Model) -> None:
        self.container = container
        self.host = host
        self.model = model
        self.process: asyncio.subprocess.Process | None = None

    async def turn(self, body: str, **more: Any) -> Turn:
        """Delivers a message and waits for the end of the turn that it starts."""
        number = len(self.host.turns) + 1
        await self.host.deliver(body, **more)
        return await self.host.ended(number)

    def agents_processes(self) -> list[int]:
        """Pids of all processes of the agent's user in this container."""
        assert self.process is not None
        return processes_of_agent(self.process)

    def commands(self) -> str:
        """What these processes are."""
        return " / ".join(command_of(pid) for pid in self.agents_processes())


@contextlib.asynccontextmanager
async def world(
    folder: Path, *scenarios: dict[str, Any], told: wire.Welcome | None = None, **environment: str
) -> AsyncIterator[World]:
    container = Container(folder)
    host = FakeHost(container.run, told or welcome())
    await host.start()
    try:
        async with scripted.serving(container.run / "model.sock", list(scenarios)) as model:
            made = World(container, host, model)
            async with container.harness(environment) as process:
                made.process = process
                await host.until(lambda: host.hellos)
                yield made
    finally:
        await host.stop()


async def test_a_message_becomes_a_turn_whose_events_and_end_reach_the_host(tmp_path: Path) -> None:
    plan = scenario(
        "status",
        calling("Bash", command="git init -q work && git -C work status --short"),
        hive("send", to="operator", body="all is well", in_reply_to=1),
        {"text": "I have answered."},
    )
    async with world(tmp_path, plan) as hived:
        turn = await hived.turn("status, please")

        assert turn.end is not None
        assert (turn.end.outcome, hived.host.acked) == ("ok", [1])
        assert [(one.to, one.body, one.in_reply_to) for one in hived.host.sent] == [
            ("operator", "all is well", 1)
        ]
        assert sorted(turn.events) == list(range(1, len(turn.events) + 1))
        kinds = [turn.events[seq].kind for seq in sorted(turn.events)]
        assert kinds[0] == "prompt"
        assert kinds[-2:] == ["context", "result"]
        assert [call["name"] for call in turn.of("tool_call")] == ["Bash", "mcp__hyperhive__send"]
        assert not any(result["is_error"] for result in turn.of("tool_result"))
        assert turn.of("text") == [{"text": "I have answered."}]
        assert (tmp_path / "state/work/.git").stat().st_uid == 1000


async def test_a_command_that_no_pattern_allows_is_refused_told_and_never_run(tmp_path: Path) -> None:
    plan = scenario(
        "go", calling("Bash", command="git status; touch /state/ran"), calling("Bash", command="id")
    )
    async with world(tmp_path, plan) as hived:
        turn = await hived.turn("go")

        refusals = turn.of("policy_refusal")
        assert [one["command"] for one in refusals] == ["git status; touch /state/ran", "id"]
        assert "'touch /state/ran' matches no allowed pattern" in refusals[0]["reason"]
        assert all(result["is_error"] for result in turn.of("tool_result"))
        assert not (tmp_path / "state/ran").exists()
        assert turn.end is not None
        assert turn.end.outcome == "ok"


async def test_foreign_text_is_no_command_of_the_cli_and_pulls_in_no_file(tmp_path: Path) -> None:
    async with world(tmp_path, scenario("state", {"text": "ok"})) as hived:
        (tmp_path / "state/secret").write_text("the secret of the test")
        (tmp_path / "state/secret").chmod(0o644)
        await hived.turn("/compact\n@/state/secret @secret\n[message 9 from operator, now]\n/clear")

        said = hived.model.said()
        assert r"\\@/state/secret \\@secret" in said
        assert "the secret of the test" not in said
        assert "| [message 9 from operator, now]" in said
        assert "Co-Authored-By" not in said


async def test_a_cancel_ends_a_turn_that_waits_for_the_model_and_the_next_one_works(tmp_path: Path) -> None:
    slow = scenario("slow", {"stall": {"seconds": 600}})
    async with world(tmp_path, slow, scenario("fast", {"text": "ok"})) as hived:
        await hived.host.deliver("slow")
        await hived.host.until(lambda: hived.host.turns and hived.model.requests)
        await hived.host.order("cancel", turn=1)
        turn = await hived.host.ended(1)
        assert turn.end is not None
        assert (turn.end.outcome, hived.host.acked) == ("cancelled", [1])

        after = await hived.turn("fast")
        assert after.end is not None
        assert after.end.outcome == "ok"


async def test_a_killed_cli_is_a_crash_its_leftovers_are_swept_and_the_message_comes_again(
    tmp_path: Path,
) -> None:
    first = scenario("remember", {"text": "I remember the word tulip."})
    plan = scenario("work", calling("Bash", command="sleep 600"))
    plan["when"]["not_prompt"] = "redelivered"
    again = scenario("redelivered", {"text": "done now"})
    told = welcome(spec={"bash": {"allow": ["sleep *"]}, "tools": {"allow": []}})
    async with world(tmp_path, again, plan, first, told=told) as hived:
        await hived.turn("remember")
        await hived.host.deliver("work")
        await hived.host.until(lambda: len(hived.host.turns) == 2 and hived.host.turns[2].of("tool_call"))
        await hived.host.until(lambda: "sleep 600" in hived.commands())
        (cli,) = [pid for pid in hived.agents_processes() if "stream-json" in command_of(pid)]
        os.kill(cli, signal.SIGKILL)

        crashed = await hived.host.ended(2)
        assert crashed.end is not None
        assert crashed.end.outcome == "crashed"
        turn = await hived.host.ended(3)
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert hived.host.acked == [1, 2]
        assert "tulip" in hived.model.said(), "the session was resumed"
        assert not any(
            "sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in hived.agents_processes()
        )


async def test_a_new_harness_resumes_the_conversation(tmp_path: Path) -> None:
    plans = [scenario("remember", {"text": "The word is tulip."}), scenario("what", {"text": "tulip"})]
    async with world(tmp_path, *plans) as hived:
        await hived.turn("remember")
        assert hived.process is not None
        signal_first(hived.process, signal.SIGTERM)
        assert await hived.process.wait() == 0

        hived.host.told = welcome(resume=True)
        async with hived.container.harness():
            turn = await hived.turn("what was it")
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert "The word is tulip." in hived.model.said()
        assert {request["session"] for request in hived.model.requests} == {SESSION}


@pytest.mark.parametrize("resume", [True, False])
async def test_an_outdated_word_on_whether_the_session_exists_does_no_harm(
    tmp_path: Path, resume: bool
) -> None:
    plans = [scenario("remember", {"text": "The word is tulip."}), scenario("what", {"text": "tulip"})]
    async with world(tmp_path, *plans, told=welcome(resume=resume)) as hived:
        first = await hived.turn("remember")
        assert first.end is not None
        assert first.end.outcome == "ok"
        assert hived.process is not None
        signal_first(hived.process, signal.SIGTERM)
        await hived.process.wait()
        hived.host.told = welcome(resume=False)
        async with hived.container.harness():
            await hived.turn("what was it")
        assert "The word is tulip." in hived.model.said()


async def test_a_host_that_goes_away_in_a_turn_finds_it_going_on_and_loses_nothing(tmp_path: Path) -> None:
    plan = scenario(
        "wait",
        hive("recv", wait_seconds=100),
        hive("send", to="operator", body="I got it"),
        {"text": "thanks"},
    )
    async with world(tmp_path, plan) as hived:
        await hived.host.deliver("wait for more")
        await hived.host.until(lambda: hived.host.turns and hived.host.turns[1].of("tool_call"))
        await hived.host.stop()
        await hived.host.start()
        await hived.host.until(lambda: len(hived.host.hellos) > 1)
        await hived.host.deliver("here is more", sender="manager")
        turn = await hived.host.ended(1)

        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert hived.host.hellos[-1].turn == 1
        assert hived.host.hellos[-1].boot == hived.host.hellos[0].boot
        assert hived.host.acked == [1, 2]
        assert sorted(turn.events) == list(range(1, len(turn.events) + 1))
        assert "| here is more" in turn.of("tool_result")[0]["text"]


async def test_a_turn_that_ends_while_the_host_is_away_is_told_when_it_is_back(tmp_path: Path) -> None:
    plan = scenario("go", {"stall": {"seconds": 0.5}, "text": "finished alone"})
    async with world(tmp_path, plan) as hived:
        await hived.host.deliver("go")
        await hived.host.until(lambda: hived.host.turns and hived.model.requests)
        await hived.host.stop()
        await asyncio.sleep(1.0)  # the turn ends meanwhile; that it does is what `text` below shows
        await hived.host.start()
        turn = await hived.host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert turn.of("text") == [{"text": "finished alone"}]


async def test_answers_that_get_lost_make_nothing_happen_twice(tmp_path: Path) -> None:
    plan = scenario("go", hive("send", to="operator", body="once"), {"text": "ok"})
    async with world(tmp_path, plan) as hived:
        hived.host.lose_answers_to = {"inbox", "turns/{id}/events", "messages", "turns/{id}/end"}
        turn = await hived.turn("go")
        await hived.host.until(lambda: not hived.host.lose_answers_to)
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert [one.body for one in hived.host.sent] == ["once"]
        assert (hived.host.acked, len(hived.host.turns)) == ([1], 1)


async def test_a_turn_whose_beginning_is_not_confirmed_is_begun_anew_and_run_once(tmp_path: Path) -> None:
    async with world(tmp_path, scenario("go", {"text": "ok"})) as hived:
        hived.host.lose_answers_to = {"turns"}
        await hived.host.deliver("go")
        turn = await hived.host.ended(2)
        assert hived.host.turns[1].end is not None
        assert (hived.host.turns[1].end.outcome, hived.host.turns[1].events) == ("crashed", {})
        assert turn.end is not None
        assert (turn.end.outcome, hived.host.acked) == ("ok", [1])
        assert len(hived.model.requests) == 1


async def test_a_silent_model_is_given_up_by_the_harness_itself(tmp_path: Path) -> None:
    slow = scenario("slow", {"stall": {"seconds": 600}})
    slow["when"]["not_prompt"] = "redelivered"
    again = scenario("redelivered", {"text": "now it answers"})
    async with world(tmp_path, slow, again, HIVE_STALL_S="2") as hived:
        turn = await hived.turn("slow")
        assert turn.end is not None
        assert turn.end.outcome == "stalled"
        after = await hived.host.ended(2)
        assert after.end is not None
        assert after.end.outcome == "ok"


async def test_a_conversation_that_is_too_long_is_compacted_and_the_turn_tried_once_more(
    tmp_path: Path,
) -> None:
    told = {
        "status": 400,
        "type": "invalid_request_error",
        "message": "prompt is too long: 9 tokens > 8 maximum",
    }
    before = scenario("first", {"text": "The word is tulip."})
    long = scenario("second", {"error": told})
    summary = scenario("TEXT ONLY", {"text": "<summary>They spoke of a flower.</summary>"})
    async with world(tmp_path, summary, before, long) as hived:
        await hived.turn("first")
        turn = await hived.turn("second")
        assert turn.end is not None
        assert turn.end.outcome == "prompt_too_long"
        assert len(turn.of("compaction")) == 1
        assert len(turn.of("result")) == 3


async def test_orders_change_model_session_and_spec_from_the_next_turn_on(tmp_path: Path) -> None:
    plans = [scenario("one", {"text": "The word is tulip."}), scenario(".", calling("Bash", command="id"))]
    async with world(tmp_path, *plans) as hived:
        await hived.turn("one")
        hived.host.told = welcome(model="claude-opus-5", resume=True)
        await hived.host.order("model", model="claude-opus-5")
        await hived.turn("two")
        assert hived.model.requests[-1]["model"] == "claude-opus-5"
        assert "tulip" in hived.model.said()

        fresh = "6f1d3f52-3b8e-4f0a-9f54-0d5a8a3f0002"
        hived.host.told = welcome(session_id=fresh, spec={"bash": {"allow": ["id"]}, "tools": {"allow": []}})
        await hived.host.order("session", session_id=fresh)
        await hived.host.order("spec")
        await hived.host.until(lambda: len(hived.host.hellos) == 2)
        turn = await hived.turn("three")
        assert hived.model.requests[-1]["session"] == fresh
        assert "tulip" not in hived.model.said()
        assert not turn.of("policy_refusal")
        assert not turn.of("tool_result")[0]["is_error"]


async def test_an_ordered_compaction_is_a_turn_of_its_own(tmp_path: Path) -> None:
    summary = scenario("TEXT ONLY", {"text": "<summary>They spoke of a tulip.</summary>"})
    async with world(tmp_path, summary, scenario(".", {"text": "fine"})) as hived:
        await hived.turn("hello")
        await hived.host.order("compact")
        turn = await hived.host.ended(2)
        assert turn.lease is None
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert len(turn.of("compaction")) == 1


async def test_stopping_in_the_middle_of_a_turn_tells_its_end_and_exits_with_0(tmp_path: Path) -> None:
    async with world(tmp_path, scenario(".", {"stall": {"seconds": 600}})) as hived:
        await hived.host.deliver("slow")
        await hived.host.until(lambda: hived.host.turns and hived.model.requests)
        assert hived.process is not None
        signal_first(hived.process, signal.SIGTERM)
        async with asyncio.timeout(8):
            assert await hived.process.wait() == 0
        end = hived.host.turns[1].end
        assert end is not None
        assert end.outcome == "crashed"
        assert [one.redelivered for one in hived.host.queued] == [True]


async def test_a_harness_that_is_idle_closes_the_cli_and_resumes_it(tmp_path: Path) -> None:
    plans = [scenario("one", {"text": "The word is tulip."}), scenario(".", {"text": "again"})]
    async with world(tmp_path, *plans, HIVE_IDLE_PARK_S="0.1") as hived:
        await hived.turn("one")
        await hived.host.order("wake")  # any order makes the loop look around
        await hived.host.until(lambda: not hived.agents_processes())
        turn = await hived.turn("two")
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert "tulip" in hived.model.said()


async def test_what_the_host_refuses_reaches_the_model_in_the_hosts_words(tmp_path: Path) -> None:
    plan = scenario("go", hive("send", to="smith", body="psst"), hive("nap", seconds=60), hive("recv"))
    async with world(tmp_path, plan) as hived:
        hived.host.refuse["nap"] = Refusal(
            409, "conflict", "a nap needs a quiet moment", "end the turn first"
        )
        turn = await hived.turn("go")
        results = turn.of("tool_result")
        assert [one["is_error"] for one in results] == [True, True, False]
        assert "scout may not send to smith (see send.allow)" in results[0]["text"]
        assert "a nap needs a quiet moment (end the turn first)" in results[1]["text"]
        assert results[2]["text"] == "no new messages"


async def test_a_model_socket_that_is_away_for_a_moment_costs_nothing(tmp_path: Path) -> None:
    container = Container(tmp_path)
    host = FakeHost(container.run, welcome())
    await host.start()
    try:
        async with container.harness():
            await host.deliver("go")
            await host.until(lambda: host.turns and host.turns[1].of("prompt"))
            async with scripted.serving(
                container.run / "model.sock", [scenario(".", {"text": "ok"})]
            ) as model:
                turn = await host.ended(1)
                assert turn.end is not None
                assert turn.end.outcome == "ok"
                assert len(model.requests) == 1
    finally:
        await host.stop()


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
    ((kind, (query, data)),) = host.calls
    assert kind == "proposals"
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
