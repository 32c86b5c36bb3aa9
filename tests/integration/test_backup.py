"""A backup of a live hive, restored on an empty host, is the same hive; and what agents do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.backup import picture as pictures
from reconciler.errors import HiveError, PermanentError, TemporaryError
from reconciler.store.db import Store
from tests.support import hives
from tests.support.hives import BASES, NOT_UTF8, OPERATOR, SCOUT, SMITH, Hive, restored
from tests.support.needs import needs_root

pytestmark = [pytest.mark.asyncio, needs_root]


@pytest.fixture
def place() -> Iterator[Path]:
    with hives.a_place() as found:
        yield found


@pytest_asyncio.fixture
async def hive(place: Path) -> AsyncIterator[Hive]:
    (place / "old").mkdir(mode=0o755)
    found = await hives.a_hive(place / "old")
    yield found
    await found.close()


# ---------------------------------------------------------------------------------------- the same hive
async def test_a_restored_hive_equals_the_old_one_in_rows_refs_and_trees(hive: Hive, place: Path) -> None:
    report = await hive.backup(place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    live = hive.state

    assert hives.rows_of(state / "state.db") == hives.rows_of(live / "state.db")
    assert hives.rows_of(state / "events.db") == hives.rows_of(live / "events.db")
    assert hives.refs_of(state) == hives.refs_of(live)
    assert len(hives.refs_of(state)) == 4
    old = hives.tree_of(live / "agents")
    assert hives.tree_of(state / "agents") == old
    assert old["smith/state/" + os.fsdecode(NOT_UTF8)][1] == BASES[SMITH] + 1000
    assert old["smith/state/program"][0] == 0o104755
    assert hives.tree_of(state / "staged") == hives.tree_of(live / "staged")
    head = hives.rows_of(live / "state.db")["audit"][-1][-1]
    assert report.header.audit_head == head
    assert sorted(path.name for path in state.iterdir()) == [
        "agents", "events.db", "gateway", "meta", "repos", "staged", "state.db",
    ]  # fmt: skip


async def test_a_sparse_file_stays_small_in_the_backup_and_after_it(hive: Hive, place: Path) -> None:
    report = await hive.backup(place / "b.tar")
    assert (place / "b.tar").stat().st_size < 20 << 20
    assert report.size < 20 << 20
    state, _ = restored(place / "b.tar", place)
    status = (state / "agents/smith/state/sparse").stat()
    assert status.st_size == 5 << 30
    assert status.st_blocks * 512 < 1 << 20


async def test_the_ledger_is_copied_by_its_own_user_without_turns_of_the_future(
    hive: Hive, place: Path
) -> None:
    async with hive.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO turns (id, agent, boot, start_key, session_id, model, state, begun_at)"
            " VALUES (7, 'smith', 'b', 'k', 's', 'm', 'ended', 1)"
        )
    await hive.backup(place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    found = hives.rows_of(state / "gateway/ledger.db")
    live = hives.rows_of(hive.state / "gateway/ledger.db")
    assert found["spending"] == live["spending"]
    assert [row[1] for row in found["turn_tokens"]] == ["turn 1"]
    assert [row[1] for row in live["turn_tokens"]] == ["turn 1", "turn 99"]
    for path in (state / "gateway", state / "gateway/ledger.db"):
        assert path.owner() == hives.GATEWAY
        assert path.stat().st_mode & 0o077 == 0


async def test_a_ledger_that_is_a_link_to_roots_files_is_not_read_by_root(hive: Hive, place: Path) -> None:
    ledger = hive.state / "gateway/ledger.db"
    ledger.unlink()
    ledger.symlink_to(hive.state / "state.db")
    with pytest.raises(HiveError, match="unable to open database"):
        await hive.backup(place / "b.tar")


async def test_what_the_rows_do_not_know_of_is_not_in_the_history(hive: Hive, place: Path) -> None:
    async with hive.store.events.transaction() as tx:
        for turn in (0, 1):
            await tx.run(
                "INSERT INTO transcript (agent, turn_id, seq, at, kind, data)"
                " VALUES ('smith', ?, 1, 1, 'text', '{}')",
                turn,
            )
        await tx.run(
            "INSERT INTO build_log (proposal_id, at, text) VALUES (3, 1, 'kept'), (4, 1, 'of the future')"
        )
    await hive.backup(place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    found = hives.rows_of(state / "events.db")
    assert [row[2] for row in found["transcript"]] == [0]
    assert [row[3] for row in found["build_log"]] == ["kept"]


async def test_without_state_the_trees_are_left_out_and_the_restore_says_so(hive: Hive, place: Path) -> None:
    async with hive.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET session_used = 1")
    await hive.backup(place / "b.tar", with_state=False)
    state, done = restored(place / "b.tar", place)
    assert not (state / "agents").exists()
    assert any("begin empty" in warning for warning in done.warnings)
    store = await Store.open(state)
    assert [r["session_used"] for r in await store.state.all("SELECT session_used FROM agents")] == [0, 0, 0]
    await store.close()
    assert hives.refs_of(state) == hives.refs_of(hive.state)


async def test_a_backup_leaves_nothing_behind_and_a_killed_ones_rest_is_swept(
    hive: Hive, place: Path
) -> None:
    before = sorted(path.name for path in hive.state.iterdir())
    await hive.backup(place / "b.tar")
    assert sorted(path.name for path in hive.state.iterdir()) == before
    (hive.state / "backup/staged").mkdir(parents=True)
    (hive.state / "backup/state.db").touch()
    hive.service.sweep()
    assert sorted(path.name for path in hive.state.iterdir()) == before


async def test_a_disk_that_does_not_take_the_copies_is_told_and_nothing_is_left(
    hive: Hive, place: Path
) -> None:
    async with hive.store.events.transaction() as tx:
        await tx.run("INSERT INTO build_log (proposal_id, at, text) VALUES (1, 1, hex(zeroblob(2000000)))")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(PermanentError, match=r"events\.db could not be copied"):
            await hive.backup(place / "b.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (hive.state / "backup").exists()
    await hive.backup(place / "c.tar")


async def test_refs_that_take_too_long_to_read_give_the_rows_back(
    hive: Hive, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "REFS_S", 0.0)
    with pytest.raises(TemporaryError, match="reading the refs"):
        await hive.backup(place / "b.tar")
    monkeypatch.undo()
    async with hive.store.state.transaction() as tx:
        await tx.audit("operator:ann", "goes", "on")
    await hive.backup(place / "c.tar")


async def test_who_stops_reading_ends_the_backup_and_frees_the_lock(hive: Hive) -> None:
    chunks = hive.service.stream(OPERATOR, with_state=True)
    await anext(chunks)
    assert hive.deletions.locked()
    with pytest.raises(TemporaryError, match="another backup"):
        await anext(hive.service.stream(OPERATOR, with_state=True))
    await chunks.aclose()  # type: ignore[attr-defined] # it is a generator
    assert not hive.deletions.locked()
    assert not (hive.state / "backup").exists()


async def test_a_backup_is_an_audit_row_of_who_made_it(hive: Hive, place: Path) -> None:
    await hive.backup(place / "b.tar")
    last = hives.rows_of(hive.state / "state.db")["audit"][-1]
    assert last[2:4] == ("unix:root", "hive.backup")


# ---------------------------------------------------------------------------------------- a live hive
async def test_rows_written_meanwhile_find_their_commits_and_refs_in_the_backup(
    hive: Hive, place: Path
) -> None:
    """A row names a commit that was pinned before it: every row of the backup must find it, with its tag."""
    stop = False
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop:
            main = await hive.git.main(SCOUT)
            text = {"agent.nix": f"{{ }} # {written}\n"}
            commit = await hive.git.commit(SCOUT, text, parent=main, author="ann", message="more")
            number = written + 1000
            await hive.git.pin(SCOUT, f"proposal/{number}", commit)
            async with hive.store.state.transaction() as tx:
                await tx.run(
                    "INSERT INTO proposals (id, kind, agent, commit_id, state, requested_by, created_at)"
                    " VALUES (?, 'apply', 'scout', ?, 'pending', 'scout', ?)",
                    *(number, commit, tx.now),
                )  # fmt: skip
            (hive.tree(SCOUT) / f"file-{written}").write_bytes(os.urandom(1000))
            written += 1

    writer = asyncio.create_task(write())
    try:
        for number in range(4):
            await hive.backup(place / f"{number}.tar")
    finally:
        stop = True
        await writer
    assert written > 8
    for number in range(4):
        state, _ = restored(place / f"{number}.tar", place)
        refs = {line.split()[0]: line.split()[1] for line in hives.refs_of(state)["scout.git"]}
        pending = [row for row in hives.rows_of(state / "state.db")["proposals"] if row[5] == "pending"]
        for row in pending:
            assert refs[f"refs/tags/proposal/{row[0]}"] == row[3]
        known = {f"refs/tags/proposal/{row[0]}" for row in pending}
        ahead = [ref for ref in refs if ref.startswith("refs/tags/proposal/") and ref not in known]
        assert len(ahead) <= 1, "refs and rows are of one instant: only a pin whose row was not written yet"
        shutil.rmtree(state)


class Meddler:
    """Does something to the tree when the archive comes to a file of it."""

    def __init__(self, archive_file: str, act: Callable[[], None]) -> None:
        self.file, self.act, self.done = archive_file, act, False

    async def backup(self, hive: Hive, file: Path) -> None:
        with file.open("wb") as out:
            async for chunk in hive.service.stream(OPERATOR, with_state=True):
                out.write(chunk)
                if not self.done and self.file.encode() in chunk:
                    self.done = True
                    self.act()
        assert self.done


async def test_a_file_that_shrinks_or_grows_while_it_is_read_does_not_break_the_archive(
    hive: Hive, place: Path
) -> None:
    big = hive.tree(SMITH) / "aaa-big"
    growing = hive.tree(SMITH) / "aab-growing"
    big.write_bytes(b"a" * (4 << 20))
    growing.write_bytes(b"b" * (4 << 20))

    def act() -> None:
        os.truncate(big, 1 << 20)
        with growing.open("ab") as file:
            file.write(b"c" * (4 << 20))

    await Meddler("aaa-big", act).backup(hive, place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    found = (state / "agents/smith/state/aaa-big").read_bytes()
    assert len(found) == 4 << 20
    assert found.rstrip(b"\0") + b"\0" * found.count(b"\0") == found
    grown = (state / "agents/smith/state/aab-growing").stat().st_size
    assert grown in {4 << 20, 8 << 20}


async def test_a_tree_that_is_swapped_for_links_while_it_is_read_shows_nothing_of_the_host(
    hive: Hive, place: Path
) -> None:
    secret = place / "secret-of-the-host"
    secret.mkdir()
    (secret / "key").write_text("the host's own key")
    top = hive.tree(SMITH)
    (top / "aaa").write_bytes(b"a" * (1 << 20))
    (top / "zzz").mkdir()
    (top / "zzz/key").write_text("mine")

    def act() -> None:
        shutil.rmtree(top / "zzz")
        (top / "zzz").symlink_to(secret)

    await Meddler("smith/state/aaa", act).backup(hive, place / "b.tar")
    assert b"the host's own key" not in (place / "b.tar").read_bytes()


async def test_pipes_sockets_and_files_of_others_are_left_out_and_told(hive: Hive, place: Path) -> None:
    top = hive.tree(SMITH)
    os.mkfifo(top / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(top / "socket"))
    (top / "stolen").write_text("of scout")
    os.chown(top / "stolen", BASES[SCOUT] + 1000, BASES[SCOUT] + 1000)
    report = await hive.backup(place / "b.tar")
    told = dict(report.left_out)
    assert set(told) == {f"agents/smith/state/{name}" for name in ("pipe", "socket", "stolen")}
    assert "not the agent's" in told["agents/smith/state/stolen"]
    state, _ = restored(place / "b.tar", place)
    assert not (state / "agents/smith/state/pipe").exists()


async def test_a_tree_deeper_than_any_path_ends_and_is_told(hive: Hive, place: Path) -> None:
    here = os.open(hive.tree(SCOUT), os.O_RDONLY)
    for _ in range(1200):  # longer than PATH_MAX in the end
        os.mkdir("dddd", dir_fd=here)
        deeper = os.open("dddd", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    report = await hive.backup(place / "b.tar")
    ((path, why),) = report.left_out
    assert path.startswith("agents/scout/state/dddd/dddd")
    assert "deeper" in why
