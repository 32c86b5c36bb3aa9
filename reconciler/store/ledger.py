"""The gateway's ledger: what each agent may spend and has spent. A file of its own, `ledger.db`.
 A request reserves its worst case before it is forwarded and settles with what it really cost. A
reservation that is found at start was under way when the gateway died; nobody knows what it cost, so it
costs its worst case. Every write is one transaction and safe to repeat.

A ceiling holds for what was spent *and* what is reserved, looked at and reserved in one transaction, so no
number of requests at once gets past it. Of a day on which the ledger was restored from a backup nobody knows
what was spent before: its budgets count as spent, but for what the operator adds afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from reconciler.model.days import local_day
from reconciler.store.db import Database, Reader, Row, Tx

TURNS_KEPT_DAYS = 30
CLOSURES_KEPT_DAYS = 2
RESTORED = "restored"
"""In place of a day: this file is a copy out of a backup (`ledgercopy` writes it)."""
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


Budget = Literal["agent", "hive", "turn"]
"""Whose ceiling: the agent's dollars of the day, the hive's, the tokens of the turn."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Dollars of a day: the budget, and what the operator added to it for that day."""

    usd_micro: int
    added_usd_micro: int = 0

    @property
    def ceiling(self) -> int:
        """All that may be spent."""
        return self.usd_micro + self.added_usd_micro


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What may be spent; None: no limit. `hive_day` holds for all agents together."""

    agent_day: Allowed | None = None
    hive_day: Allowed | None = None
    tokens_turn: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a request finds under one ceiling, in micro-dollars or tokens: `spent` is settled, `reserved` is
    held by other requests under way, and much of it usually comes back."""

    budget: Budget
    ceiling: int
    spent: int
    reserved: int

    @property
    def left(self) -> int:
        """What may be reserved now; may be negative."""
        return self.ceiling - self.spent - self.reserved

    @property
    def left_at_rest(self) -> int:
        """What is left at least when no request is under way: if all of them cost nothing."""
        return self.ceiling - self.spent


@dataclass(frozen=True, slots=True)
class Shortage:
    """The reservation does not fit: the rooms under all ceilings that there are."""

    rooms: tuple[Room, ...]

    def usd_micro_left(self, *, at_rest: bool = False) -> int | None:
        """The narrowest room in dollars; None without a limit."""
        return self._least("agent", "hive", at_rest=at_rest)

    def tokens_left(self, *, at_rest: bool = False) -> int | None:
        """The room in tokens; None without a limit."""
        return self._least("turn", at_rest=at_rest)

    def _least(self, *budgets: Budget, at_rest: bool) -> int | None:
        found = (room for room in self.rooms if room.budget in budgets)
        return min((room.left_at_rest if at_rest else room.left for room in found), default=None)


@dataclass(frozen=True, slots=True)
class Closure:
    """An agent gets no more on `day`, because what was left of a budget was too little for a request that
    an untouched one would have had room for."""

    agent: str
    day: str
    budget: Literal["agent", "hive"]
    ceiling_usd_micro: int
    spent_usd_micro: int
    needed_usd_micro: int

    def holds(self, day: str, ceilings: Ceilings) -> bool:
        """Whether it is still so: not after midnight, nor under a higher ceiling."""
        allowed = ceilings.agent_day if self.budget == "agent" else ceilings.hive_day
        return self.day == day and allowed is not None and allowed.ceiling <= self.ceiling_usd_micro


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
            await _begin_restored(tx, local_day(now()))
            await tx.run("DELETE FROM turn_tokens WHERE spent_at < ?", tx.now - TURNS_KEPT_DAYS * _DAY_MICROS)
            await tx.run(
                "DELETE FROM closures WHERE closed_at < ?", tx.now - CLOSURES_KEPT_DAYS * _DAY_MICROS
            )
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

    async def close_day(self, closure: Closure) -> None:
        """Remember that the agent gets no more on that day; the newest closure of an agent counts."""
        async with self._database.transaction() as tx:
            await tx.run(
                "INSERT OR REPLACE INTO closures VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(closure.agent, closure.day, closure.budget, closure.ceiling_usd_micro),
                *(closure.spent_usd_micro, closure.needed_usd_micro, tx.now),
            )

    async def closures(self, *, day: str, after: str, limit: int) -> Sequence[Closure]:
        """Those of a day, by agent, of agents after that name."""
        sql = "SELECT * FROM closures WHERE day = ? AND agent > ? ORDER BY agent LIMIT ?"
        return [_closure(row) for row in await self._database.all(sql, day, after, limit)]

    async def closure(self, agent: str) -> Closure | None:
        """The agent's, which may be over."""
        row = await self._database.one("SELECT * FROM closures WHERE agent = ?", agent)
        return None if row is None else _closure(row)

    async def unknown(self) -> dict[str, int]:
        """Days of which the ledger lost what was spent before an instant (microseconds since the epoch)."""
        return {row["day"]: row["at"] for row in await self._database.all("SELECT * FROM unknown_days")}

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


_SPENT = "SELECT usd_micro AS n FROM spending WHERE day = ?"
_KNOWN_BEFORE = "SELECT usd_micro AS n FROM known_before"
_RESERVED = "SELECT usd_micro AS n FROM reservations WHERE day = ?"


async def _shortage(tx: Reader, entry: Entry, worst: Cost, ceilings: Ceilings) -> Shortage | None:
    rooms = []
    if ceilings.agent_day is not None:
        rooms.append(await _day_room(tx, "agent", ceilings.agent_day, entry.day, entry.agent))
    if ceilings.hive_day is not None:
        rooms.append(await _day_room(tx, "hive", ceilings.hive_day, entry.day, None))
    if ceilings.tokens_turn is not None:
        spent = await _sum(
            tx, "SELECT tokens AS n FROM turn_tokens WHERE agent = ? AND turn = ?", entry.agent, entry.turn
        )
        held = await _sum(
            tx,
            "SELECT input_tokens + output_tokens AS n FROM reservations WHERE agent = ? AND turn = ?",
            *(entry.agent, entry.turn),
        )
        rooms.append(Room("turn", ceilings.tokens_turn, spent, held))
    fits = all(
        (worst.tokens.counted if room.budget == "turn" else worst.usd_micro) <= room.left for room in rooms
    )
    return None if fits else Shortage(tuple(rooms))


async def _begin_restored(tx: Tx, day: str) -> None:
    """If this is a copy out of a backup, what was spent on this day before now is not known."""
    if await tx.one("SELECT 1 FROM unknown_days WHERE day = ?", RESTORED):
        await tx.run("INSERT OR REPLACE INTO unknown_days VALUES (?, ?)", day, tx.now)
        await tx.run("DELETE FROM known_before")
        await tx.run(
            "INSERT INTO known_before SELECT agent, SUM(usd_micro) FROM spending WHERE day = ? "
            "GROUP BY agent",
            day,
        )
    await tx.run("DELETE FROM unknown_days WHERE day <> ?", day)


async def _day_room(tx: Reader, budget: Budget, allowed: Allowed, day: str, agent: str | None) -> Room:
    """The room under a budget of a day: of one agent, or (None) of all."""
    whose = " AND agent = ?" if agent is not None else ""
    values = (day,) if agent is None else (day, agent)
    spent, reserved = await _sum(tx, _SPENT + whose, *values), await _sum(tx, _RESERVED + whose, *values)
    if await tx.one("SELECT 1 FROM unknown_days WHERE day = ?", day):
        before = _KNOWN_BEFORE if agent is None else f"{_KNOWN_BEFORE} WHERE agent = ?"
        spent += allowed.usd_micro - await _sum(tx, before, *values[1:])
    return Room(budget, allowed.ceiling, spent, reserved)


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


def _closure(row: Row) -> Closure:
    return Closure(
        row["agent"],
        row["day"],
        row["budget"],
        row["ceiling_usd_micro"],
        row["spent_usd_micro"],
        row["needed_usd_micro"],
    )
