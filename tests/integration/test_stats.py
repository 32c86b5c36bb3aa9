"""Figures over real files: hostile containers, sudden deaths, old rows, older versions, and what is asked of
them. That they are right is `tests/property/test_stats_agree.py`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.control import models as api
from reconciler.effects.measures import RealMeasures, of_group
from reconciler.errors import OperatorError
from reconciler.model.names import AgentName
from reconciler.stats.catalogue import TOOLS_MAX
from reconciler.stats.service import StatService
from reconciler.store import copies, migrate
from reconciler.store import stats as sql
from reconciler.store.db import Tx
from tests.support.brokers import BOSS, SCOUT, SMITH, World, event, events
from tests.support.figures import Figures

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(BOSS, role="manager", allow=["*"])
    for name in (SCOUT, SMITH):
        await world.agent(name, allow=["*"])
        await world.hello(name)
    yield world
    await world.close()


@pytest.fixture
def figures(world: World) -> Figures:
    return Figures(world)


async def a_turn(world: World, *lines: wire.TurnEvent, outcome: wire.Outcome = "ok") -> int:
    """A turn of scout that takes a second."""
    turn = await world.begin(SCOUT, None)
    if lines:
        await world.broker.turn_events(SCOUT, turn, events(*lines))
    world.clock.advance(1)
    await world.end(SCOUT, turn, outcome)
    world.clock.advance(1)
    return turn


def call(seq: int, name: str) -> wire.TurnEvent:
    return event(seq, "tool_call", id="t", name=name, input={})


# ------------------------------------------------------------------------------------------------- counting
async def test_a_container_that_makes_names_up_has_few_keys_and_changes_nobody_elses(
    world: World, figures: Figures
) -> None:
    for turn in range(3):
        names = [f"made up {turn} {n}" for n in range(90)] + ["usd", "'; DROP TABLE stats;--", "\u202eevil"]
        await a_turn(world, *(call(seq, name) for seq, name in enumerate(names, 1)))
        await figures.write()
    keys = (
        "SELECT COUNT(DISTINCT key) FROM stats WHERE key LIKE 'tool\\_%' ESCAPE '\\' AND key <> 'tool_calls'"
    )
    assert await world.scalar(keys, events=True) == TOOLS_MAX + 1
    found = await figures.totals(agent="scout")
    assert (
        sum(value or 0 for key, value in found.items() if key.startswith("tool_") and "per" not in key) == 279
    )
    assert found["usd"] == 0, "a tool of that name is no money"
    others = await figures.totals(agent="smith")
    assert not any(value for key, value in others.items() if key.startswith("tool_"))


async def test_a_turn_that_was_compacted_and_tried_again_is_told_apart(
    world: World, figures: Figures
) -> None:
    failed = event(1, "result", is_error=True, subtype="error", duration_ms=1, num_turns=1)
    compacted = event(2, "compaction", before_tokens=9, after_tokens=1)
    await a_turn(world, failed, compacted)
    await a_turn(world, event(1, "compaction", before_tokens=9), failed.model_copy(update={"seq": 2}))
    await a_turn(world, failed, compacted, outcome="prompt_too_long")
    await figures.write()
    found = await figures.totals(agent="scout", keys="exit_ok,exit_compact_retry,exit_failure")
    assert found == {"exit_ok": 1, "exit_compact_retry": 1, "exit_failure": 1}


async def test_the_same_turns_twice_are_the_same_rows(world: World, figures: Figures) -> None:
    await a_turn(world, call(1, "Bash"))
    await figures.write()
    before = await figures.rows()
    sums = [tuple(row) for row in await world.store.events.all("SELECT * FROM stats_totals")]
    await world.restart()
    figures.restart()
    await figures.write()
    assert [tuple(row) for row in await world.store.events.all("SELECT * FROM stats_totals")] == sums
    async with world.store.events.transaction() as tx:  # as if the mark had not been written
        await tx.run("DELETE FROM stats_turns")
        await tx.run("DELETE FROM stats_marks")
    figures.restart()
    await figures.write()
    assert await figures.rows() == before


async def test_a_death_before_the_commit_leaves_the_turn_to_the_next(
    world: World, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: Tx, turn: int) -> None:
        raise RuntimeError(f"killed at {turn}")

    open_turn = await world.begin(SMITH, None)
    await a_turn(world, call(1, "Bash"))
    with monkeypatch.context() as patched:
        patched.setattr(sql, "count_turn", die)
        with pytest.raises(RuntimeError, match="killed"):
            await figures.recorder.round()
    assert await world.scalar("SELECT COUNT(*) FROM stats WHERE key = 'exit_ok'", events=True) == 0
    await figures.recorder.round()
    assert (await figures.totals(keys="exit_ok,tool_Bash")) == {"exit_ok": 1, "tool_Bash": 1}
    await world.end(SMITH, open_turn)
    world.clock.advance(1)
    await figures.recorder.round()
    assert (await figures.totals(keys="exit_ok")) == {"exit_ok": 2}, (
        "an older turn that ended later counts, too"
    )


async def test_levels_are_sampled_from_outside(world: World, figures: Figures) -> None:
    figures.running.pids = {"scout": 10, "smith": 11}
    figures.measures.memory, figures.measures.notes = {"scout": 100}, {"smith": 7}
    await world.say("scout")
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE proposals SET state = 'pending' WHERE agent = 'scout'")
    world.clock.advance(61)
    await figures.write()
    world.clock.advance(1)
    assert await figures.totals(agent="scout", keys="rss,notes_bytes,inbox_depth") == {
        "rss": 100, "notes_bytes": 0, "inbox_depth": 1
    }  # fmt: skip
    assert (await figures.totals(keys="approvals_pending,notes_bytes")) == {
        "approvals_pending": 1, "notes_bytes": 7
    }  # fmt: skip


async def test_a_start_after_the_first_is_a_restart(world: World, figures: Figures) -> None:
    for _ in range(3):
        async with world.store.state.transaction() as tx:
            await tx.emit("agent.started", "scout", generation=1, invocation="i", reason="")
        world.clock.advance(1)
    await figures.write()
    await world.restart()
    figures.restart()
    await figures.write()
    assert await figures.totals(agent="scout", keys="restarts") == {"restarts": 2}


async def test_the_context_is_what_the_gateway_saw_and_not_what_a_container_tells(
    world: World, figures: Figures
) -> None:
    await a_turn(world, event(1, "context", used_tokens=999_999, window_tokens=1_000_000))
    for tokens in ((10, 5, 100, 0), (1, 1, 1, 1)):
        figures.recorder.usage(figures.ledger.spend("scout", tokens, 1, day="2099-01-01"))
    await figures.write()
    world.clock.advance(1)
    found = await figures.totals(agent="scout", keys="context_used,tokens_out")
    assert found == {"context_used": 115, "tokens_out": 6}


async def test_what_a_purged_agent_left_of_totals_goes(world: World, figures: Figures) -> None:
    await a_turn(world, call(1, "Bash"))
    await figures.write()
    async with world.store.state.transaction() as tx:
        await tx.run("DELETE FROM agents WHERE name = 'scout'")
    world.clock.advance(61)
    await figures.write()
    assert await world.scalar("SELECT COUNT(*) FROM stats_totals WHERE agent = 'scout'", events=True) == 0
    assert (await figures.totals(agent="scout", keys="exit_ok")) == {"exit_ok": 1}, "its rows stay their time"


# ---------------------------------------------------------------------------------------------------- asking
async def test_agents_that_never_were_are_not_found_and_empty_spans_have_no_figures(
    world: World, figures: Figures
) -> None:
    with pytest.raises(OperatorError, match="no agent 'nobody'") as caught:
        await figures.query(agent="nobody")
    assert caught.value.code == "not-found"
    await a_turn(world)
    await figures.write()
    world.clock.advance(86_400)
    found = await figures.query(
        agent="scout", since="1h", points=10, keys="exit_ok,turn_duration_p50,usd,rss"
    )
    assert [one.values for one in found.series] == [
        [0] * len(found.times), [None] * len(found.times), [0] * len(found.times), [None] * len(found.times)
    ]  # fmt: skip
    assert 6 <= len(found.times) <= 10


async def test_every_agent_by_itself_has_its_own_series(world: World, figures: Figures) -> None:
    await a_turn(world, call(1, "Bash"))
    await figures.write()
    found = await figures.query(by="agent", keys="exit_ok,tool_*")
    assert [(one.agent, one.key, one.total) for one in found.series] == [
        ("hm1nd", "exit_ok", 0), ("scout", "exit_ok", 1), ("scout", "tool_Bash", 1), ("smith", "exit_ok", 0)
    ]  # fmt: skip


async def test_a_monitor_needs_the_token_that_the_host_has_now(world: World, tmp_path: Path) -> None:
    file = tmp_path / "token"
    stats = StatService(world.store, world.clock, str(file))

    async def refused(token: str) -> str:
        with pytest.raises(OperatorError) as caught:
            await stats.scrape(api.Scrape(token=token))
        return caught.value.code

    assert await refused("x" * 32) == "forbidden", "there is no file yet"
    file.write_text("short\n")
    assert await refused("short") == "forbidden"
    file.write_text("a" * 32 + "\n")
    assert await refused("b" * 32) == await refused("") == await refused("ä" * 32) == "unauthenticated"
    names = {metric.name for metric in (await stats.scrape(api.Scrape(token="a" * 32))).items}
    assert "hyperhive_turns_total" in names
    with pytest.raises(OperatorError, match="no monitor may"):
        await StatService(world.store, world.clock, None).scrape(api.Scrape(token="a" * 32))


# ------------------------------------------------------------------------------------------ the world outside
async def test_notes_are_measured_without_following_what_an_agent_made_of_them(tmp_path: Path) -> None:
    state = tmp_path / "agents/scout/state"
    state.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("x" * 1000)
    measures, scout = RealMeasures(tmp_path), AgentName("scout")
    assert await measures.notes_bytes(scout) is None
    notes = state / "notes.md"
    notes.write_text("12345")
    assert await measures.notes_bytes(scout) == 5
    others: list[Callable[[], None]] = [
        lambda: notes.symlink_to(secret),
        lambda: os.mkfifo(notes),
        notes.mkdir,
    ]
    for make in others:
        notes.unlink()
        make()
        assert await measures.notes_bytes(scout) is None
    notes.rmdir()
    state.rmdir()
    state.symlink_to(tmp_path)
    (tmp_path / "notes.md").write_text("elsewhere")
    assert await measures.notes_bytes(scout) is None


@pytest.mark.parametrize(
    ("line", "group", "stat"),
    [
        ("0::/hyperhive/scout.abc/payload", "hyperhive/scout.abc", "anon 4096\nfile 9\n"),
        ("9:memory:/hyperhive/scout.abc", "memory/hyperhive/scout.abc", "rss 1\ntotal_rss 4096\n"),
        (
            "0::/hive.slice/hive-agent@scout.service/payload",
            "hive.slice/hive-agent@scout.service",
            "anon 4096",
        ),
    ],
)
async def test_memory_is_of_the_whole_containers_group(
    tmp_path: Path, line: str, group: str, stat: str
) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (root / group).mkdir(parents=True)
    (root / group / "memory.stat").write_text(stat)
    (root / "cgroup.controllers").write_text("memory")
    (proc / "7").mkdir(parents=True)
    (proc / "7/cgroup").write_text(f"4:cpu:/else\n{line}\n")
    assert of_group(7, "scout", root, proc) == 4096
    assert of_group(7, "smith", root, proc) is None
    assert of_group(8, "scout", root, proc) is None


async def test_memory_of_processes_without_a_group_is_of_their_namespace_only(tmp_path: Path) -> None:
    own = AgentName("own")
    found = await RealMeasures(tmp_path).memory_bytes({own: os.getpid(), AgentName("gone"): 2**22 + 1})
    assert found == {}, "hived's own namespace is no container"


# --------------------------------------------------------------------------------------- versions, restores
async def test_figures_of_an_older_version_are_kept_and_its_turns_not_counted_again(tmp_path: Path) -> None:
    folder = migrate.MIGRATIONS / "events"
    old = sorted(folder.glob("[0-9]*.sql"))[:3]
    with sqlite3.connect(tmp_path / "events.db") as db:
        for script in old:
            db.executescript(script.read_text())
        db.execute("INSERT INTO stats VALUES ('scout', 5, 'turn_duration_s', 2.5)")
        db.execute("INSERT INTO stats VALUES ('scout', 5, 'exit_ok', 1)")
        db.execute("INSERT INTO stats VALUES ('scout', 5, 'exit_ok', 1)")
        for turn, seq in ((4, 0), (4, 2_000_000_000), (5, 0), (6, 2_000_000_000)):
            db.execute(
                "INSERT INTO transcript (agent, turn_id, seq, at, kind, data) "
                "VALUES ('scout', ?, ?, 5, 'x', '')",
                (turn, seq),
            )
        db.executescript((folder / "0004_stats.sql").read_text())
        rows = db.execute("SELECT agent, ts, key, value, source FROM stats").fetchall()
        assert rows == [("scout", 5, "exit_ok", 1.0, 0), ("scout", 5, "turn_duration", 2.5, 0)]
        assert db.execute("SELECT value FROM stats_marks").fetchall() == [(3,)]
        assert db.execute("SELECT turn_id FROM stats_turns").fetchall() == [(4,), (6,)]
    db.close()


async def test_turns_that_a_restored_hive_does_not_know_are_counted_when_their_numbers_come_again(
    world: World, figures: Figures, tmp_path: Path
) -> None:
    turns = [await a_turn(world) for _ in range(3)]
    await figures.write()
    copy = tmp_path / "copy.db"
    await world.store.events.backup(copy)
    copies.shorten_history(copy, copies.Ends(turns[1], 0, 0), since=0)
    with sqlite3.connect(copy) as db:
        kept = db.execute("SELECT DISTINCT source FROM stats WHERE key = 'exit_ok'").fetchall()
        mark = db.execute("SELECT value FROM stats_marks WHERE name = 'turns'").fetchone()
    db.close()
    assert kept == [(turns[0],), (turns[1],)]
    assert mark == (turns[1],)
