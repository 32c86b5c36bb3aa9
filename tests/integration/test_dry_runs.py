"""Dry runs of every write of the API, through the socket of a whole hived with real databases and real git:
all checks are made, the answer is the real one's, and not a byte stays.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.app import Effects, Hived, Supervisor
from reconciler.config import Budget, Config, Gateway
from reconciler.control import models as api
from reconciler.control.routes import ROUTES
from reconciler.effects.git import GitRepositories
from reconciler.effects.git.quarantine import Quarantine
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import UserRole
from reconciler.notify import Notifier
from reconciler.store import drafts, messages, questions
from reconciler.store.db import Store
from reconciler.store.messages import NewMessage
from tests.fakes.clock import VirtualClock
from tests.fakes.containers import FakeContainers
from tests.fakes.hostfiles import FakeHostFiles
from tests.fakes.measures import FakeMeasures
from tests.fakes.nix import FakeNix
from tests.fakes.unixhttp import Answer, Api
from tests.integration.hostile import NOBODY
from tests.support.approvals import agent_nix, deploy
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.asyncio,
    needs_root,
]

CHANGING = ("id", "tag", "commit", "digest", "token", "url", "progress")
"""What only a real write knows, or what cannot be the same twice."""

INSIDE = "/attachments"
"""Going into a container and leaving it: there is nothing to try."""


@dataclass
class World:
    """A hived that serves its socket and runs nothing else, so that only calls write."""

    hived: Hived
    store: Store
    git: GitRepositories
    state: Path
    control: Api
    woken: list[str]
    ids: dict[str, int]
    digests: dict[str, str]
    commit: str = ""

    async def post(self, path: str, body: dict[str, Any], *, dry_run: bool) -> Answer:
        return await self.control.call("POST", f"/v1{path}", body | {"dry_run": dry_run})

    async def made(self, path: str, body: dict[str, Any]) -> Any:
        """What a real write answers, once its examination is over."""
        answer = await self.post(path, body, dry_run=False)
        assert answer.status == 200, (path, answer.body)
        await self.hived.approvals.examiner.settled()
        return answer.json

    async def change(self, name: str, model: str, flake: str = "{ }\n") -> str:
        """A commit in an agent's repository, on no branch."""
        agent = AgentName(name)
        files = {"agent.nix": agent_nix(model=f'"{model}"'), "flake.nix": flake}
        return await self.git.commit(
            agent, files, parent=await self.git.main(agent), author="operator", message=model
        )

    async def propose(self, name: str, model: str) -> int:
        body = {"agent": name, "commit": await self.change(name, model), "description": model}
        return int((await self.made("/proposals", body))["id"])

    async def settled(self, proposal: int) -> Any:
        return (await self.control.call("GET", f"/v1/proposals/{proposal}")).json

    async def snapshot(self) -> dict[str, bytes]:
        """Every byte of the databases and repositories, of staged states and trees, by path."""
        return await asyncio.to_thread(self._snapshot)

    def _snapshot(self) -> dict[str, bytes]:
        every = (path for path in self.state.rglob("*") if not path.name.endswith("-shm"))  # locks
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in every}

    def writes(self) -> list[tuple[str, dict[str, Any]]]:
        """One write of every route that can be rehearsed, in an order in which all can be real, too."""
        ids = self.ids
        change = {"agent": "scout", "commit": self.commit, "description": "a fourth"}
        return [
            ("/agents", {"name": "scribe", "bash_allow": ["git *"], "approve": True}),
            ("/proposals", change),
            (f"/proposals/{ids['spawn']}/deny", {"note": "no"}),
            (f"/proposals/{ids['third']}/cancel", {"note": "never mind"}),
            (f"/proposals/{ids['second']}/approve", {"digest": self.digests["second"], "note": "yes"}),
            ("/drafts/poet/discard", {"note": "no"}),
            ("/agents/smith/nap", {"seconds": 60, "note": "x"}),
            ("/messages", {"to": "*", "body": "hello", "key": "12345678"}),
            (f"/messages/{ids['message']}/read", {}),
            (f"/messages/{ids['aside']}/redeliver", {}),
            (f"/questions/{ids['question']}/answer", {"text": "blue"}),
            (f"/questions/{ids['doubt']}/cancel", {}),
            ("/login-links", {"user": "vera", "role": "viewer"}),
            ("/agents/smith/model", {"model": "opus"}),
            ("/loops/scout/smith", {"deliver": False, "note": "x"}),
            ("/budget/raise", {"usd": 1.5, "note": "x"}),
            ("/agents/smith/rollback", {"now": True, "note": "worse"}),
            ("/agents/smith/hold", {"note": "odd"}),
            ("/agents/smith/release", {}),
            ("/hold", {}),
            ("/release", {}),
            *(
                (f"/agents/smith/{verb}", {"note": "x"})
                for verb in ("restart", "cancel", "wake", "compact", "new-session", "stop", "start")
            ),
            ("/agents/old/revive", {}),
            ("/agents/old/destroy", {}),
            ("/agents/old/purge", {"confirm": "old"}),
        ]


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hive-dry-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def world(place: Path) -> AsyncIterator[World]:
    state = place / "state"
    state.mkdir(mode=0o711)
    config = Config(
        state_dir=str(state), run_dir=str(place / "run"), ui_user="nobody", operator_group="nogroup",
        gateway=Gateway(allowed_models=["haiku", "sonnet", "opus"]), budget=Budget(usd_per_day=5.0),
    )  # fmt: skip
    clock, git = VirtualClock(), GitRepositories(state, Quarantine(state / "quarantine", NOBODY))
    store = await Store.open(state, now=clock.now)
    effects = Effects(FakeContainers(), FakeNix(), git, FakeHostFiles(), clock, git.close, FakeMeasures())
    hived = Hived(config, store, effects, Supervisor(Notifier.from_environment({}), {}))
    (place / "run").mkdir()
    await hived.control.start()
    woken: list[str] = []
    hived.passes.wake = woken.append  # type: ignore[assignment, method-assign]
    async with Api(place / "run" / "control.sock") as control:
        world = World(hived, store, git, state, control, woken, {}, {})
        await _fill(world)
        yield world
    await hived.control.close()
    await hived.approvals.close()
    await hived.close()
    await store.close()


async def _fill(world: World) -> None:
    """Agents with generations, proposals that wait, a message, questions, and a destroyed agent."""
    for name in ("scout", "smith", "old"):
        made = await world.made("/agents", {"name": name, "approve": True})
        await deploy(world.store, made["id"])
    newer = await world.propose("smith", "opus")
    world.digests["newer"] = (await world.settled(newer))["digest"]
    await world.made(f"/proposals/{newer}/approve", {"digest": world.digests["newer"]})
    await deploy(world.store, newer)
    for label, model in (("first", "sonnet"), ("second", "opus"), ("third", "haiku")):
        world.ids[label] = await world.propose("scout", model)
        world.digests[label] = (await world.settled(world.ids[label]))["digest"]
    world.commit = await world.change("scout", "sonnet", "{ inputs = { }; }\n")
    world.ids["spawn"] = (await world.made("/agents", {"name": "idea"}))["id"]
    async with world.store.state.transaction() as tx:
        await messages.add(tx, NewMessage("scout", "smith", "and you?", hops=99, due_at=None))
        world.ids["aside"] = await messages.add(tx, NewMessage("operator", "scout", "too much"))
        await messages.set_aside(tx, world.ids["aside"])
        await drafts.insert(tx, AgentName("poet"), "smith", Commit("1" * 40))
        world.ids["message"] = await messages.add(tx, NewMessage("scout", "operator", "done"))
        for label in ("question", "doubt"):
            world.ids[label] = await questions.ask(
                tx, AgentName("scout"), question=label, options=[], multi=False, expires_at=None, key=label
            )
    await world.made("/agents/old/destroy", {})
    world.woken.clear()


async def test_every_write_of_the_operator_can_be_rehearsed(world: World) -> None:
    tried = {path for path, _ in world.writes()}
    for route in ROUTES:
        if route.method != "POST" or route.role is not UserRole.OPERATOR or INSIDE in route.path:
            continue
        assert route.request is not None, route.path
        assert issubclass(route.request, api.Write), route.path
        if route.path == "/v1/doctor/repair":
            continue  # its rehearsal is the check alone, which has its own tests
        last = route.path.rsplit("/", 1)[-1]
        last = last.replace("{peer}", "smith")
        assert any(path.rsplit("/", 1)[-1] == last for path in tried), f"{route.path} is not tried here"


async def test_a_dry_run_leaves_not_a_byte(world: World) -> None:
    before = await world.snapshot()
    for path, body in world.writes():
        answer = await world.post(path, body, dry_run=True)
        assert answer.status == 200, (path, answer.body)
        after = await world.snapshot()
        changed = sorted(name for name in before.keys() | after if before.get(name) != after.get(name))
        assert changed == [], path
        assert world.woken == [], path
    async with world.store.state.transaction() as tx:
        made = await messages.add(tx, NewMessage("scout", "operator", "more"))
    assert made == world.ids["message"] + 1, "an id was consumed"


async def test_a_dry_run_answers_as_the_real_thing_then_does(world: World) -> None:
    for path, body in world.writes():
        would = (await world.post(path, body, dry_run=True)).json
        before = await world.snapshot()
        done = await world.made(path, body)
        assert await world.snapshot() != before, f"{path} writes nothing: this case proves nothing"
        if path == "/proposals":  # it is examined in the background
            assert would.pop("state") == (await world.settled(done["id"]))["state"] == "pending"
            done = {**await world.settled(done["id"])}
            del done["state"]
        # What an agent is doing follows later, from a pass.
        for key in (*CHANGING, *(("state", "reason") if "desired" in done else ())):
            would.pop(key, None)
            done.pop(key, None)
        for hold in (*would.get("items", ()), *done.get("items", ())):
            del hold["at"]
        assert would == done, path


async def test_a_rehearsed_stop_or_destroy_tells_what_the_agent_is_now(world: World) -> None:
    now = (await world.control.call("GET", "/v1/agents/smith")).json
    for verb, desired in (("stop", "stopped"), ("destroy", "destroyed")):
        would = (await world.post(f"/agents/smith/{verb}", {}, dry_run=True)).json
        assert (would["state"], would["reason"], would["desired"]) == (now["state"], now["reason"], desired)


async def test_what_needs_a_revive_says_so(world: World) -> None:
    for verb in ("start", "stop", "restart"):
        answer = await world.post(f"/agents/old/{verb}", {}, dry_run=False)
        assert answer.json["error"]["hint"] == "`hive revive old` lets it run again", verb


async def test_what_would_be_superseded_is_told(world: World) -> None:
    body = {"digest": world.digests["third"]}
    would = (await world.post(f"/proposals/{world.ids['third']}/approve", body, dry_run=True)).json
    assert (would["state"], would["risk"]) == ("approved", "elevated")
    assert would["supersedes"] == [world.ids["first"], world.ids["second"]]
    shown = await world.settled(world.ids["third"])
    assert (shown["state"], shown["supersedes"]) == ("pending", would["supersedes"])


async def test_what_would_be_invalid_is_told_and_why(world: World) -> None:
    would = (await world.post("/agents", {"name": "scribe", "bash_allow": [""]}, dry_run=True)).json
    assert (would["id"], would["state"]) == (0, "invalid")
    assert "bash.allow" in would["error"]
    broken = await world.git.commit(
        AgentName("scout"), {"agent.nix": "{"}, parent=None, author="operator", message="broken"
    )
    would = (await world.post("/proposals", {"agent": "scout", "commit": broken}, dry_run=True)).json
    assert (would["id"], would["state"]) == (0, "invalid")
    assert "agent.nix" in would["error"]
    assert not any((world.state / "trees").iterdir())


async def test_a_dry_run_is_refused_for_the_same_reasons(world: World) -> None:
    ids = world.ids
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/agents", {"name": "scout"}, "conflict"),
        ("/agents", {"name": "old"}, "conflict"),
        ("/agents", {"name": "idea", "model": "opus"}, "conflict"),
        ("/agents", {"name": "Bad Name"}, "invalid"),
        ("/agents", {"name": "scribe", "model": "gpt"}, "invalid"),
        ("/agents", {"name": "scribe", "description": "x" * 2001}, "invalid"),
        ("/proposals", {"agent": "scout", "commit": "0" * 40}, "not-found"),
        ("/proposals", {"agent": "scout", "commit": "main"}, "invalid"),
        (f"/proposals/{ids['second']}/approve", {"digest": "0" * 64}, "conflict"),
        ("/proposals/99/approve", {"digest": "0" * 64}, "not-found"),
        ("/proposals/1/deny", {}, "conflict"),
        ("/proposals/1/cancel", {}, "conflict"),
        ("/messages", {"to": "nobody", "body": "x"}, "not-found"),
        ("/messages", {"to": "scout", "body": "x" * 70_000}, "too-large"),
        ("/messages", {"to": "scout", "body": "x", "in_reply_to": 99}, "not-found"),
        ("/messages/99/read", {}, "not-found"),
        ("/messages/99/redeliver", {}, "not-found"),
        (f"/messages/{ids['message']}/redeliver", {}, "conflict"),
        ("/questions/99/answer", {"text": "x"}, "not-found"),
        (f"/questions/{ids['question']}/answer", {"text": " "}, "invalid"),
        ("/questions/99/cancel", {}, "not-found"),
        ("/login-links", {"user": "Über"}, "invalid"),
        ("/agents/smith/model", {"model": "gpt"}, "invalid"),
        ("/agents/smith/rollback", {"generation": 9}, "not-found"),
        ("/agents/old/start", {}, "conflict"),
        ("/agents/old/restart", {}, "conflict"),
        ("/agents/smith/revive", {}, "conflict"),
        ("/agents/smith/purge", {"confirm": "smith"}, "conflict"),
        ("/agents/old/purge", {"confirm": "smith"}, "invalid"),
    ]
    before = await world.snapshot()
    for path, body, code in cases:
        rehearsed = await world.post(path, body, dry_run=True)
        real = await world.post(path, body, dry_run=False)
        assert (rehearsed.code, rehearsed.status) == (code, real.status), (path, rehearsed.body)
        assert rehearsed.body == real.body, path
    assert await world.snapshot() == before
