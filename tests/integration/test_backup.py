"""A backup of a live hive, restored on an empty host, is the same hive; whatever else somebody hands in is
refused."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.rules import Reserved
from reconciler.backup import format as form
from reconciler.backup import restore as restoring
from reconciler.backup.reading import read
from reconciler.backup.restore import Restore, Restored, refuse_half_restored
from reconciler.backup.writing import Archive
from reconciler.config import Config
from reconciler.errors import HiveError, OperatorError, PermanentError, TemporaryError
from reconciler.store import copies
from reconciler.store.db import Store
from tests.fakes.services import a_header
from tests.support import hives
from tests.support.hives import BASES, NOT_UTF8, OPERATOR, SCOUT, SMITH, Hive

pytestmark = [pytest.mark.asyncio, hives.needs_root]


@pytest.fixture
def place() -> Iterator[Path]:
    found = hives.folder()
    yield found
    # rm does not mind how deep a tree is
    subprocess.run(["rm", "-rf", "--", found], check=True, timeout=60)


@pytest_asyncio.fixture
async def hive(place: Path) -> AsyncIterator[Hive]:
    (place / "old").mkdir(mode=0o755)
    found = await hives.a_hive(place / "old")
    yield found
    await found.close()


def target(place: Path) -> Config:
    (place / "new").mkdir(exist_ok=True)
    return hives.config_in(place / "new")


def restored(file: Path, place: Path) -> tuple[Path, Restored]:
    config = target(place)
    done = Restore(file, config, ranges=()).run()
    return Path(config.state_dir), done


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


# ---------------------------------------------------------------------------------------- damaged files
async def test_every_cut_off_file_is_refused_and_changes_nothing(hive: Hive, place: Path) -> None:
    await hive.backup(place / "b.tar")
    whole = (place / "b.tar").read_bytes()
    chance = random.Random(7)
    seal = whole.rindex(b"manifest.sha256")
    for size in [0, 1, 511, 512, 513, seal, seal + 512, *(chance.randrange(seal) for _ in range(40))]:
        (place / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(OperatorError) as caught:
            Restore(place / "cut.tar", target(place), ranges=()).run()
        assert caught.value.code == "damaged"
    assert not (place / "new/state").exists()


async def test_a_flipped_byte_is_refused_or_makes_no_difference(hive: Hive, place: Path) -> None:
    await hive.backup(place / "b.tar")
    whole = bytearray((place / "b.tar").read_bytes())
    expected = read(io.BytesIO(bytes(whole)))
    chance = random.Random(11)
    refused = 0
    codes = set()
    for _ in range(150):
        at = chance.randrange(len(whole))
        whole[at] ^= 1 << chance.randrange(8)
        try:
            report = read(io.BytesIO(bytes(whole)))
        except OperatorError as error:
            codes.add(error.code)
            refused += 1
        else:  # padding between members, or a field of a header that nobody reads
            assert report == expected
        whole = bytearray((place / "b.tar").read_bytes())
    assert refused > 75
    assert codes <= {"damaged", "conflict"}


async def test_a_newer_backup_is_refused_with_the_version_that_can_read_it(hive: Hive, place: Path) -> None:
    header = {**a_header().model_dump(), "format": 2, "version": "9.9.9", "surprise": True}
    with (place / "lines").open("w+b") as lines:
        archive = Archive(lines)
        parts = [*archive.text(form.HEADER, json.dumps(header).encode()), *archive.end()]
    (place / "new.tar").write_bytes(b"".join(parts))
    with pytest.raises(OperatorError, match="format 2") as caught:
        Restore(place / "new.tar", target(place), ranges=()).check()
    assert caught.value.code == "conflict"
    assert "9.9.9" in caught.value.hint


async def test_a_newer_schema_is_refused(place: Path) -> None:
    header = a_header().model_copy(update={"schemas": {"state.db": 999}})
    with (place / "lines").open("w+b") as lines:
        archive = Archive(lines)
        parts = [*archive.text(form.HEADER, header.model_dump_json().encode()), *archive.end()]
    (place / "new.tar").write_bytes(b"".join(parts))
    with pytest.raises(OperatorError, match="schema 999"):
        Restore(place / "new.tar", target(place), ranges=()).check()


def hostile(change: Callable[[tarfile.TarInfo], None], data: bytes = b"x") -> bytes:
    """A backup with right hashes whose one member was made by somebody bad."""
    lines = io.BytesIO()
    archive = Archive(lines)
    parts = list(archive.text(form.HEADER, a_header().model_dump_json().encode()))
    info = tarfile.TarInfo("agents/smith/state/file")
    info.size = len(data)
    change(info)
    if info.type != tarfile.REGTYPE:
        data, info.size = b"", 0
    parts += list(archive._member(info, iter((data,))))
    return b"".join([*parts, *archive.end()])


def _set(**fields: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set(name="/etc/passwd"), "stay inside"),
        (_set(name="agents/smith/state/../../../x"), "stay inside"),
        (_set(name="agents/../../x"), "stay inside"),
        (_set(name="somewhere/else"), "nothing that a backup holds"),
        (_set(name="agents/smith/other/x"), "nothing that a backup holds"),
        (_set(name="repos/smith.git.evil/x"), "nothing that a backup holds"),
        (_set(name="repos/smith.git/hook", type=tarfile.SYMTYPE, linkname="/etc"), "nothing that a backup"),
        (_set(name="state.db", type=tarfile.SYMTYPE, linkname="/etc/shadow"), "nothing that a backup holds"),
        (_set(name="agents/smith/state", type=tarfile.SYMTYPE, linkname="/etc"), "no directory"),
        (_set(type=tarfile.LNKTYPE, linkname="/etc/shadow"), "leaves its tree"),
        (_set(type=tarfile.LNKTYPE, linkname="agents/scout/state/x"), "leaves its tree"),
        (_set(type=tarfile.LNKTYPE, linkname="agents/smith/state/../../scout/x"), "leaves its tree"),
        (_set(type=tarfile.CHRTYPE), "neither file"),
        (_set(type=tarfile.FIFOTYPE), "neither file"),
        (_set(pax_headers={form.PAX_SPARSE: "0:1", form.PAX_SIZE: "0"}), "impossible map"),
        (_set(pax_headers={form.PAX_SPARSE: "-4:1", form.PAX_SIZE: "9"}), "impossible map"),
        (_set(pax_headers={form.PAX_SPARSE: "0:1"}), "no readable map"),
    ],
)  # fmt: skip
async def test_a_hostile_member_is_refused(
    place: Path, change: Callable[[tarfile.TarInfo], None], why: str
) -> None:
    (place / "bad.tar").write_bytes(hostile(change))
    with pytest.raises(OperatorError, match=why) as caught:
        Restore(place / "bad.tar", target(place), ranges=()).run()
    assert caught.value.code == "damaged"
    assert not (place / "new/state").exists()


async def test_a_member_below_a_link_of_the_archive_goes_nowhere(place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    lines = io.BytesIO()
    archive = Archive(lines)
    agents = [
        form.AgentInside(name="smith", uid_base=BASES[SMITH], role="agent", desired="running", generation=1)
    ]
    header = a_header().model_copy(update={"agents": agents})
    parts = list(archive.text(form.HEADER, header.model_dump_json().encode()))
    link = tarfile.TarInfo("agents/smith/state/door")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    below = tarfile.TarInfo("agents/smith/state/door/file")
    below.size = 1
    parts += [*archive._member(link, iter(())), *archive._member(below, iter((b"x",))), *archive.end()]
    (place / "bad.tar").write_bytes(b"".join(parts))
    with pytest.raises(OperatorError, match="lies below"):
        Restore(place / "bad.tar", target(place), ranges=()).run()
    assert list(outside.iterdir()) == []
    assert list((place / "new/state").iterdir()) == []


async def test_a_database_that_was_damaged_before_the_backup_is_refused_at_the_restore(
    hive: Hive, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copies.shorten_history

    def damage(path: Path, ends: copies.Ends, since: int) -> None:
        real(path, ends, since)
        with (path.parent / "state.db").open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"\xff" * 4096)

    monkeypatch.setattr(copies, "shorten_history", damage)
    await hive.backup(place / "b.tar")
    with pytest.raises(OperatorError, match=r"state\.db: ") as caught:
        Restore(place / "b.tar", target(place), ranges=()).run()
    assert caught.value.code == "damaged"
    assert list((place / "new/state").iterdir()) == []


async def test_a_broken_audit_chain_stays_as_it_is(hive: Hive, place: Path) -> None:
    async with hive.store.state.transaction() as tx:
        await tx.run("UPDATE audit SET data = '{}' WHERE id = 1")
    await hive.backup(place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    assert copies.audit_chain(state / "state.db")[2] == 1
    assert hives.rows_of(state / "state.db")["audit"] == hives.rows_of(hive.state / "state.db")["audit"]


# ---------------------------------------------------------------------------------------- the new host
async def test_a_state_directory_that_holds_anything_is_refused(hive: Hive, place: Path) -> None:
    await hive.backup(place / "b.tar")
    config = target(place)
    state = Path(config.state_dir)
    (state / "gateway").mkdir(parents=True)  # what an installation makes
    (state / "gateway" / "x").touch()
    with pytest.raises(OperatorError, match="not empty: it has gateway"):
        Restore(place / "b.tar", config, ranges=()).run()
    (state / "gateway" / "x").unlink()
    Restore(place / "b.tar", config, ranges=()).run()
    with pytest.raises(OperatorError, match="not empty"):
        Restore(place / "b.tar", config, ranges=()).run()


async def test_uids_that_are_taken_on_the_new_host_are_refused_with_who_has_them(
    hive: Hive, place: Path
) -> None:
    await hive.backup(place / "b.tar")
    taken = (Reserved(BASES[SCOUT] + 5, 1, "/etc/passwd (ann)"),)
    with pytest.raises(OperatorError, match=r"of scout are taken on this host: /etc/passwd \(ann\)"):
        Restore(place / "b.tar", target(place), ranges=taken).run()
    assert not (place / "new/state").exists()


async def test_a_restore_that_was_killed_anywhere_is_run_again(
    hive: Hive, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hive.backup(place / "b.tar")
    config = target(place)
    state = Path(config.state_dir)
    real = Path.rename
    moved = 0

    def die(self: Path, to: Path) -> Path:
        nonlocal moved
        moved += 1
        if moved == limit:
            raise KeyboardInterrupt
        return real(self, to)

    monkeypatch.setattr(Path, "rename", die)
    for limit in range(1, 9):  # the ledger, then every part
        moved = 0
        with pytest.raises(KeyboardInterrupt):
            Restore(place / "b.tar", config, ranges=()).run()
        if limit > 1:
            with pytest.raises(OperatorError, match="interrupted"):
                refuse_half_restored(state)
    monkeypatch.undo()
    Restore(place / "b.tar", config, ranges=()).run()
    refuse_half_restored(state)
    assert hives.rows_of(state / "state.db") == hives.rows_of(hive.state / "state.db")
    assert hives.tree_of(state / "agents") == hives.tree_of(hive.state / "agents")
    assert restoring.RESTORING not in {path.name for path in state.iterdir()}


async def test_a_restored_state_opens_and_goes_on(hive: Hive, place: Path) -> None:
    await hive.backup(place / "b.tar")
    state, _ = restored(place / "b.tar", place)
    store = await Store.open(state)
    try:
        async with store.state.transaction() as tx:
            await tx.audit("operator:ann", "after", "restore")
        row = await store.state.one("SELECT count(*) AS n FROM audit")
        assert row is not None
        assert row["n"] == 5
    finally:
        await store.close()


async def test_no_room_for_the_copies_is_said_before_anything_is_written(
    hive: Hive, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(PermanentError, match="1000 free"):
        await hive.backup(place / "b.tar")
    assert not (hive.state / "backup").exists()


async def test_the_plan_names_every_part_and_changes_nothing(hive: Hive) -> None:
    before = sorted(path.name for path in hive.state.iterdir())
    plan = await hive.service.plan()
    names = {part.name for part in plan.parts}
    assert names == {
        "state.db", "events.db", "ledger.db", "meta", "repos/smith.git", "repos/scout.git", "repos/gone.git",
        "agents/smith", "agents/scout", "agents/gone",
    }  # fmt: skip
    assert 300_000 < plan.bytes < 20 << 20
    assert sorted(path.name for path in hive.state.iterdir()) == before
