"""Builds with real Nix: several agents at once up to the bound, one agent one after the other, ended at once
when nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.effects.clock import SystemClock
from reconciler.effects.nix import RealNix
from reconciler.errors import CommandError
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState
from reconciler.passes.builds import Builds
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import Candidate
from tests.integration.nix_kit import BUILD_USER, PrivateNix, needs_nix, private_nix

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_nix]
SMITH, SCOUT, SCRIBE = (AgentName(name) for name in ("smith", "scout", "scribe"))
PARALLEL = 2
MARK = "waits-for-the-test"
# Each builder tells the test that it is there and waits until the test lets it go on; a dependency first.
MEETING = """\
{ name, specFile }:
let
  text = builtins.readFile specFile;
  step = part: deps: derivation {
    name = "${part}-${name}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    inherit deps text;
    args = [
      "-c"
      ": MARK; echo here-${part}; echo ${part}-${name} > /meeting/started; \\
read x < /meeting/go-${name}; : > $out"
    ];
  };
in
step "hive" [ (step "dep" [ ]) ]
""".replace("MARK", MARK)


class FakeTrees:
    """Trees without files: what is built is the spec."""

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        (into / "agent.nix").write_text("{ }")


class Meeting:
    """Where builders and the test wait for each other."""

    def __init__(self, place: Path) -> None:
        self.place = place
        os.mkfifo(place / "started")
        self._started = os.open(place / "started", os.O_RDWR | os.O_NONBLOCK)
        self._go: list[int] = []
        self._text = b""

    def close(self) -> None:
        for descriptor in (self._started, *self._go):
            os.close(descriptor)
        for path in self.place.iterdir():
            path.unlink()

    def expect(self, name: AgentName) -> None:
        """An agent's builders find a place to wait at."""
        path = self.place / f"go-{name}"
        if not path.exists():
            os.mkfifo(path)
            self._go.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    async def started(self) -> str:
        """The next builder that began."""
        loop, there = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._started, there.set)
        try:
            async with asyncio.timeout(30):
                while b"\n" not in self._text:
                    await there.wait()
                    there.clear()
                    self._text += os.read(self._started, 4096)
        finally:
            loop.remove_reader(self._started)
        assert self._text, self.place
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def nobody(self) -> bool:
        """Whether no builder began that was not asked for yet."""
        with contextlib.suppress(BlockingIOError):
            self._text += os.read(self._started, 4096)
        return not self._text

    def let_go(self, name: AgentName) -> None:
        """One builder of the agent goes on."""
        descriptor = os.open(self.place / f"go-{name}", os.O_WRONLY)
        os.write(descriptor, b"\n")
        os.close(descriptor)


class Hive:
    """Rows, builds and a real Nix whose builders wait for the test."""

    def __init__(self, store: Store, private: PrivateNix, meeting: Meeting) -> None:
        self.store, self.private, self.meeting = store, private, meeting
        self.nix: RealNix = private.effect()
        self.nix._modules = private.path / "meeting-modules"
        self.logs: dict[int, list[str]] = {}
        self.woken: list[AgentName] = []
        self.ended, self.logged = asyncio.Event(), asyncio.Event()
        git: Any = FakeTrees()
        self.trees = private.path / "state/trees"
        self.builds = Builds(
            store, git, self.nix, self.trees, parallel=PARALLEL, append_log=self._append, wake=self._wake,
            clock=SystemClock(),
        )  # fmt: skip

    async def _append(self, proposal: int, lines: list[str]) -> None:
        self.logs.setdefault(proposal, []).extend(lines)
        self.logged.set()

    def _wake(self, name: AgentName) -> None:
        self.woken.append(name)
        self.ended.set()

    async def approve(self, name: AgentName) -> int:
        self.meeting.expect(name)
        async with self.store.state.transaction() as tx:
            await tx.run(
                "INSERT OR IGNORE INTO agents (name, role, uid_base, desired, session_id, created_at) "
                "VALUES (?, 'agent', ?, 'running', 's', ?)", name, 65536 * sum(name.encode()), tx.now,
            )  # fmt: skip
            made = await tx.run(
                "INSERT INTO proposals (kind, agent, commit_id, state, spec, spec_digest, requested_by, "
                "created_at) VALUES ('apply', ?, ?, 'approved', ?, 'd', 'operator', ?)",
                name, uuid.uuid4().hex, f'{{"model": "{uuid.uuid4().hex}"}}', tx.now,
            )  # fmt: skip
            return made.row_id

    async def look(self, name: AgentName) -> Candidate | None:
        """What a pass does for the build of an agent."""
        facts = await deployments.read(self.store.state, name, now=0, building=self.builds.running)
        candidate = facts.candidate if facts is not None else None
        await self.builds.tend(name, candidate)
        if candidate is not None and candidate.store_path is None and not self.builds.running(name):
            async with self.store.state.transaction() as tx:
                await deployments.begin_build(tx, candidate)
            self.builds.start(candidate)
        return candidate

    async def until_ended(self, name: AgentName) -> None:
        async with asyncio.timeout(30):
            while self.builds.running(name):
                self.ended.clear()
                await self.ended.wait()

    async def until_logged(self, proposal: int, line: str) -> None:
        async with asyncio.timeout(30):
            while line not in self.logs.get(proposal, []):
                self.logged.clear()
                await self.logged.wait()

    async def move(self, proposal: int, state: ProposalState) -> None:
        async with self.store.state.transaction() as tx:
            await tx.move_proposal(proposal, state)

    async def row(self, proposal: int) -> Any:
        return await self.store.state.one("SELECT * FROM proposals WHERE id = ?", proposal)


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNix]:
    with private_nix() as found:
        modules = found.path / "meeting-modules/bare"
        modules.mkdir(parents=True)
        (modules / "build.nix").write_text(MEETING)
        yield found


@pytest_asyncio.fixture
async def hive(private: PrivateNix, tmp_path: Path) -> AsyncIterator[Hive]:
    store = await Store.open(tmp_path)
    meeting = Meeting(private.path / "meeting")
    made = Hive(store, private, meeting)
    try:
        yield made
    finally:
        await made.builds.close()
        await store.close()
        meeting.close()


def builders() -> list[str]:
    """Command lines of builders of this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if MARK in text:
            found.append(text)
    return found


async def until_no_builder() -> None:
    async with asyncio.timeout(10):
        while builders():  # noqa: ASYNC110 - the daemon notices the client's end by itself
            await asyncio.sleep(0.01)


async def test_agents_are_built_at_once_up_to_the_bound(hive: Hive) -> None:
    numbers = {name: await hive.approve(name) for name in (SMITH, SCOUT, SCRIBE)}
    for name in numbers:
        await hive.look(name)
    # Both builders stand in the meeting at the same time: neither was let go before both had come.
    assert {await hive.meeting.started(), await hive.meeting.started()} == {"dep-smith", "dep-scout"}
    waiting = hive.builds.state(numbers[SCRIBE])
    assert waiting is not None
    assert (waiting.queued, waiting.elapsed_s, hive.meeting.nobody()) == (True, 0.0, True)
    hive.meeting.let_go(SMITH)
    assert await hive.meeting.started() == "hive-smith"
    await hive.until_logged(numbers[SMITH], "here-hive")
    going = hive.builds.state(numbers[SMITH])
    assert going is not None
    assert (going.queued, going.built, going.expected, going.running) == (False, 1, 2, ("hive-smith",))
    assert hive.meeting.nobody()
    hive.meeting.let_go(SMITH)
    await hive.until_ended(SMITH)
    assert await hive.meeting.started() == "dep-scribe"
    assert hive.builds.state(numbers[SMITH]) is None
    row = await hive.row(numbers[SMITH])
    assert row["store_path"].endswith("-hive-smith")
    assert row["build_us"] > 0


async def test_one_agent_is_built_one_after_the_other(hive: Hive) -> None:
    first, second = await hive.approve(SMITH), await hive.approve(SMITH)
    await hive.look(SMITH)
    assert await hive.meeting.started() == "dep-smith"
    await hive.look(SMITH)
    assert (hive.builds.state(second), hive.meeting.nobody()) == (None, True)
    for _ in range(2):
        hive.meeting.let_go(SMITH)
    assert await hive.meeting.started() == "hive-smith"
    await hive.until_ended(SMITH)
    await hive.move(first, ProposalState.ACTIVATING)
    await hive.move(first, ProposalState.DEPLOYED)
    await hive.look(SMITH)
    assert await hive.meeting.started() == "dep-smith"
    state = hive.builds.state(second)
    assert state is not None
    assert state.left_s is not None, "the first build says how long the second may take"
    lines = hive.logs[first]
    assert lines[0].startswith("building smith at ")
    assert [line for line in lines if line.startswith("here-")] == ["here-dep", "here-hive"]
    assert lines[-1].startswith("built /")


@pytest.mark.parametrize("end", [ProposalState.CANCELLED, ProposalState.SUPERSEDED])
async def test_what_is_not_wanted_any_more_ends_at_once(
    hive: Hive, end: ProposalState, record_property: Callable[[str, object], None]
) -> None:
    proposal = await hive.approve(SMITH)
    await hive.look(SMITH)
    assert await hive.meeting.started() == "dep-smith"
    assert builders()
    await hive.move(proposal, end)
    began = time.monotonic()
    await hive.look(SMITH)
    client_s = time.monotonic() - began
    assert not hive.builds.running(SMITH)
    await until_no_builder()
    all_ms = (time.monotonic() - began) * 1000
    record_property(
        "figure", f"{end}: the client was gone after {client_s * 1000:.0f} ms, all {all_ms:.0f} ms"
    )
    assert (await hive.row(proposal))["state"] == end
    assert "not wanted" in hive.logs[proposal][-1]
    assert list((hive.private.path / "state/clients").iterdir()) == list(hive.trees.iterdir()) == []


async def test_a_client_has_limits_of_time_and_memory_and_no_rights(hive: Hive) -> None:
    await hive.approve(SMITH)
    await hive.look(SMITH)
    await hive.meeting.started()
    (client,) = [
        process.parent
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if f"specFile\0{hive.private.path}".encode() in _text(process)
    ]
    limits = _text(client / "limits").decode()
    for name, limit in (("cpu time", 600), ("address space", 4 << 30), ("file size", 16 << 20)):
        assert re.search(rf"Max {name} +{limit} +{limit} ", limits), limits
    status = _text(client / "status").decode()
    assert "NoNewPrivs:\t1" in status
    assert re.search(r"CapEff:\t0+\n", status)
    assert f"Uid:\t{pwd.getpwnam(BUILD_USER).pw_uid}\t" in status


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_a_newer_approval_takes_the_place_of_a_build(hive: Hive) -> None:
    first = await hive.approve(SMITH)
    await hive.look(SMITH)
    assert await hive.meeting.started() == "dep-smith"
    await hive.move(first, ProposalState.SUPERSEDED)
    second = await hive.approve(SMITH)
    await hive.look(SMITH)
    assert await hive.meeting.started() == "dep-smith"
    assert (hive.builds.state(first), hive.builds.state(second) is not None) == (None, True)


async def test_a_queued_build_can_be_taken_back_and_takes_no_slot(hive: Hive) -> None:
    numbers = {name: await hive.approve(name) for name in (SMITH, SCOUT, SCRIBE)}
    for name in numbers:
        await hive.look(name)
    await hive.meeting.started()
    await hive.meeting.started()
    await hive.move(numbers[SCRIBE], ProposalState.CANCELLED)
    await hive.look(SCRIBE)
    assert not hive.builds.running(SCRIBE)
    assert (hive.builds.running(SMITH), hive.builds.running(SCOUT)) == (True, True)


async def test_the_end_of_hived_ends_all_builds(
    hive: Hive, record_property: Callable[[str, object], None]
) -> None:
    for name in (SMITH, SCOUT, SCRIBE):
        await hive.approve(name)
        await hive.look(name)
    await hive.meeting.started()
    await hive.meeting.started()
    began = time.monotonic()
    await hive.builds.close()
    record_property(
        "figure", f"the end of hived: builds ended after {(time.monotonic() - began) * 1000:.0f} ms"
    )
    assert not hive.builds.tasks
    await until_no_builder()
    states = [row["state"] for row in await hive.store.state.all("SELECT state FROM proposals ORDER BY id")]
    assert states == ["building"] * 3, "the next hived goes on from the rows"


async def test_a_build_that_finished_for_nobody_is_let_go(hive: Hive) -> None:
    proposal = await hive.approve(SMITH)
    await hive.look(SMITH)
    for _ in range(2):
        hive.meeting.let_go(SMITH)
        await hive.meeting.started()
    await hive.until_ended(SMITH)
    path = (await hive.row(proposal))["store_path"]
    await hive.look(SMITH)
    hive.private.run("nix-store", "--gc")
    assert Path(path).exists(), "it is about to be activated"
    await hive.move(proposal, ProposalState.CANCELLED)
    await hive.look(SMITH)
    hive.private.run("nix-store", "--gc")
    assert not Path(path).exists()


async def test_what_a_killed_hived_left_is_swept(hive: Hive) -> None:
    for left in ("trees/build-smith-7-x/deep", "trees/smith-7-x", "clients/tmpx", "trees/examine-3-x"):
        (hive.private.path / "state" / left).mkdir(parents=True)
    await hive.builds.sweep()
    assert [path.name for path in hive.trees.iterdir()] == ["examine-3-x"]
    assert list((hive.private.path / "state/clients").iterdir()) == []
    (hive.trees / "examine-3-x").rmdir()


async def test_an_endless_log_ends_the_build(private: PrivateNix) -> None:
    lines: list[str] = []

    async def sink(line: str) -> None:
        lines.append(line)

    modules = private.path / "noisy/bare"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "build.nix").write_text(
        '{ name, specFile }: derivation { name = "hive-${name}"; system = builtins.currentSystem; '
        'builder = "/bin/sh"; args = [ "-c" ": '
        + MARK
        + '; while :; do echo 0123456789012345678901234567890123456789; done" ]; }'
    )
    nix = private.effect()
    nix._modules = private.path / "noisy"
    with pytest.raises(CommandError) as failed:
        await nix.build(SMITH, Path("/nowhere"), {}, sink)
    assert failed.value.code == "output-too-large"
    assert "printed more than" in failed.value.record.stderr_tail
    assert lines[-1].startswith("[the log is too long")
    assert len(lines) == 20_001
    await until_no_builder()
