"""What a harness makes of a host that goes away, a CLI that dies, a model that is silent, and its own end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.fakes import model as scripted
from tests.fakes.agenthost import SESSION, FakeHost, welcome
from tests.fakes.container import Container, command_of, needs_container, signal_first
from tests.support.harnesses import calling, hive, scenario, world

pytestmark = [needs_container, pytest.mark.asyncio]


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
        # the CLI's own record of the conversation says when the turn is over for it
        record = tmp_path / "home/.claude/projects/-state" / f"{SESSION}.jsonl"
        await hived.host.until(lambda: record.exists() and "finished alone" in record.read_text())
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


async def test_stopping_does_not_wait_for_what_is_still_being_loaded(tmp_path: Path) -> None:
    container = Container(tmp_path)
    host = FakeHost(container.run, welcome())
    await host.start()
    endless = tmp_path / "state/claude_agent_sdk"
    endless.mkdir()
    (endless / "__init__.py").write_text("open('/state/loading', 'w')\nimport time\ntime.sleep(600)\n")
    (tmp_path / "state").chmod(0o777)  # container root has no right to pass by modes
    try:
        async with container.harness({"PYTHONPATH": "/state:/opt/hive/lib"}) as process:
            await host.until((tmp_path / "state/loading").exists)
            signal_first(process, signal.SIGTERM)
            async with asyncio.timeout(8):
                assert await process.wait() == 0
    finally:
        await host.stop()


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
