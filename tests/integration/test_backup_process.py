"""Backup, death, restore and doctor with the genuine hived as a process and the genuine `hive`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.cli.api import Hive as Client
from reconciler.cli.main import main
from tests.fakes.unixhttp import until
from tests.support import hives
from tests.support.hivedprocess import Supervised, supervised
from tests.support.needs import needs_root

pytestmark = [pytest.mark.asyncio, needs_root]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with hives.a_place() as found:
        for name in ("old", "new"):
            (found / name).mkdir(mode=0o755)
        _use(found / "old", monkeypatch)
        yield found


def _use(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `hive` speak to, and restore, the hive in that directory."""
    monkeypatch.setenv("HIVE_RUN", str(directory / "run"))
    monkeypatch.setenv("HIVE_CONFIG", str(directory / "config.json"))


@pytest_asyncio.fixture
async def hived(place: Path) -> AsyncIterator[Supervised]:
    """A hive whose agents are stopped (no containers here), with a file that takes a while to send."""
    made = await hives.a_hive(place / "old")
    async with made.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'stopped' WHERE desired = 'running'")
    (made.tree("smith") / "zz-large").write_bytes(os.urandom(32 << 20))
    await made.close()
    shutil.rmtree(place / "old/run")  # of agents that never ran
    async with supervised(place / "old", activated=False) as process:
        await process.start()
        yield process


async def hive(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        with redirect_stdout(out), redirect_stderr(err):
            return main(words)

    status = await asyncio.to_thread(run)
    return status, out.getvalue(), err.getvalue()


async def test_a_hive_goes_to_another_host_and_lives_on(
    hived: Supervised, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = await hive("backup", str(place / "b.tar"), "--json")
    assert status == 0, err
    told: dict[str, Any] = json.loads(out)
    assert told["agents"] == ["gone", "scout", "smith"]
    await hived.stop()
    before = hives.tree_of(place / "old/state/agents")

    async with supervised(place / "new", activated=False) as other:
        _use(place / "new", monkeypatch)
        assert (await hive("restore", str(place / "b.tar"), "--dry-run"))[0] == 0
        assert not (place / "new/state").exists()
        status, out, err = await hive("restore", str(place / "b.tar"), "--yes")
        assert status == 0, err
        assert hives.tree_of(place / "new/state/agents") == before
        await other.start()
        status, out, _ = await hive("agents", "--json")
        assert [agent["name"] for agent in json.loads(out)["items"]] == ["scout", "smith"]
        status, out, _ = await hive("audit", "--json")
        found = json.loads(out)
        assert found["head"] == told["audit_head"]
        assert found["items"][0]["action"] == "hive.backup"
        health = {item["id"]: item for item in json.loads((await hive("doctor", "--json"))[1])["items"]}
        for name in ("databases", "schemas", "audit-chain", "uid-ranges", "uid-records", "strays"):
            assert health[name]["status"] == "ok", health[name]
        status, _, err = await hive("restore", str(place / "b.tar"), "--yes")
        assert (status, "hived is running" in err) == (1, True)
        await other.stop()


def _begin(client: Client) -> Any:
    """A backup whose reader has read only its first bytes."""
    return client.download("/backup", 30.0, state=1)


async def test_a_hived_killed_in_the_middle_leaves_nothing_that_its_next_start_does_not_clean(
    hived: Supervised, place: Path
) -> None:
    state = place / "old/state"
    client = Client(str(hived.run / "control.sock"))
    with _begin(client) as answer:
        await asyncio.to_thread(answer.read, 4096)
        assert (state / "backup/state.db").exists()
        assert hived.process is not None
        hived.process.kill()
        await hived.process.wait()
    assert (state / "backup").exists()
    await hived.start()
    assert not (state / "backup").exists()
    assert (await hive("backup", str(place / "b.tar")))[0] == 0
    await hived.stop()


async def test_a_file_is_never_left_under_its_name_when_hived_dies(hived: Supervised, place: Path) -> None:
    writing = asyncio.create_task(hive("backup", str(place / "b.tar")))
    await until(lambda: (place / "b.tar.partial").exists() and (place / "b.tar.partial").stat().st_size > 0)
    assert hived.process is not None
    hived.process.kill()
    status, _, err = await writing
    assert status == 1
    assert err.strip()
    assert [path.name for path in place.iterdir()] != []
    assert not list(place.glob("b.tar*"))


async def test_a_reader_that_sleeps_keeps_hived_from_neither_answering_nor_stopping(
    hived: Supervised, place: Path
) -> None:
    client = Client(str(hived.run / "control.sock"))
    with _begin(client) as answer:
        await asyncio.to_thread(answer.read, 4096)
        assert (await hive("status"))[0] == 0
        status, _, err = await hive("backup", str(place / "b.tar"))
        assert (status, "another backup" in err) == (1, True)
        assert await hived.stop() < 5
    assert not (place / "old/state/backup").exists()


async def test_a_restore_that_was_interrupted_keeps_hived_from_beginning_a_new_hive(place: Path) -> None:
    (place / "new/state/restoring").mkdir(parents=True)
    async with supervised(place / "new", activated=False) as other:
        with pytest.raises(AssertionError, match="was interrupted"):
            await other.start()
    assert sorted(path.name for path in (place / "new/state").iterdir()) == ["restoring"]
