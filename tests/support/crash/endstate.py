"""What a hive has come to, in a form that two runs can be compared by, and what must be true of any.

Left out is what may differ: instants, random ids, how messages were grouped into leases and turns, hints.
A proposal whose upload was cut off by hived's death ends as invalid and is made again: it is left out, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reconciler.model.names import AgentName
from reconciler.store.db import audit_payload, chain
from tests.support.crash.world import World

CUT_OFF = "restarted before the commit had arrived"
# Told again after a death, or only hints; all other events are told exactly once.
_REPEATED = frozenset({
    "agent.state", "agent.hello", "turn.event", "build.log", "turn.begun", "turn.ended",
    "agent.trouble", "agent.repaired", "disk.recovered",  # of the faults themselves
})  # fmt: skip
_COLUMNS = {
    "agents": "name role uid_base desired generation model_override session_used status nap_reason "
    "parked_reason restart_wanted restart_done crashes purge_wanted",
    "generations": "agent number commit_id store_path spec spec_digest prompt state",
    "questions": "agent question options multi state answer answered_by",
    "drafts": "name created_by commit_id",
    "holds": "scope by reason",
    "users": "name role",
}
_PROPOSAL = (
    "kind agent commit_id base_commit state risk changes files spec_digest state_digest state_files role "
    "requested_by description note decided_by generation store_path error rollback_of purged"
)


def end_state(world: World) -> dict[str, Any]:
    """Everything by name; equal for equal hives."""
    with contextlib.closing(world.rows()) as db, contextlib.closing(world.rows("events.db")) as history:
        db.row_factory = history.row_factory = sqlite3.Row
        numbers = _numbers(db)
        found: dict[str, Any] = {
            table: sorted(
                str(tuple(row)) for row in db.execute(f"SELECT {', '.join(names.split())} FROM {table}")
            )
            for table, names in _COLUMNS.items()
        }
        found["proposals"] = [
            (numbers[row["id"]], *_plain_proposal(row), _progress(db, row["id"]))
            for row in db.execute("SELECT * FROM proposals ORDER BY id")
            if row["id"] in numbers
        ]
        found["messages"] = counted(
            (row["sender"], row["recipient"], _plain(row["body"]), row["kind"], row["urgent"], row["state"])
            for row in db.execute("SELECT * FROM messages")
            if CUT_OFF not in row["body"]
        )
        found["audit"] = counted(
            (row["actor"], row["action"], _plain(row["target"]))
            for row in db.execute("SELECT * FROM audit")
            if row["action"] != "hive.backup"  # each time that it was asked for
        )
        cut = {row["id"] for row in db.execute("SELECT id, body FROM messages") if CUT_OFF in row["body"]}
        found["events"] = _events(history, set(_lost(db)), cut)
    found |= world.outside()
    found["refs"] = _refs(world.directory / "state", numbers)
    found["files"] = _files(world.directory, numbers)
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, part by part."""
    told = []
    for part, value in expected.items():
        if value != found[part]:
            told.append(f"{part}:\n  undisturbed: {_missing(value, found[part])}")
            told.append(f"  now:         {_missing(found[part], value)}")
    return told


def check_laws(world: World) -> None:
    """What holds in any hive at rest, whatever happened in it before."""
    with contextlib.closing(world.rows()) as db:
        db.row_factory = sqlite3.Row
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert list(db.execute("PRAGMA foreign_key_check")) == []
        _check_audit(db)
        _check_messages(db)
        profiles, held = world.pins()
        assert held == [], "a build is still pinned as such"
        for row in db.execute("SELECT agent, number, store_path FROM generations"):
            assert profiles[AgentName(row["agent"])][row["number"]] == row["store_path"], "an unpinned path"
        for agent, numbers in profiles.items():
            rows = db.execute("SELECT number FROM generations WHERE agent = ?", (agent,))
            assert set(numbers) == {row["number"] for row in rows}, "pinned without a generation"
    handled = Counter(world.handled)
    twice = [key for key, count in handled.items() if count > 1]
    assert twice == [], f"messages were given out again after their turn had ended well: {twice}"


def _check_audit(db: sqlite3.Connection) -> None:
    before = ""
    for row in db.execute("SELECT * FROM audit ORDER BY id"):
        payload = audit_payload(
            row["at"], row["actor"], row["action"], row["target"], json.loads(row["data"])
        )
        before = chain(before, payload)
        assert row["hash"] == before, f"the audit chain is broken at {row['id']}"


def _check_messages(db: sqlite3.Connection) -> None:
    for row in db.execute(
        "SELECT m.id, m.state, l.state AS lease, l.agent, m.recipient FROM messages m "
        "LEFT JOIN leases l ON l.id = m.lease_id WHERE m.recipient <> 'operator'"
    ):
        if row["state"] == "acked":
            assert (row["lease"], row["agent"]) == ("acked", row["recipient"]), f"message {row['id']}"
        else:
            assert row["state"] == "queued", f"message {row['id']} is {row['state']}"
    keys = (
        "SELECT COUNT(*) FROM messages GROUP BY sender, recipient, dedupe_key HAVING dedupe_key IS NOT NULL"
    )
    assert all(row[0] == 1 for row in db.execute(keys))


def _lost(db: sqlite3.Connection) -> Iterator[int]:
    for row in db.execute("SELECT id, error FROM proposals WHERE state = 'invalid'"):
        if CUT_OFF in row["error"]:
            yield row["id"]


def _numbers(db: sqlite3.Connection) -> dict[int, int]:
    """Ids as they would be if nothing had been cut off."""
    lost = set(_lost(db))
    kept = [row["id"] for row in db.execute("SELECT id FROM proposals ORDER BY id") if row["id"] not in lost]
    return {number: place for place, number in enumerate(kept, 1)}


def _plain_proposal(row: sqlite3.Row) -> Iterator[object]:
    for name in _PROPOSAL.split():
        yield _plain(row[name]) if name == "error" else row[name]


def _progress(db: sqlite3.Connection, proposal: int) -> tuple[str, ...]:
    rows = db.execute("SELECT state FROM proposal_progress WHERE proposal_id = ?", (proposal,))
    return tuple(sorted(row["state"] for row in rows))


def _events(history: sqlite3.Connection, lost: set[int], cut: set[int]) -> list[str]:
    found = []
    for row in history.execute("SELECT agent, kind, data FROM events"):
        data = json.loads(row["data"])
        left_out = data.get("proposal") in lost or data.get("message") in cut
        left_out |= data.get("action") == "hive.backup"
        if row["kind"] not in _REPEATED and not left_out:
            fields = {key: value for key, value in data.items() if not isinstance(value, int | float)}
            found.append((row["agent"], row["kind"], _plain(json.dumps(fields, sort_keys=True))))
    return counted(found)


def _refs(state: Path, numbers: dict[int, int]) -> list[str]:
    """Every ref of every repository, and what it points at."""
    found = []
    for repository in sorted([*state.glob("repos/*.git"), state / "meta"]):
        for path in repository.glob("refs/**/*"):
            if path.is_file():
                name = _renumbered(str(path.relative_to(repository)), numbers)
                if name is None:
                    continue
                # annotated tags have instants; the deploy log names proposals, whose numbers may differ
                plain = "tags" not in name and repository.name != "meta"
                told = path.read_text().strip() if plain else ""
                found.append(f"{repository.name} {name} {told}")
    return sorted(found)


def _renumbered(ref: str, numbers: dict[int, int]) -> str | None:
    match = re.fullmatch(r"refs/tags/([a-z]+)/([0-9]+)", ref)
    if match is None or match[1] == "template":
        return ref
    number = numbers.get(int(match[2]))
    return None if number is None else f"refs/tags/{match[1]}/{number}"


def _files(directory: Path, numbers: dict[int, int]) -> list[str]:
    """All files of the hive but databases and the insides of repositories: path, mode, owner, content of the
    agents' own."""
    found = []
    for top in ("state", "run"):
        for path in sorted((directory / top).rglob("*")):
            name = str(path.relative_to(directory))
            in_repository = re.match(r"state/(repos/[^/]+\.git|meta)/(.*)", name)
            if re.fullmatch(r"state/((state|events)\.db(-wal|-shm)?|containers/[^/]+/.*)", name):
                continue  # compared by rows, and by what runs
            name = re.sub(r"(?<=state/staged/)[0-9]+", lambda m: str(numbers.get(int(m[0]), m[0])), name)
            if in_repository is not None and not re.search(r"lock|tmp_|\.new|incoming", in_repository[2]):
                continue
            info = path.lstat()
            text = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""
            found.append(f"{name} {info.st_mode:o} {info.st_uid} {text}")
    return found


def counted(values: Any) -> list[str]:
    return sorted(f"{count} x {value}" for value, count in Counter(values).items())


def _plain(text: str) -> str:
    """Without numbers, which may be others."""
    return re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", text)


def _missing(these: Any, those: Any) -> Any:
    if isinstance(these, dict):
        return {key: value for key, value in these.items() if those.get(key) != value}
    return [_short(value) for value in these if value not in those]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 400 else f"{text[:200]} … {text[-200:]}"
