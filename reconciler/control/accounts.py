"""The service `Accounts`: users, one-time login links, sessions of browsers, and the audit chain.

Secrets leave this process once, in the answer that makes them; what is stored are their SHA-256 hashes. That
is enough because they are random with 256 bits: nothing to guess, nothing to salt.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import deque

from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import OperatorError, PermanentError, TemporaryError
from reconciler.model.instants import micros, stamp
from reconciler.model.states import UserRole
from reconciler.services import Actor
from reconciler.store import accounts as sql
from reconciler.store.db import Row, Store, audit_payload, chain

TOKEN_S = 600
TOKENS_MAX = 20
SESSION_S = 7 * 86_400
IDLE_S = 12 * 3_600
STEP_UP_S = 300
SEEN_EVERY_S = 60
FAILURES_MAX = 10
FAILURES_S = 60.0
PAGE_MAX = 500


class AccountService:
    """People and what they decided. `ui_port`: where the login page is."""

    def __init__(self, store: Store, clock: Clock, *, ui_port: int) -> None:
        self._store = store
        self._clock = clock
        self._ui_port = ui_port
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)

    async def login_link(self, actor: Actor, request: api.NewLoginLink) -> api.LoginLink:
        """A one-time link for a user, who is made if new; a known user's role is not changed by it."""
        if actor.role is not UserRole.OPERATOR:
            raise OperatorError("a viewer may not make login links", code="forbidden")
        token = secrets.token_urlsafe(32)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            user = await sql.user(tx, request.user)
            if user is None:
                await sql.add_user(tx, request.user, request.role)
                await tx.audit(actor.name, "user.add", request.user, role=str(request.role))
            elif user["role"] != request.role:
                raise OperatorError(
                    f"{request.user} is a {user['role']}, not a {request.role}",
                    code="conflict",
                    hint=f"ask for the role {user['role']}, or for another user",
                )
            if await sql.open_tokens(tx, request.user, tx.now) >= TOKENS_MAX:
                raise OperatorError(
                    f"{request.user} has {TOKENS_MAX} unused login links",
                    code="conflict",
                    hint=f"use one, or wait {TOKEN_S // 60} minutes",
                )
            await sql.add_token(tx, _hash(token), request.user, tx.now + micros(TOKEN_S))
            await tx.audit(actor.name, "login.link", request.user)
        if request.dry_run:
            return api.LoginLink(token="", url="", user=request.user, expires_in_s=TOKEN_S)
        return api.LoginLink(
            token=token,
            url=f"http://localhost:{self._ui_port}/login/{token}",
            user=request.user,
            expires_in_s=TOKEN_S,
        )

    async def login(self, token: str) -> api.Session:
        """Consume a token for a session; `OperatorError` code `unauthenticated` if unknown, old or used.

        Many wrong ones in a minute are answered with `TemporaryError`, without ever holding up a right one.
        """
        hashed = _hash(token)
        # Looked up by a reader first: wrong tokens, which anybody can send, never wait for the writer.
        if not await sql.is_token(self._store.state, hashed, micros(self._clock.now())):
            raise self._refused()
        secret, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
        async with self._store.state.transaction() as tx:
            name = await sql.consume_token(tx, hashed)
            if name is None:
                raise self._refused()
            session = await sql.add_session(tx, _hash(secret), csrf, name, tx.now + micros(SESSION_S))
            user = await sql.user(tx, name)
            assert user is not None, "a token's user exists"
            await tx.audit(f"{user['role']}:{name}", "login", name, session=session)
            row = await sql.session(tx, _hash(secret), now=tx.now, idle_since=tx.now - 1)
        assert row is not None, "it was made in this transaction"
        return _session(row, secret)

    def _refused(self) -> OperatorError | TemporaryError:
        now = self._clock.monotonic()
        if len(self._failures) == FAILURES_MAX and now - self._failures[0] < FAILURES_S:
            return TemporaryError(
                "too many wrong login links",
                after_s=FAILURES_S,
                code="rate-limited",
                hint="`hive login` makes a new link; a right one works at once",
            )
        self._failures.append(now)
        return OperatorError(
            "this login link is unknown, used or too old",
            code="unauthenticated",
            hint="`hive login` makes a new one; it works once, within 10 minutes",
        )

    async def session(self, secret: str) -> tuple[Actor, api.Session]:
        """Who holds this session; `OperatorError` code `unauthenticated` when unknown, expired or revoked."""
        row = await self._live(secret)
        if row is None:
            raise OperatorError(
                "there is no such session, or it has ended",
                code="unauthenticated",
                hint="`hive login` makes a login link",
            )
        if micros(self._clock.now()) - row["last_seen_at"] >= micros(SEEN_EVERY_S):
            async with self._store.state.transaction() as tx:
                await sql.see_session(tx, row["id"])
        role = UserRole(row["role"])
        return Actor(f"{role}:{row['user']}", role), _session(row, None)

    async def logout(self, secret: str) -> None:
        """End the session; nothing if it has ended."""
        row = await self._live(secret)
        if row is None:
            return
        async with self._store.state.transaction() as tx:
            if await sql.revoke_session(tx, row["id"]):
                await tx.audit(f"{row['role']}:{row['user']}", "logout", row["user"], session=row["id"])

    async def _live(self, secret: str) -> Row | None:
        now = micros(self._clock.now())
        return await sql.session(self._store.state, _hash(secret), now=now, idle_since=now - micros(IDLE_S))

    # ------------------------------------------------------------------------------------------------- lists
    async def users(self) -> api.UserList:
        """All users, by name."""
        rows = await sql.users(self._store.state)
        return api.UserList(
            items=[
                api.User(name=row["name"], role=UserRole(row["role"]), created_at=stamp(row["created_at"]))
                for row in rows
            ]
        )

    async def sessions(self) -> api.SessionList:
        """Live sessions, newest first."""
        now = micros(self._clock.now())
        rows = await sql.sessions(self._store.state, now=now, idle_since=now - micros(IDLE_S))
        return api.SessionList(
            items=[
                api.SessionInfo(
                    id=row["id"],
                    user=row["user"],
                    created_at=stamp(row["created_at"]),
                    last_seen_at=stamp(row["last_seen_at"]),
                )
                for row in rows
            ]
        )

    # ------------------------------------------------------------------------------------------------- audit
    async def audit(self, *, before: int | None, limit: int) -> api.AuditList:
        """Decisions, newest first, with the hash of the newest of all."""
        limit = max(1, min(limit, PAGE_MAX))
        rows = await sql.audit_page(self._store.state, before, limit)
        return api.AuditList(
            items=[
                api.AuditRow(
                    id=row["id"],
                    at=stamp(row["at"]),
                    actor=row["actor"],
                    action=row["action"],
                    target=row["target"],
                    data=json.loads(row["data"]),
                    hash=row["hash"],
                )
                for row in rows
            ],
            next=rows[-1]["id"] if len(rows) == limit else None,
            head=await sql.audit_head(self._store.state),
        )

    async def verify_chain(self) -> str:
        """Compute every hash anew; the head. `PermanentError` names the first row that was changed.

        A chain that was cut at its end, or rewritten as a whole, shows only against a head noted elsewhere.
        """
        head, last = "", 0
        while rows := await sql.audit_after(self._store.state, last, PAGE_MAX):
            for row in rows:
                payload = audit_payload(
                    row["at"], row["actor"], row["action"], row["target"], json.loads(row["data"])
                )
                head = chain(head, payload)
                if row["hash"] != head:
                    raise PermanentError(
                        f"the audit chain is broken at row {row['id']} ({row['action']} by {row['actor']})",
                        code="audit-broken",
                        hint="somebody changed, removed or added a row here; compare with a backup",
                    )
                last = row["id"]
        return head


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _session(row: Row, secret: str | None) -> api.Session:
    stepped_up_until = row["created_at"] + micros(STEP_UP_S)
    return api.Session(
        user=row["user"],
        role=UserRole(row["role"]),
        csrf=row["csrf"],
        created_at=stamp(row["created_at"]),
        expires_at=stamp(row["expires_at"]),
        stepped_up_until=stamp(stepped_up_until),
        session=secret,
    )
