"""`hive backup` and `hive restore` killed at the calls by which they change the disk: a backup file is whole
or not there, a hive is restored or hived refuses to begin one, and the same command does it when run again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.backup.reading import read
from reconciler.backup.restore import RESTORING, Restore, refuse_half_restored
from reconciler.errors import HiveError, OperatorError
from tests.support import hives
from tests.support.crash.syscalls import Call, calls_of, killed_at
from tests.support.hivedprocess import supervised
from tests.support.needs import needs_root

pytestmark = needs_root
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
DEATHS = 400 if FULL else 6
HIVE = ("-m", "reconciler.cli")
# Few, and what was done before or after them matters: at all of these.
DECIDING = {"rename", "link", "linkat", "rmdir"}


@pytest.fixture
def place() -> Iterator[Path]:
    with hives.a_place() as found:
        for name in ("old", "new"):
            (found / name).mkdir(mode=0o755)
        yield found


def _chosen(calls: Sequence[Call]) -> list[Call]:
    step = -(-len(calls) // DEATHS)
    deciding = [call for call in calls if call[0] in DECIDING]
    some = {*calls[::step], calls[-1], *deciding[:: 1 if FULL else 4]}
    return [call for call in calls if call in some]


def _environment(directory: Path) -> dict[str, str]:
    return {"HIVE_RUN": str(directory / "run"), "HIVE_CONFIG": str(directory / "config.json")}


# ------------------------------------------------------------------------------------------------ backup
@pytest.mark.timeout(900)
def test_a_backup_file_is_whole_or_not_there_wherever_its_program_dies(place: Path) -> None:
    asyncio.run(_backups(place))


async def _backups(place: Path) -> None:
    made = await hives.a_hive(place / "old")
    async with made.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'stopped' WHERE desired = 'running'")
    await made.close()
    shutil.rmtree(place / "old/run")
    async with supervised(place / "old", activated=False) as hived:
        await hived.start()
        await asyncio.to_thread(_walk_backup, place, _environment(place / "old"))
        await hived.stop()
    assert not (place / "old/state/backup").exists()


def _walk_backup(place: Path, environment: dict[str, str]) -> None:
    calls = calls_of([*HIVE, "backup", str(place / "first.tar")], environment)
    members = _members(place / "first.tar")
    halves = 0
    for number, call in enumerate(_chosen(calls)):
        file = place / f"b{number}.tar"
        partial = place / f"b{number}.tar.partial"
        assert killed_at(call, [*HIVE, "backup", str(file)], environment), call
        if partial.exists() and not _is_whole(partial):
            halves += 1
            with pytest.raises(HiveError):
                Restore(partial, hives.target(place), ranges=()).check()
        if file.exists():
            assert _members(file) == members, call
            continue
        calls_of([*HIVE, "backup", str(file)], environment)  # the same again
        assert _members(file) == members, call
        assert not partial.exists(), call
    assert halves > 1


def _is_whole(file: Path) -> bool:
    try:
        _members(file)
    except OperatorError:
        return False
    return True


def _members(file: Path) -> int:
    with file.open("rb") as stream:
        return read(stream).members


# ------------------------------------------------------------------------------------------------ restore
@dataclass
class Found:
    """All there is of a restored hive."""

    databases: list[Any]
    refs: Any
    trees: Any

    @classmethod
    def at(cls, state: Path) -> Found:
        rows = [hives.rows_of(state / name) for name in ("state.db", "events.db", "gateway/ledger.db")]
        return cls(rows, hives.refs_of(state), hives.tree_of(state / "agents"))


@pytest.mark.timeout(900)
def test_a_restore_that_was_killed_anywhere_is_done_by_running_it_again(place: Path) -> None:
    file = place / "b.tar"
    asyncio.run(_make(place, file))
    config = hives.target(place)
    (place / "new/config.json").write_text(config.model_dump_json())
    state, argv, environment = (
        Path(config.state_dir),
        [*HIVE, "restore", str(file), "--yes"],
        _environment(place / "new"),
    )
    calls = calls_of(argv, environment)
    expected = Found.at(state)
    halves = 0
    for call in _chosen(calls):
        shutil.rmtree(state)
        assert killed_at(call, argv, environment), call
        if (state / RESTORING).exists():
            halves += 1
            with pytest.raises(OperatorError, match="was interrupted"):
                refuse_half_restored(state)
        elif state.exists() and any(state.iterdir()):
            assert Found.at(state) == expected, f"{call}: neither whole nor marked"
            continue
        Restore(file, config, ranges=()).run()
        assert Found.at(state) == expected, call
    assert halves > 2


async def _make(place: Path, file: Path) -> None:
    hive = await hives.a_hive(place / "old")
    await hive.backup(file)
    await hive.close()
