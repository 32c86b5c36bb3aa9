"""A restore takes whole backups of hives that fit the host, all or nothing, and refuses everything else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sqlite3
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.rules import Reserved
from reconciler.backup import format as form
from reconciler.backup import restore as restoring
from reconciler.backup.reading import read
from reconciler.backup.restore import Restore, refuse_half_restored
from reconciler.backup.writing import Archive
from reconciler.effects.git.layout import CONFIG
from reconciler.errors import OperatorError, PermanentError
from reconciler.store import copies
from reconciler.store.db import Store
from tests.fakes.services import a_header
from tests.support import hives
from tests.support.hives import BASES, SCOUT, SMITH, Hive, restored, target
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
        (_set(name="agents/smith/state" + "/d" * 5000), "lies deeper"),
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


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
async def test_a_header_that_fills_the_memory_is_refused_before_it_is_read(place: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("agents/smith/state/file")
    info.type, info.size = kind, 1 << 40
    with (place / "bad.tar").open("wb") as file:
        file.writelines(Archive(io.BytesIO()).text(form.HEADER, a_header().model_dump_json().encode()))
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 42)  # sparse: it costs its maker nothing
    with pytest.raises(OperatorError, match="a header of it has") as caught:
        Restore(place / "bad.tar", target(place), ranges=()).check()
    assert caught.value.code == "damaged"


async def test_headers_on_headers_are_refused(place: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    (place / "bad.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 5000)
    with pytest.raises(OperatorError) as caught:
        Restore(place / "bad.tar", target(place), ranges=()).check()
    assert caught.value.code == "damaged"


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


async def test_a_database_whose_agents_are_not_those_that_were_judged_is_refused(
    hive: Hive, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copies.shorten_history

    def swap(path: Path, ends: copies.Ends, since: int) -> None:
        real(path, ends, since)
        with contextlib.closing(sqlite3.connect(path.parent / "state.db")) as db, db:
            db.execute("UPDATE agents SET uid_base = 0 WHERE name = 'smith'")

    monkeypatch.setattr(copies, "shorten_history", swap)
    await hive.backup(place / "b.tar")
    with pytest.raises(OperatorError, match="not those of its header") as caught:
        Restore(place / "b.tar", target(place), ranges=()).run()
    assert caught.value.code == "damaged"
    assert list((place / "new/state").iterdir()) == []


async def test_a_database_that_writes_rows_of_its_own_is_refused(hive: Hive, place: Path) -> None:
    async with hive.store.state.transaction() as tx:
        await tx.run(
            "CREATE TRIGGER later AFTER INSERT ON turns "
            "BEGIN UPDATE agents SET uid_base = 0 WHERE name = 'smith'; END"
        )
    await hive.backup(place / "b.tar")
    with pytest.raises(OperatorError, match="trigger 'later', which no hive has"):
        Restore(place / "b.tar", target(place), ranges=()).run()


async def test_a_repository_brings_nothing_that_git_would_run(hive: Hive, place: Path) -> None:
    theirs, proof = hive.state / "repos/smith.git", place / "it-ran"
    with (theirs / "config").open("a") as config:
        config.write(f'[core]\n\talternateRefsCommand = "touch {proof};"\n')
    (theirs / "objects/info").mkdir(exist_ok=True)
    (theirs / "objects/info/alternates").write_text(f"{hive.state}/repos/scout.git/objects\n")
    (theirs / "hooks").mkdir()
    (theirs / "hooks/reference-transaction").write_text(f"#!/bin/sh\ntouch {proof}\n")
    (theirs / "commondir").write_text("../scout.git\n")
    await hive.backup(place / "b.tar")
    done = Restore(place / "b.tar", target(place), ranges=()).run()
    ours = place / "new/state/repos/smith.git"
    assert (ours / "config").read_text() == CONFIG
    assert sorted(path.name for path in ours.iterdir() if path.name != "logs") == [
        "HEAD", "config", "objects", "packed-refs", "refs",
    ]  # fmt: skip
    assert not (ours / "objects/info/alternates").exists()
    (warning,) = [text for text in done.warnings if text.startswith("repos/")]
    assert warning == (
        "repos/smith.git comes without its own commondir, config, hooks, objects/info/alternates"
    )


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


async def test_what_only_the_log_of_a_database_holds_counts(hive: Hive) -> None:
    """So much may have to be copied."""
    async with hive.store.state.transaction() as tx:
        await tx.audit("operator:ann", "before", "plan")
    assert (hive.state / "state.db-wal").stat().st_size > 0, "this case proves nothing"
    sizes = {part.name: part.bytes for part in (await hive.service.plan()).parts}
    for name in ("state.db", "events.db"):
        log = (hive.state / f"{name}-wal").stat().st_size
        assert sizes[name] == (hive.state / name).stat().st_size + log
