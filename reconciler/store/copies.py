"""Databases that nobody has open: copies in a backup, and files that `hive restore` and `hive doctor` judge.

Synchronous on purpose: the callers are a command line and a thread. Files are opened read-only, but for the
one function that shortens a copy.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconciler.errors import PermanentError
from reconciler.store import migrate
from reconciler.store.db import audit_payload, chain

_FAULTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Ends:
    """The last ids that a copy of `state.db` knows: what is later is of a future that a restore does not
    have."""

    turn: int
    proposal: int
    outbox: int


@dataclass(frozen=True, slots=True)
class HiveFacts:
    """What a copy of `state.db` tells of its hive. `agents`: (name, uid_base, role, desired, generation)."""

    agents: tuple[tuple[str, int, str, str, int | None], ...]
    audit_head: str
    audit_rows: int
    ends: Ends


@contextlib.contextmanager
def _open(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={'rw' if write else 'ro'}", uri=True, isolation_level=None
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        yield connection
    except sqlite3.Error as error:
        raise PermanentError(
            f"{path.name}: {error}", hint="is the disk full, or the file damaged?"
        ) from error
    finally:
        connection.close()


def sqlite_version() -> str:
    """Of the library that holds the databases."""
    return sqlite3.sqlite_version


def newest_schema(name: str) -> int:
    """The newest schema that this program knows of `state.db`, `events.db` or `ledger.db`; 0 of any other."""
    folder = migrate.MIGRATIONS / Path(name).stem
    return len(list(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")))


def schema(path: Path) -> int:
    """The number of the file's schema."""
    with _open(path) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def faults(path: Path, expected_schema: int | None = None) -> list[str]:
    """What is wrong with the file; empty when it is whole. Reads all of it."""
    try:
        with _open(path) as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            owner = int(db.execute("PRAGMA application_id").fetchone()[0])
            found = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({_FAULTS_MAX})")]
            armed = db.execute(
                "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view')"
            ).fetchmany(_FAULTS_MAX)
            loose = db.execute("PRAGMA foreign_key_check").fetchmany(_FAULTS_MAX)
    except (sqlite3.Error, PermanentError) as error:
        return [str(error)]
    wrong = [] if found == ["ok"] else found
    if owner != migrate.APPLICATION_ID:
        wrong.append("it is not a database of hyperhive")
    if expected_schema is not None and version != expected_schema:
        wrong.append(f"it has schema {version}, not {expected_schema}")
    # Rows are what this program wrote: nothing in the file writes some of its own.
    wrong += [f"it has a {row[0]} {row[1]!r:.60}, which no hive has" for row in armed]
    return wrong + [
        f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in loose
    ]


def facts(path: Path) -> HiveFacts:
    """What the file, a `state.db`, tells of its hive."""
    with _open(path) as db:
        rows = db.execute("SELECT name, uid_base, role, desired, generation FROM agents ORDER BY name")
        agents = tuple((r[0], r[1], r[2], r[3], r[4]) for r in rows)
        sequence = {r[0]: int(r[1]) for r in db.execute("SELECT name, seq FROM sqlite_sequence")}
    head, count, _ = audit_chain(path)
    ends = Ends(sequence.get("turns", 0), sequence.get("proposals", 0), sequence.get("outbox", 0))
    return HiveFacts(agents, head, count, ends)


def audit_chain(path: Path) -> tuple[str, int, int | None]:
    """The chain of the file, a `state.db`, computed anew: its head, how many rows, and the id of the first
    row whose hash is not what it must be (None: all are)."""
    head, count, broken = "", 0, None
    with _open(path) as db:
        for row in db.execute("SELECT * FROM audit ORDER BY id"):
            count += 1
            if broken is None and not is_next(head, row):
                broken = int(row["id"])
            head = str(row["hash"])
    return head, count, broken


def is_next(previous: str, row: Any) -> bool:
    """Whether an audit row (by column name) follows the row with the hash `previous`."""
    try:
        data = json.loads(row["data"])
    except ValueError:
        return False
    payload = audit_payload(row["at"], row["actor"], row["action"], row["target"], data)
    return bool(row["hash"] == chain(previous, payload))


def forget_conversations(path: Path) -> None:
    """In a restored `state.db` without the agents' homes: the next turn begins a conversation, as there is
    none to resume."""
    with _open(path, write=True) as db:
        db.execute("UPDATE agents SET session_used = 0")


def shorten_history(path: Path, ends: Ends, since: int) -> None:
    """Take from a copy of `events.db` what its `state.db` does not know of: the same ids will be given again.

    `since` (microseconds): when the picture of `state.db` was taken.
    """
    with _open(path, write=True) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM transcript WHERE turn_id > ?", (ends.turn,))
        db.execute("DELETE FROM stats WHERE source > ? AND key <> 'inbox_depth'", (ends.turn,))
        db.execute("DELETE FROM stats_turns WHERE turn_id > ?", (ends.turn,))
        db.execute("UPDATE stats_marks SET value = MIN(value, ?) WHERE name = 'turns'", (ends.turn,))
        db.execute("DELETE FROM build_log WHERE proposal_id > ?", (ends.proposal,))
        db.execute("DELETE FROM events WHERE ts >= ? AND outbox_id > ?", (since, ends.outbox))
        db.execute("COMMIT")
