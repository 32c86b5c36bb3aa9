"""Every row of the case book made to happen: the genuine CLI, the real gateway, the scripted model, and what
the broker makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.outcomes import Verdict, classify
from reconciler import gatewaysigns
from reconciler.broker.casebook import CASES, Case, case, rendered
from reconciler.broker.core import Seats
from reconciler.broker.troubles import Sign
from reconciler.gateway.deadlines import Deadlines
from reconciler.gateway.messages import TroubleEvent
from reconciler.scripted.scenario import Scenario
from reconciler.scripted.server import Log, ScriptedModel
from tests.contract.harness_session_kit import DRIVER, Session, calls
from tests.fakes.container import Container, command_of, needs_container, processes_of_agent
from tests.integration.gateway_kit import MODEL, Lab, lab_folder, policy, until
from tests.support.brokers import OTHER_BOOT, SCOUT, SMITH, World

pytestmark = [needs_container, pytest.mark.asyncio]
NO_CREDIT = "Your credit balance is too low to access the Anthropic API."
TOO_LONG = "prompt is too long: 250000 tokens > 200000 maximum"


def error(status: int, kind: str, message: str = "no", **headers: str) -> dict[str, Any]:
    return {"error": {"status": status, "type": kind, "message": message, "headers": headers}}


# What the model does, by the case's key. A step that is repeated forever is the CLI's own retry.
PLAYED: Mapping[str, Sequence[dict[str, Any]]] = {
    "ok": [{"text": "done"}],
    "500": [error(500, "api_error")],
    "529": [error(529, "overloaded_error")],
    "429-short": [error(429, "rate_limit_error", **{"retry-after": "2"})],
    "429-long": [error(429, "rate_limit_error", **{"retry-after": "3600"})],
    "429-none": [error(429, "rate_limit_error")],
    "401": [error(401, "authentication_error", "invalid x-api-key")],
    "403": [error(403, "permission_error", "not for your organization")],
    "404": [error(404, "not_found_error", "model: claude-haiku-5-5")],
    "too-long": [error(400, "invalid_request_error", TOO_LONG)],
    "credit": [error(400, "invalid_request_error", NO_CREDIT)],
    "413": [error(413, "request_too_large", "Request exceeds the maximum size")],
    "400": [error(400, "invalid_request_error", "messages: odd")],
    "stall-first": [{"stall": {"seconds": 60}}],
    "stall-stream": [{"text": "word " * 40, "stall": {"seconds": 60, "after_events": 4}}],
    "stall-tool": [calls("Bash", command="sleep 50")],
    "cut": [{"text": "word " * 40, "cut": 4}],
    "sse-error": [{"text": "word " * 40, "error": {"status": 500, "after_events": 4}}],
    "refusal": [{"text": "no", "stop_reason": "refusal"}],
    "max-tokens": [{"text": "and so on", "stop_reason": "max_tokens"}],
    "empty": [{"text": ""}],
}  # fmt: skip
# What hides best from whoever kills its parents: processes of other sessions, whose parents are gone.
DAEMON = "(setsid sh -c '(sleep 5001 &) ; sleep 5002' &) ; exec sleep 5003\n"
SIGNALS = {"sigint": signal.SIGINT, "sigterm": signal.SIGTERM, "sigkill": signal.SIGKILL}
ELSEWHERE = {"403-twice", "budget", "harness", "container", "stopped", "hived"}
"""No matter of one turn of the CLI: their tests are below, and in tests/system/test_hive.py."""


@dataclass
class Seen:
    """How one case went: the harness's verdict, what the gateway told, and the transcript."""

    verdict: Verdict
    signs: list[Sign] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Inside(Container):
    """A container whose `run` is where the gateway serves."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        (lab.root / "c").mkdir()
        super().__init__(lab.root / "c")

    def argv(self, program: Sequence[str], environment: Mapping[str, str], *, as_pid_1: bool) -> list[str]:
        made = super().argv(program, environment, as_pid_1=as_pid_1)
        return [str(self.lab.socket().parent) if word == f"{self.folder}/run" else word for word in made]


@contextlib.asynccontextmanager
async def talking(lab: Lab, container: Container, **environment: str) -> AsyncIterator[Session]:
    """The driver of the session tests, speaking to the lab's gateway."""
    program = ["/opt/hive/venv/bin/python", "-c", DRIVER.read_text()]
    given = {"MODEL": MODEL, "HIVE_API_RETRIES": "0", "HIVE_STALL_S": "8", "HIVE_STREAM_STALL_S": "2",
             "HIVE_TOOL_STALL_S": "6", **environment}  # fmt: skip
    async with container.running(program, given, as_pid_1=False) as process:
        yield Session(process, None)  # type: ignore[arg-type] # the model is the lab's
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def scenarios(played: Mapping[str, Sequence[dict[str, Any]]]) -> list[Scenario]:
    return [
        Scenario.model_validate({
            "name": f"case-{key}",
            "when": {"prompt": f"^case {key}$"},
            "steps": [{"expect": "any", **step} for step in steps],
        })
        for key, steps in played.items()
    ]  # fmt: skip


class Runner:
    """Runs cases in one warm session and keeps what the gateway told meanwhile."""

    def __init__(self, lab: Lab, talk: Session, troubles: list[TroubleEvent]) -> None:
        self.lab, self.talk, self.troubles = lab, talk, troubles

    async def run(self, key: str, meanwhile: Any = None) -> Seen:
        for heard in (self.lab.usage, self.lab.limits, self.lab.refusals, self.troubles):
            heard.clear()
        await self.talk.begin(f"case {key}")
        if meanwhile is not None:
            await meanwhile()
        verdict = classify(await self.talk.end())
        signs = [gatewaysigns.of_limit(event, 1e9) for event in self.lab.limits]
        signs += [gatewaysigns.of_trouble(event) for event in self.troubles]
        signs += [sign for event in self.lab.refusals if (sign := gatewaysigns.of_refusal(event))]
        signs += [sign for event in self.lab.usage if (sign := gatewaysigns.of_usage(event))]
        return Seen(verdict, signs, list(self.talk.events))


def sleeping(talk: Session) -> list[str]:
    """What the agent's shell started and goes on."""
    found = [command_of(pid) for pid in processes_of_agent(talk.process)]
    return [one for one in found if one.startswith("sleep 50")]


async def signalled(talk: Session, number: signal.Signals) -> None:
    """Send a signal to the CLI while its tool runs."""
    await talk.until_event("tool_call")
    await until(lambda: len(sleeping(talk)) >= 3)
    for pid in processes_of_agent(talk.process):
        if "stream-json" in command_of(pid):
            os.kill(pid, number)


async def play() -> dict[str, Seen]:
    """All cases, one after the other."""
    seen: dict[str, Seen] = {}
    tools = {key: [calls("Bash", command="bash /state/daemon.sh")] for key in (*SIGNALS, "cancelled")}
    quick: dict[str, list[dict[str, Any]]] = {
        "gateway": [{"delay": 0.5, "text": "done"}],
        "turn-budget": [{"text": "x"}],
    }
    app = ScriptedModel(scenarios({**PLAYED, **tools, **quick}), Log()).app
    with lab_folder() as lab:
        container = Inside(lab)
        (container.folder / "state/daemon.sh").write_text(DAEMON)
        troubles: list[TroubleEvent] = []
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(lab.upstream(app()))
            gateway = await stack.enter_async_context(contextlib.AsyncExitStack())
            await gateway.enter_async_context(lab.gateway())
            client = await stack.enter_async_context(lab.client(policy()))
            client._on_trouble = troubles.append
            talk = await stack.enter_async_context(talking(lab, container))
            await talk.do(rules={"allow": ["sleep *", "bash /state/daemon.sh"]})
            runner = Runner(lab, talk, troubles)
            for key in PLAYED:
                seen[key] = await runner.run(key)
            seen["cancelled"] = await runner.run("cancelled", lambda: cancelled(talk))
            assert sleeping(talk) == []
            for key, number in SIGNALS.items():
                seen[key] = await runner.run(key, lambda number=number: signalled(talk, number))
                assert sleeping(talk) == []
            await client.configure([policy(budget_tokens_turn=10, turn=7)])
            seen["turn-budget"] = await runner.run("turn-budget")
            await client.configure([policy()])

            async def restart() -> None:
                await until(lambda: any(b"case gateway" in one.body for one in lab.seen))
                await gateway.aclose()
                await gateway.enter_async_context(lab.gateway())

            seen["gateway"] = await runner.run("gateway", restart)
            await until(lambda: client.connected)
        async with (  # no upstream at all, then one that says nothing
            lab.gateway(deadlines=Deadlines(drain_s=0.0, first_byte_s=0.5, whole_s=0.5)),
            lab.client(policy()) as client,
            talking(lab, container, HIVE_STALL_S="30") as talk,
        ):
            runner = Runner(lab, talk, troubles)
            seen["refused"] = await runner.run("refused")
            silent = scenarios({"timeout": [{"stall": {"seconds": 60}}]})
            async with lab.upstream(ScriptedModel(silent, Log()).app()):
                seen["timeout"] = await runner.run("timeout")
    return seen


async def cancelled(talk: Session) -> None:
    await talk.until_event("tool_call")
    await until(lambda: len(sleeping(talk)) >= 3)
    await talk.order(interrupt=True)


_PLAYED: dict[str, Seen] = {}
_ASKED: list[str] = []


async def played(key: str) -> Seen:
    """What happened in that case; all are played once, by whoever asks first."""
    if not _ASKED:
        _ASKED.append(key)
        async with asyncio.timeout(200):
            _PLAYED.update(await play())
    return _PLAYED[key]


# ----------------------------------------------------------------------------------------------- one row each
@pytest.mark.parametrize("row", [one for one in CASES if one.key not in ELSEWHERE], ids=lambda row: row.key)
async def test_a_turn_that_ends_so_is_classed_and_followed_as_the_case_book_says(
    row: Case, tmp_path: Path
) -> None:
    seen = await played(row.key)
    told = "budget" if row.outcome == "turn_budget" else row.outcome
    assert seen.verdict.outcome == told, (seen.verdict, seen.events)
    assert (seen.verdict.error == "") == (told in {"ok", "cancelled"})
    world = await World.open(tmp_path, seats=Seats(cap=8, idle_s=1e9))
    for name in (SCOUT, SMITH):
        await world.agent(name)
        await world.hello(name)
        await world.runs(name)
    async with world.running():
        await follow(world, row, seen)
    await world.close()


async def follow(world: World, row: Case, seen: Seen) -> None:
    """What the host makes of it."""
    for name in (SCOUT, SMITH):
        await world.event(name, "task")
    inbox = await world.poll(SCOUT)
    world.broker.troubles._models |= {"scout": "haiku", "smith": "haiku"}
    turn = await world.begin(SCOUT, inbox.lease)
    for sign in seen.signs:
        at = world.clock.now()
        ends = None if sign.until is None else int((at + 3600 if row.key == "429-long" else at + 2) * 1e6)
        world.broker.troubles.heard(Sign(sign.kind, "scout", "haiku", sign.message, ends, turn))
    async with asyncio.timeout(30):
        while world.broker.troubles._signs:  # noqa: ASYNC110 - it is emptied by a task without an event
            await asyncio.sleep(0.005)
    await world.end(SCOUT, turn, seen.verdict.outcome, error=seen.verdict.error)
    message = await world.store.state.one(
        "SELECT * FROM messages WHERE recipient = 'scout' ORDER BY id LIMIT 1"
    )
    assert message is not None
    fate = (message["state"], message["redelivered"], message["failures"])
    expected = {
        "taken": ("acked", 0, 0), "again": ("queued", 1, 0), "counted": ("queued", 1, 1),
        "proven": ("queued", 1, 0),
    }  # fmt: skip
    assert fate == expected[row.fate]
    resting = {name for name in (SCOUT, SMITH) if (await world.presence.now(name)).state == "parked"}
    assert (
        resting == {"no": set(), "agent": {SCOUT}, "all": {SCOUT, SMITH}, "model": {SCOUT, SMITH}}[row.rests]
    )
    told = (await world.broker.messages(agent="operator", before=None, limit=9)).items
    assert len(told) == (1 if row.told in {"operator once", "operator after 10 min"} else 0)
    if row.rests == "agent":
        assert (await world.presence.now(SCOUT)).until is not None
        world.clock.advance(901)
        [again] = (await world.poll(SCOUT)).messages
        assert again.redelivered, "it comes again, and says so"


async def test_what_a_stalled_turn_waited_for_is_said() -> None:
    said = {key: (await played(key)).verdict.error for key in ("stall-first", "stall-stream", "stall-tool")}
    assert "did not begin to answer within 8 s" in said["stall-first"]
    assert "stopped in the middle" in said["stall-stream"]
    assert said["stall-tool"].startswith("Bash gave no result and no sign of life")


# -------------------------------------------------------------------------------------- not of one turn alone
async def test_a_second_refusal_without_success_in_between_is_the_credentials(tmp_path: Path) -> None:
    row, seen = case("403-twice"), await played("403")
    assert seen.verdict.outcome == row.outcome
    world = await World.open(tmp_path, seats=Seats(cap=8, idle_s=1e9))
    for name in (SCOUT, SMITH):
        await world.agent(name)
        await world.hello(name)
        await world.runs(name)
    async with world.running():
        world.broker.troubles.heard(Sign("forbidden", "smith", "haiku", "no", turn=99))
        await follow(world, row, seen)
    await world.close()


@pytest.mark.parametrize("key", ["harness", "container", "stopped", "hived", "budget"])
async def test_what_ends_around_a_turn_is_followed_as_the_case_book_says(key: str, tmp_path: Path) -> None:
    row = case(key)
    world = await World.open(tmp_path, seats=Seats(cap=8, idle_s=1e9))
    await world.agent(SCOUT)
    await world.hello(SCOUT)
    await world.runs(SCOUT)
    await world.event(SCOUT, "task")
    turn, _ = await world.turn(SCOUT)
    match key:
        case "harness":
            await world.hello(SCOUT, OTHER_BOOT)
        case "container":
            await world.broker.harness_gone(SCOUT)
            await world.hello(SCOUT, OTHER_BOOT)
        case "stopped":
            await world.set("scout", restart_wanted=1)
            await world.end(SCOUT, turn, "crashed", error="the container was stopped during the turn")
            await world.set("scout", restart_done=1)
        case (
            "budget"
        ):  # which day's budget is used up the host knows, and rests the agent until it begins anew
            await world.end(SCOUT, turn, "budget", error="refused by budget")
        case _:
            await world.restart()
            await world.hello(SCOUT, turn=turn)
            await world.end(SCOUT, turn)
    ended = await world.store.state.one("SELECT outcome FROM turns WHERE id = ?", turn)
    message = await world.store.state.one("SELECT * FROM messages WHERE recipient = 'scout'")
    assert ended is not None
    assert message is not None
    assert ended["outcome"] == row.outcome
    assert message["state"] == ("acked" if row.fate == "taken" else "queued")
    assert message["failures"] == (row.fate == "counted")
    assert message["redelivered"] == (row.fate != "taken")
    await world.close()


async def test_the_page_is_made_of_the_case_book() -> None:
    page = Path(__file__).parents[2] / "docs/outcomes.md"
    assert page.read_text() == rendered(), "run `python -m reconciler.broker.casebook`"
    assert len({one.key for one in CASES}) == len(CASES)
