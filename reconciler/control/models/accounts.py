"""People, their logins and sessions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reconciler.control.models.base import Model, Write
from reconciler.model.states import UserRole


class NewLoginLink(Write):
    """A one-time login link for `user` (made if new)."""

    user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")] = "operator"
    role: UserRole = UserRole.OPERATOR


class LoginLink(Model):
    """`token` goes into `http://localhost:PORT/login/TOKEN`; valid for `expires_in_s` seconds, once."""

    token: str
    url: str
    user: str
    expires_in_s: int


class Login(Model):
    """Consumes a one-time token."""

    token: Annotated[str, Field(min_length=1, max_length=200)]


class Session(Model):
    """A browser's session. `session` (the secret for the cookie) is only in the answer to POST /v1/login.
    `csrf` must come back with every form."""

    user: str
    role: UserRole
    csrf: str
    created_at: str
    expires_at: str
    stepped_up_until: str | None
    session: str | None = None


class User(Model):
    """A person who may log in."""

    name: str
    role: UserRole
    created_at: str


class UserList(Model):
    """All users."""

    items: list[User]
    next: str | None = None


class SessionInfo(Model):
    """A live session, without its secret."""

    id: int
    user: str
    created_at: str
    last_seen_at: str


class SessionList(Model):
    """Live sessions."""

    items: list[SessionInfo]
    next: str | None = None
