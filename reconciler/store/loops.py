"""What the loop guard reads and writes: hops of agents and messages, and which messages wait for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconciler.store.db import Reader, Row, Tx

# As the partial index has it: whoever looks for these must not read all that is queued.
_SLOWED = "state = 'queued' AND (due_at IS NULL OR due_at > 0)"
# SQLite by itself takes the index of all that is queued for a recipient, and reads each row of it.
_FEW = "messages INDEXED BY messages_slowed"


async def hops_of(reader: Reader, agent: str) -> int:
    """How many agents have answered each other since somebody else spoke, up to what `agent` last took up."""
    row = await reader.one("SELECT hops FROM agents WHERE name = ?", agent)
    return 0 if row is None else int(row["hops"])


async def set_hops(tx: Tx, agent: str, hops: int) -> None:
    """The agent took up something so far away."""
    await tx.run("UPDATE agents SET hops = ? WHERE name = ? AND hops <> ?", hops, agent, hops)


async def latest(reader: Reader, sender: str, recipient: str) -> Row | None:
    """When the pair's waiting messages in this direction are due: `held` is how many have no such instant,
    `due_at` the last one (None if all are held). None if none is delayed."""
    row = await reader.one(
        f"SELECT SUM(due_at IS NULL) AS held, MAX(due_at) AS due_at FROM {_FEW} "  # noqa: S608 - constant
        f"WHERE recipient = ? AND sender = ? AND {_SLOWED}",
        recipient,
        sender,
    )
    return None if row is None or row["held"] is None else row


async def next_due(reader: Reader, recipient: str, now: int) -> int | None:
    """When the first delayed message to `recipient` becomes due (microseconds); None if there is none."""
    row = await reader.one(
        f"SELECT MIN(due_at) AS at FROM {_FEW} WHERE recipient = ? AND {_SLOWED} AND due_at > ?",  # noqa: S608
        recipient,
        now,
    )
    return None if row is None else row["at"]


async def delayed(reader: Reader, now: int) -> Sequence[Row]:
    """One row for each pair of agents whose messages wait, held ones first: `a`, `b` (in order of name),
    `held` and `slowed` (how many), `hops`, `since`, `due_at` (the next), `last` (an id)."""
    return await reader.all(
        "SELECT MIN(sender, recipient) AS a, MAX(sender, recipient) AS b, SUM(due_at IS NULL) AS held, "  # noqa: S608
        "SUM(due_at IS NOT NULL) AS slowed, MAX(hops) AS hops, MIN(sent_at) AS since, MIN(due_at) AS due_at, "
        f"MAX(id) AS last FROM messages WHERE {_SLOWED} AND (due_at IS NULL OR due_at > ?) "
        "GROUP BY a, b ORDER BY held = 0, since, a, b LIMIT 200",
        now,
    )


async def between(reader: Reader, pair: Iterable[str], now: int) -> Sequence[Row]:
    """Messages that wait between two agents, in order."""
    a, b = pair
    return await reader.all(
        f"SELECT * FROM messages WHERE recipient IN (?1, ?2) AND sender IN (?1, ?2) AND {_SLOWED} "  # noqa: S608
        "AND (due_at IS NULL OR due_at > ?3) ORDER BY id",
        *(a, b, now),
    )


async def let_go(tx: Tx, messages: Iterable[Row]) -> None:
    """Deliver them now, as if somebody else had written them."""
    for row in messages:
        await tx.run("UPDATE messages SET due_at = 0, hops = 0 WHERE id = ? AND state = 'queued'", row["id"])


async def drop(tx: Tx, messages: Iterable[Row]) -> None:
    """They are never delivered; they stay to be read by people."""
    for row in messages:
        await tx.run(
            "UPDATE messages SET due_at = NULL, state = 'acked' WHERE id = ? AND state = 'queued'", row["id"]
        )


async def held_pairs(reader: Reader) -> int:
    """Between how many pairs of agents messages are held."""
    row = await reader.one(
        "SELECT COUNT(DISTINCT MIN(sender, recipient) || ' ' || MAX(sender, recipient)) AS n "  # noqa: S608
        f"FROM messages WHERE {_SLOWED} AND due_at IS NULL"
    )
    assert row is not None, "a count has one row"
    return int(row["n"])
