"""What a full read keeps of containers under systemd, and when it looks anew."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.effects.containers import proc
from reconciler.effects.containers.record import RECORD, Record, Records, write_record
from reconciler.effects.containers.standing import Bodies
from reconciler.effects.containers.units import UnitFacts

UNIT = "hive-agent@smith.service"


def a_record(invocation: str) -> Record:
    return Record("smith", invocation, "/root", "world", 1.0)


def test_a_record_that_was_replaced_or_removed_is_seen(tmp_path: Path) -> None:
    records, folder = Records(tmp_path), tmp_path / "smith"
    folder.mkdir()
    assert (records.names(), records.read("smith")) == ([], None)
    for invocation in ("one", "two"):
        write_record(folder, a_record(invocation))
        found = records.read("smith")
        assert found is not None
        assert found.invocation == invocation
        assert records.read("smith") is found, "it is not read again"
    assert records.names() == ["smith"]
    (folder / RECORD).write_text("{")
    assert (records.names(), records.read("smith")) == (["smith"], None)
    (folder / RECORD).unlink()
    assert (records.names(), records.read("smith")) == ([], None)


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with one child."""
    running = subprocess.Popen(["/bin/sh", "-c", "sleep 60; true"], start_new_session=True)
    deadline = time.monotonic() + 10
    while not proc.children(running.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield running
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait(10)


def test_what_is_known_of_one_start_is_not_taken_for_the_next(parent: subprocess.Popen[bytes]) -> None:
    bodies, facts = Bodies(), UnitFacts("active", "first", parent.pid)
    body, state = bodies.of(UNIT, facts)
    assert body is not None
    assert body.leader.pid == proc.children(parent.pid)[0]
    assert state != "X"
    assert bodies.of(UNIT, facts)[0] is body, "it is not looked for again"
    again, _ = bodies.of(UNIT, UnitFacts("active", "second", parent.pid))
    assert again is not None
    assert again is not body
    bodies.forget(UNIT)
    assert bodies.of(UNIT, facts)[0] is not body


def test_a_first_process_that_went_is_not_known_any_more(parent: subprocess.Popen[bytes]) -> None:
    bodies, facts = Bodies(), UnitFacts("active", "first", parent.pid)
    body, _ = bodies.of(UNIT, facts)
    assert body is not None
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait(10)
    deadline = time.monotonic() + 10
    leader = Path(f"/proc/{body.leader.pid}")
    while leader.exists():  # it fell to another parent, which reaps it when it comes to that
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bodies.of(UNIT, facts) == (None, "X")
