"""The power is cut at any time while the databases are written: what had been told is committed is there,
both files are whole, and a message that a turn may have seen comes again marked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.store import leases
from reconciler.store.db import Store, audit_payload, chain
from tests.support.crash.powerwriter import BEGUN, MESSAGES
from tests.support.crash.writelog import TRACED, Cuts, Disk, Op, parse

CLONE = Path(__file__).resolve().parents[2]
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
DISKS = 100_000 if FULL else 400
TOLD = [
    line
    for number in range(1, MESSAGES + 1)
    for line in (
        b"committed %d\n" % number,
        b"leased %d\n" % number,
        *([b"begun %d\n" % number] if number in BEGUN else []),
    )
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hive-power-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def recorded(place: Path) -> list[Op]:
    """All writes and syncs from the first start of a hive on."""
    log, state = place / "log", place / "state"
    subprocess.run(
        ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", TRACED, "-o", str(log),
         sys.executable, "-m", "tests.support.crash.powerwriter", str(state)],
        cwd=CLONE, env={**os.environ, "PYTHONPATH": str(CLONE)}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return parse(log, state)


def test_what_was_committed_outlives_a_power_cut_at_any_time(place: Path, recorded: list[Op]) -> None:
    told = [op.data for op in recorded if op.kind == "told"]
    assert told == TOLD
    checkpoints = [op for op in recorded if op.kind == "write" and op.path.endswith("/state.db")]
    assert len(checkpoints) > 50, "the log was never carried over"
    disks = list(Cuts(recorded))
    assert len(disks) > 500
    step = max(1, len(disks) // DISKS)
    chosen = [*disks[:60], *disks[60::step]]  # the first moments of a hive, all of them
    asyncio.run(_check_all(place, chosen))


def test_a_lease_between_turns_waits_for_no_disk_and_the_turn_over_it_does(recorded: list[Op]) -> None:
    waited: dict[str, list[bool]] = {"committed": [], "leased": [], "begun": []}
    since: list[Op] = []
    for op in recorded:
        since.append(op)
        if op.kind == "told":
            # Whoever carries the log over to the file, or begins it anew, syncs for that.
            writes = [one for one in since if one.kind == "write"]
            begins = any(one.path.endswith("/state.db-wal") and not one.offset for one in writes)
            if not begins and not any(one.path.endswith("/state.db") for one in writes):
                what = op.data.split()[0].decode()
                waited[what].append(any(one.kind == "sync" and "state.db" in one.path for one in since))
            since = []
    assert {what: set(found) for what, found in waited.items()} == {
        "committed": {True}, "leased": {False}, "begun": {True},
    }  # fmt: skip


async def _check_all(place: Path, disks: list[tuple[Disk, int]]) -> None:
    for number, (disk, committed) in enumerate(disks):
        folder = place / f"cut-{number}"
        folder.mkdir()
        for path, content in disk.items():
            (folder / Path(path).name).write_bytes(content)
        await _check(folder, committed)
        shutil.rmtree(folder)


async def _check(folder: Path, lines: int) -> None:
    store = await Store.open(folder)
    told = [line.split() for line in TOLD[:lines]]
    committed = sum(what == b"committed" for what, _ in told)
    begun = {int(number) for what, number in told if what == b"begun"}
    try:
        for database in (store.state, store.events):
            assert [row[0] for row in await database.all("PRAGMA integrity_check")] == ["ok"]
            assert list(await database.all("PRAGMA foreign_key_check")) == []
        rows = await store.state.all("SELECT body FROM messages ORDER BY id")
        numbers = [int(row["body"].split()[0]) for row in rows]
        assert numbers == list(range(1, len(numbers) + 1)), "a message before a later one is lost"
        assert len(numbers) >= committed, f"{committed} were told to be committed, {len(numbers)} are there"
        before, audits = "", await store.state.all("SELECT * FROM audit ORDER BY id")
        assert len(audits) == len(numbers) // 3
        for row in audits:
            payload = audit_payload(
                row["at"], row["actor"], row["action"], row["target"], json.loads(row["data"])
            )
            before = chain(before, payload)
            assert row["hash"] == before
        await _check_leases(store, begun)
        await _check_history(store, len(numbers) + len(audits))
    finally:
        await store.close()


async def _check_leases(store: Store, begun: set[int]) -> None:
    """A lease may be lost, with nothing else: its message waits as before. What a turn had begun with comes
    again, marked."""
    rows = await store.state.all("SELECT * FROM messages")
    assert {row["state"] for row in rows} <= {"queued", "leased"}
    assert not [row["id"] for row in rows if (row["state"] == "leased") != (row["lease_id"] is not None)]
    async with store.state.transaction() as tx:
        for row in await tx.all("SELECT id FROM leases WHERE state = 'open'"):
            await leases.give_back(tx, row["id"])
    rows = await store.state.all("SELECT id, redelivered, state FROM messages")
    assert {row["state"] for row in rows} <= {"queued"}, "all are delivered again"
    assert begun <= {row["id"] for row in rows if row["redelivered"]}, "a turn saw it, and nothing says so"


async def _check_history(store: Store, happened: int) -> None:
    """Every event is in the history or still on its way there."""
    there = {row["outbox_id"] for row in await store.events.all("SELECT outbox_id FROM events")}
    waiting = {row["id"] for row in await store.state.all("SELECT id FROM outbox")}
    assert there | waiting >= set(range(1, happened + 1)), "events are lost"
