"""`hive backup` and `hive restore`: what they write, refuse and exit by, against a real control server."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import resource
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.backup.reading import read
from reconciler.cli.main import main
from reconciler.control.auth import Ids
from reconciler.control.server import ControlServer
from reconciler.errors import PermanentError, TemporaryError
from tests.fakes.services import FakeServices

pytestmark = pytest.mark.asyncio


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:
        monkeypatch.setenv("HIVE_RUN", f"{folder}/run")
        (Path(folder) / "config.json").write_text(
            json.dumps({"state_dir": f"{folder}/state", "run_dir": f"{folder}/run", "gateway_user": "nobody"})
        )
        monkeypatch.setenv("HIVE_CONFIG", f"{folder}/config.json")
        yield Path(folder)


@pytest_asyncio.fixture
async def services(place: Path) -> AsyncIterator[FakeServices]:
    fake = FakeServices()
    server = ControlServer(fake.bundle(), place / "run", Ids(os.getegid(), os.geteuid(), os.getegid()))
    await server.start()
    yield fake
    await server.close()


async def hive(*words: str, raw: io.BytesIO | None = None) -> tuple[int, str, str]:
    """Exit status, standard output (its bytes in `raw`), standard error."""
    out = io.TextIOWrapper(raw or io.BytesIO(), write_through=True)
    err = io.StringIO()

    def run() -> int:
        with redirect_stdout(out), redirect_stderr(err):
            return main(words)

    status = await asyncio.to_thread(run)
    data = out.detach().getvalue()
    return status, data.decode(errors="replace"), err.getvalue()


async def test_a_backup_is_written_whole_under_its_name_and_is_its_owners_alone(
    services: FakeServices, place: Path
) -> None:
    before = os.umask(0)
    try:
        status, out, _ = await hive("backup", str(place / "b.tar"), "--json")
    finally:
        os.umask(before)
    assert status == 0
    told: dict[str, Any] = json.loads(out)
    with (place / "b.tar").open("rb") as file:
        report = read(file)
    assert (told["seal"], told["members"], told["bytes"]) == (report.seal, report.members, report.size)
    assert told["left_out"][0]["path"] == "agents/scout/state/pipe"
    assert stat.S_IMODE((place / "b.tar").stat().st_mode) == 0o600
    assert not list(place.glob("*.partial"))


async def test_people_are_told_what_was_left_out(services: FakeServices, place: Path) -> None:
    status, out, _ = await hive("backup", str(place / "b.tar"))
    assert status == 0
    assert "left out: agents/scout/state/pipe: it is a socket, a pipe or a device" in out
    assert "every hash compared" in out


async def test_standard_output_gets_the_file_and_nothing_else(services: FakeServices, place: Path) -> None:
    raw = io.BytesIO()
    status, _, err = await hive("backup", "-", raw=raw)
    assert status == 0
    assert "every hash compared" in err
    report = read(io.BytesIO(raw.getvalue()))
    assert report.members > 0
    assert report.header.audit_head in err
    assert report.seal in err


async def test_in_the_demo_a_file_of_its_own_world_is_refused_with_what_to_do(
    services: FakeServices, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIVE_DEMO", "1")
    status, _, err = await hive("backup", "b.tar")
    assert status == 1
    assert "hive backup - > b.tar" in err


async def test_without_state_is_asked_of_hived(services: FakeServices, place: Path) -> None:
    assert (await hive("backup", str(place / "b.tar"), "--without-state"))[0] == 0
    ((call, (actor, with_state)),) = services.backups.calls
    assert (call, getattr(actor, "name", ""), with_state) == ("stream", "unix:root", False)


async def test_a_backup_overwrites_nothing(services: FakeServices, place: Path) -> None:
    (place / "b.tar").write_text("precious")
    status, _, err = await hive("backup", str(place / "b.tar"))
    assert status == 1
    assert "exists" in err
    assert (place / "b.tar").read_text() == "precious"
    assert services.backups.calls == []


async def test_what_a_killed_backup_left_is_written_over_and_what_is_at_work_is_left_alone(
    services: FakeServices, place: Path
) -> None:
    partial = place / "b.tar.partial"
    partial.write_bytes(b"half of a backup" * 1000)
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, _, err = await hive("backup", str(place / "b.tar"))
        assert (status, "another `hive backup`" in err) == (1, True)
        assert partial.stat().st_size == 16_000
    assert (await hive("backup", str(place / "b.tar")))[0] == 0
    with (place / "b.tar").open("rb") as file:
        assert read(file).members
    assert not partial.exists()


async def test_a_file_that_somebody_else_put_there_is_not_written(
    services: FakeServices, place: Path
) -> None:
    precious = place / "precious"
    precious.write_text("precious")
    partial = place / "b.tar.partial"
    puts: list[Callable[[], None]] = [
        lambda: partial.symlink_to(precious),
        lambda: os.link(precious, partial),
        lambda: os.mkfifo(partial),
    ]
    for put in puts:
        put()
        assert (await hive("backup", str(place / "b.tar")))[0] == 1
        assert precious.read_text() == "precious"
        partial.unlink()
    assert services.backups.calls == []


async def test_a_disk_that_is_full_is_told_and_leaves_nothing(services: FakeServices, place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        status, _, err = await hive("backup", str(place / "b.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert "File too large" in err
    assert not list(place.glob("b.tar*"))


async def test_an_archive_that_is_cut_off_is_not_kept(services: FakeServices, place: Path) -> None:
    services.backups.cut = True
    status, _, err = await hive("backup", str(place / "b.tar"))
    assert status == 1
    assert "cut off" in err
    assert [path.name for path in place.iterdir() if "b.tar" in path.name] == []


async def test_what_stopped_hived_in_the_middle_is_told_in_its_words(
    services: FakeServices, place: Path
) -> None:
    services.backups.fail_after = PermanentError("the disk is gone", code="io", hint="look at it")
    status, _, err = await hive("backup", str(place / "b.tar"))
    assert status == 1
    assert "the disk is gone" in err
    assert "look at it" in err
    assert not (place / "b.tar").exists()


async def test_what_is_refused_at_once_is_told_in_its_words(services: FakeServices, place: Path) -> None:
    services.backups.fail = TemporaryError("another backup is being made", code="busy")
    status, out, err = await hive("backup", str(place / "b.tar"), "--json")
    assert status == 1
    assert json.loads(out)["error"]["code"] == "busy"
    assert "another backup" in err


async def test_a_dry_run_shows_the_parts_and_writes_nothing(services: FakeServices, place: Path) -> None:
    status, out, _ = await hive("backup", str(place / "b.tar"), "--dry-run")
    assert status == 0
    assert "state.db" in out
    assert "4.0 KiB" in out
    assert not (place / "b.tar").exists()


async def test_a_doctor_who_finds_failures_exits_by_1_and_says_the_remedy(services: FakeServices) -> None:
    status, out, _ = await hive("doctor")
    assert status == 1
    assert "✗ check-fail: a check that is fail" in out
    assert "→ do" in out
    assert "check-ok" not in out
    assert "4 checks: 1 ok, 1 warnings, 1 failed, 1 not applicable" in out


async def test_warnings_alone_are_allowed_and_all_shows_what_is_well(services: FakeServices) -> None:
    services.doctor.fails = 0
    status, out, _ = await hive("doctor", "--all")
    assert status == 0
    assert "✓ check-ok" in out
    status, out, _ = await hive("doctor", "--json")
    assert status == 0
    assert [item["status"] for item in json.loads(out)["items"]] == ["ok", "warn", "not-applicable"]


async def test_a_repair_is_asked_for_by_name(services: FakeServices) -> None:
    await hive("doctor")
    await hive("doctor", "--repair")
    await hive("doctor", "--repair", "--dry-run")
    assert [arguments[1] for _, arguments in services.doctor.calls] == [False, True, False]


async def test_without_hived_the_doctor_looks_at_the_disk_and_says_so(place: Path) -> None:
    status, out, err = await hive("doctor", "--json")
    assert "checking what the disk tells" in err
    found = json.loads(out)
    assert found["offline"]
    assert status == (1 if found["fail"] else 0)
    by_id = {item["id"]: item for item in found["items"]}
    assert by_id["gateway"]["status"] == "not-applicable"
    assert by_id["permissions"]["status"] == "fail", "there is no state directory"
    status, _, err = await hive("doctor", "--repair")
    assert status == 1
    assert "hived is not running" in err


async def test_a_restore_is_refused_while_hived_runs(services: FakeServices, place: Path) -> None:
    await hive("backup", str(place / "b.tar"))
    status, _, err = await hive("restore", str(place / "b.tar"))
    assert status == 1
    assert "hived is running" in err


async def test_a_dry_run_tells_everything_that_keeps_a_whole_backup_from_being_restored(
    services: FakeServices, place: Path
) -> None:
    await hive("backup", str(place / "b.tar"))
    config = json.loads((place / "config.json").read_text()) | {"gateway_user": "no-such-user"}
    (place / "config.json").write_text(json.dumps(config))
    (place / "state").mkdir()
    (place / "state" / "state.db").write_text("a hive")
    status, out, _ = await hive("restore", str(place / "b.tar"), "--dry-run")
    assert status == 1
    assert "it is whole" in out
    for words in ("hived is running", "'no-such-user'", "is not empty"):
        assert words in out
    status, out, _ = await hive("restore", str(place / "b.tar"), "--dry-run", "--json")
    assert (status, len(json.loads(out)["obstacles"])) == (1, 3 + (os.geteuid() != 0))


async def test_a_restore_from_standard_input_says_that_it_needs_a_file(place: Path) -> None:
    status, _, err = await hive("restore", "-", "--dry-run")
    assert (status, "needs a file" in err) == (1, True)


async def test_a_restore_of_no_backup_says_so(place: Path) -> None:
    (place / "b.tar").write_text("not a tar at all")
    status, _, err = await hive("restore", str(place / "b.tar"), "--dry-run")
    assert status == 1
    assert "this is no whole backup" in err
    status, _, err = await hive("restore", str(place / "nothing.tar"), "--dry-run")
    assert status == 1
    assert "cannot restore from" in err
