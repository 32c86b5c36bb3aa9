"""People: users, one-time tokens, sessions, and the audit chain's rows. Only hashes of secrets are stored."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.store.db import Reader, Row, Tx


# ----------------------------------------------------------------------------------------------------- users
async def user(reader: Reader, name: str) -> Row | None:
    """One user."""
    return await reader.one("SELECT * FROM users WHERE name = ?", name)


async def users(reader: Reader) -> Sequence[Row]:
    """All users, by name."""
    return await reader.all("SELECT * FROM users ORDER BY name")


async def add_user(tx: Tx, name: str, role: str) -> None:
    """A new user."""
    await tx.run("INSERT INTO users (name, role, created_at) VALUES (?, ?, ?)", name, role, tx.now)


# ---------------------------------------------------------------------------------------------------- tokens
async def add_token(tx: Tx, token_hash: str, name: str, expires_at: int) -> None:
    """A one-time token; dead ones are swept away."""
    await tx.run("DELETE FROM login_tokens WHERE expires_at <= ? OR used_at IS NOT NULL", tx.now)
    await tx.run(
        "INSERT INTO login_tokens (token_hash, user, expires_at) VALUES (?, ?, ?)",
        token_hash,
        name,
        expires_at,
    )


async def open_tokens(reader: Reader, name: str, now: int) -> int:
    """How many unused tokens the user has."""
    row = await reader.one(
        "SELECT COUNT(*) AS n FROM login_tokens WHERE user = ? AND used_at IS NULL AND expires_at > ?",
        name,
        now,
    )
    return int(row["n"]) if row else 0


async def is_token(reader: Reader, token_hash: str, now: int) -> bool:
    """Whether the token could be consumed now."""
    row = await reader.one(
        "SELECT 1 FROM login_tokens WHERE token_hash = ? AND used_at IS NULL AND expires_at > ?",
        token_hash,
        now,
    )
    return row is not None


async def consume_token(tx: Tx, token_hash: str) -> str | None:
    """The token's user if it was unused and is used now; else None."""
    done = await tx.run(
        "UPDATE login_tokens SET used_at = ?1 WHERE token_hash = ?2 AND used_at IS NULL AND expires_at > ?1",
        tx.now,
        token_hash,
    )
    if not done.changed:
        return None
    row = await tx.one("SELECT user FROM login_tokens WHERE token_hash = ?", token_hash)
    return None if row is None else str(row["user"])


# -------------------------------------------------------------------------------------------------- sessions
_LIVE = (
    "SELECT s.*, u.role FROM sessions s JOIN users u ON u.name = s.user "
    "WHERE s.revoked_at IS NULL AND s.expires_at > ? AND s.last_seen_at > ?"
)


async def add_session(tx: Tx, secret_hash: str, csrf: str, name: str, expires_at: int) -> int:
    """A new session; its id. Sessions that ended long ago are swept away."""
    await tx.run("DELETE FROM sessions WHERE expires_at <= ?", tx.now)
    done = await tx.run(
        "INSERT INTO sessions (secret_hash, csrf, user, created_at, last_seen_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        secret_hash,
        csrf,
        name,
        tx.now,
        tx.now,
        expires_at,
    )
    return done.row_id


async def session(reader: Reader, secret_hash: str, *, now: int, idle_since: int) -> Row | None:
    """The live session of that secret with its user's `role`; seen after `idle_since`."""
    return await reader.one(_LIVE + " AND s.secret_hash = ?", now, idle_since, secret_hash)


async def sessions(reader: Reader, *, now: int, idle_since: int) -> Sequence[Row]:
    """All live sessions, newest first."""
    return await reader.all(_LIVE + " ORDER BY s.id DESC", now, idle_since)


async def see_session(tx: Tx, session_id: int) -> None:
    """Somebody used it now."""
    await tx.run("UPDATE sessions SET last_seen_at = ? WHERE id = ?", tx.now, session_id)


async def revoke_session(tx: Tx, session_id: int) -> bool:
    """End it; False if it had ended."""
    done = await tx.run(
        "UPDATE sessions SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", tx.now, session_id
    )
    return bool(done.changed)


# ----------------------------------------------------------------------------------------------------- audit
async def audit_page(reader: Reader, before: int | None, limit: int) -> Sequence[Row]:
    """Newest first, older than the row `before`."""
    return await reader.all(
        "SELECT * FROM audit WHERE (?1 IS NULL OR id < ?1) ORDER BY id DESC LIMIT ?2", before, limit
    )


async def audit_after(reader: Reader, after: int, limit: int) -> Sequence[Row]:
    """Oldest first, above the row `after`."""
    return await reader.all("SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?", after, limit)


async def audit_head(reader: Reader) -> str:
    """The hash of the newest row, empty before the first."""
    row = await reader.one("SELECT hash FROM audit ORDER BY id DESC LIMIT 1")
    return "" if row is None else str(row["hash"])
