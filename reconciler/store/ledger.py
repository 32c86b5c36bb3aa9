"""The gateway's ledger: what each agent may spend and has spent. A file of its own, `ledger.db`.
 A request reserves its worst case before it is forwarded and settles with what it really cost. A
reservation that is found at start was under way when the gateway died; nobody knows what it cost, so it
costs its worst case. Every write is one transaction and safe to repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from reconciler.store.db import Database, Reader, Row, Tx

TURNS_KEPT_DAYS = 30
_DAY_MICROS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Numbers of tokens as the API counts them: `input` is neither read from nor written to the cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def counted(self) -> int:
        """What counts against a turn's budget."""
        return self.input + self.output + self.cache_write


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and their price."""

    tokens: Tokens
    usd_micro: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Whom a request is charged to. `turn` is a name that is unique within the agent."""

    agent: str
    day: str
    model: str
    turn: str


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the agent may spend; None: no limit."""

    usd_micro_day: int | None = None
    tokens_turn: int | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """The reservation does not fit; what is left under each ceiling that there is (may be negative), with the
    reservations of other requests under way taken off."""

    usd_micro_left: int | None
    tokens_left: int | None


@dataclass(frozen=True, slots=True)
class Spent:
    """One row of spending: an agent, a host-local day, a model."""

    agent: str
    day: str
    model: str
    requests: int
    tokens: Tokens
    usd_micro: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a request was charged, and the row of spending that it went to."""

    last: Cost
    row: Spent


class Ledger:
    """Reservations and spending in one SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, directory: Path, *, now: Callable[[], float] = time.time) -> Self:
        """Open `ledger.db` in `directory`; charge what was under way; forget turns of long ago."""
        # NORMAL: nothing is lost when the process dies. When the machine dies, so do the requests.
        ledger = cls(await Database.open(directory / "ledger.db", synchronous="NORMAL", now=now))
        async with ledger._database.transaction() as tx:
            for row in await tx.all("SELECT id FROM reservations ORDER BY id"):
                await _settle(tx, int(row["id"]), None)
            await tx.run("DELETE FROM turn_tokens WHERE spent_at < ?", tx.now - TURNS_KEPT_DAYS * _DAY_MICROS)
        return ledger

    async def reserve(self, entry: Entry, worst: Cost, ceilings: Ceilings) -> int | Shortage:
        """Reserve the worst case of a request: the reservation's id, or why it does not fit."""
        async with self._database.transaction() as tx:
            if shortage := await _shortage(tx, entry, worst, ceilings):
                return shortage
            written = await tx.run(
                "INSERT INTO reservations (agent, day, model, turn, input_tokens, output_tokens, usd_micro,"
                " reserved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(entry.agent, entry.day, entry.model, entry.turn),
                *(worst.tokens.input, worst.tokens.output, worst.usd_micro, tx.now),
            )  # fmt: skip
            return written.row_id

    async def settle(self, reservation: int, cost: Cost | None) -> Settled | None:
        """Replace a reservation by its cost (None: nobody knows, so the worst case); the row it went to.

        None when the reservation is gone, which is what a repeated call finds.
        """
        async with self._database.transaction() as tx:
            return await _settle(tx, reservation, cost)

    async def release(self, reservation: int) -> None:
        """Drop the reservation of a request that the API refused: it cost nothing."""
        async with self._database.transaction() as tx:
            await tx.run("DELETE FROM reservations WHERE id = ?", reservation)

    async def spending(self, *, since: str, after: tuple[str, str, str], limit: int) -> Sequence[Spent]:
        """Rows of days from `since` on, in order of (day, agent, model), after that key."""
        rows = await self._database.all(
            "SELECT * FROM spending WHERE day >= ? AND (day, agent, model) > (?, ?, ?)"
            " ORDER BY day, agent, model LIMIT ?",
            *(since, *after, limit),
        )  # fmt: skip
        return [_spent(row) for row in rows]

    async def close(self) -> None:
        """Close the file; safe to repeat."""
        await self._database.close()


async def _shortage(tx: Reader, entry: Entry, worst: Cost, ceilings: Ceilings) -> Shortage | None:
    usd_left = tokens_left = None
    if ceilings.usd_micro_day is not None:
        usd_left = ceilings.usd_micro_day - await _sum(
            tx,
            "SELECT usd_micro AS n FROM spending WHERE agent = ? AND day = ?"
            " UNION ALL SELECT usd_micro FROM reservations WHERE agent = ? AND day = ?",
            *(entry.agent, entry.day, entry.agent, entry.day),
        )
    if ceilings.tokens_turn is not None:
        tokens_left = ceilings.tokens_turn - await _sum(
            tx,
            "SELECT tokens AS n FROM turn_tokens WHERE agent = ? AND turn = ?"
            " UNION ALL SELECT input_tokens + output_tokens FROM reservations WHERE agent = ? AND turn = ?",
            *(entry.agent, entry.turn, entry.agent, entry.turn),
        )
    fits = (usd_left is None or worst.usd_micro <= usd_left) and (
        tokens_left is None or worst.tokens.counted <= tokens_left
    )
    return None if fits else Shortage(usd_left, tokens_left)


async def _sum(tx: Reader, sql: str, *values: str) -> int:
    row = await tx.one(f"SELECT coalesce(sum(n), 0) AS total FROM ({sql})", *values)  # noqa: S608 - constants
    return int(row["total"]) if row else 0


async def _settle(tx: Tx, reservation: int, cost: Cost | None) -> Settled | None:
    rows = await tx.all("DELETE FROM reservations WHERE id = ? RETURNING *", reservation)
    if not rows:
        return None
    held = rows[0]
    if cost is None:
        worst = Tokens(input=held["input_tokens"], output=held["output_tokens"])
        cost = Cost(worst, held["usd_micro"])
    tokens = cost.tokens
    await tx.run(
        "INSERT INTO turn_tokens VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " tokens = tokens + excluded.tokens, spent_at = excluded.spent_at",
        *(held["agent"], held["turn"], tokens.counted, tx.now),
    )  # fmt: skip
    changed = await tx.all(
        "INSERT INTO spending VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " requests = requests + 1, input_tokens = input_tokens + excluded.input_tokens,"
        " output_tokens = output_tokens + excluded.output_tokens,"
        " cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,"
        " cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,"
        " usd_micro = usd_micro + excluded.usd_micro RETURNING *",
        *(held["agent"], held["day"], held["model"]),
        *(tokens.input, tokens.output, tokens.cache_read, tokens.cache_write, cost.usd_micro),
    )  # fmt: skip
    return Settled(cost, _spent(changed[0]))


def _spent(row: Row) -> Spent:
    tokens = Tokens(
        input=row["input_tokens"],
        output=row["output_tokens"],
        cache_read=row["cache_read_tokens"],
        cache_write=row["cache_write_tokens"],
    )
    return Spent(row["agent"], row["day"], row["model"], row["requests"], tokens, row["usd_micro"])
