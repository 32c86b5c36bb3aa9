"""Who calls: from the kernel's word about a peer and a browser's session to an `Actor`.

`control.sock` is the operator's: the peer must be root or in the operators' group, and acts as `operator`.
`ui.sock` is the web server's: the peer must be its user, and every call carries the secret of the browser's
session, which alone decides actor and role. Nothing here trusts a name that a client sends.
"""

from __future__ import annotations

import functools
import grp
import pwd
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from aiohttp import web

from reconciler.config import Config
from reconciler.control import models as api
from reconciler.control.client import SESSION_HEADER
from reconciler.errors import OperatorError, PermanentError
from reconciler.model.states import UserRole
from reconciler.services import Accounts, Actor
from reconciler.sockets import Peer, peer_of

SECRET_MAX = 200


class Door(StrEnum):
    """The two sockets of the control API."""

    CONTROL = "control.sock"
    UI = "ui.sock"


BOTH = frozenset(Door)


@dataclass(frozen=True, slots=True)
class Ids:
    """The host's numbers that decide: the operators' group, and user and group of the web server."""

    operators_gid: int
    ui_uid: int
    ui_gid: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Looked up once at start; `PermanentError` if the host does not have them."""
        try:
            ui = pwd.getpwnam(config.ui_user)
        except KeyError as error:
            raise PermanentError(
                f"the user {config.ui_user!r} of the web server does not exist",
                hint="make it, or name another as ui_user in the host's configuration",
            ) from error
        try:
            operators = grp.getgrnam(config.operator_group)
        except KeyError as error:
            raise PermanentError(
                f"the operators' group {config.operator_group!r} does not exist",
                hint="make it, or name another as operator_group in the host's configuration",
            ) from error
        return cls(operators.gr_gid, ui.pw_uid, ui.pw_gid)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `actor` None: nobody has logged in. `session` and `secret` are a browser's, on `ui.sock`."""

    actor: Actor | None
    session: api.Session | None = None
    secret: str | None = None


def peer_of_request(request: web.Request) -> Peer:
    """The process at the other end, from the kernel; `OperatorError` code "cut" if it has gone."""
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    if sock is None:
        raise OperatorError("the client has gone", code="cut")
    try:
        return peer_of(sock)
    except OSError as error:
        raise OperatorError("the client has gone", code="cut") from error


def check_peer(door: Door, peer: Peer, ids: Ids) -> None:
    """403 unless this peer may speak at this door. The file's mode says the same; this is the second lock."""
    match door:
        case Door.CONTROL:
            if peer.uid != 0 and ids.operators_gid not in peer.groups:
                raise OperatorError(
                    f"uid {peer.uid} is not an operator of this hive",
                    code="forbidden",
                    hint="operators are root and the members of the group; log in anew after joining it",
                )
        case Door.UI:
            if peer.uid != ids.ui_uid:
                raise OperatorError(
                    f"uid {peer.uid} is not the web server",
                    code="forbidden",
                    hint="use control.sock (`hive`)",
                )


async def identify(door: Door, request: web.Request, peer: Peer, accounts: Accounts) -> Caller:
    """Actor and role of a call whose peer passed `check_peer`. A bad or expired session raises code
    "unauthenticated"; no session at all is nobody, which few routes serve."""
    if door is Door.CONTROL:
        return Caller(Actor(unix_name(peer.uid), UserRole.OPERATOR))
    secret = request.headers.get(SESSION_HEADER)
    if secret is None:
        return Caller(None)
    if not 1 <= len(secret) <= SECRET_MAX or not secret.isascii() or not secret.isprintable():
        raise OperatorError("that is no session", code="unauthenticated", hint="log in again: `hive login`")
    actor, session = await accounts.session(secret)
    return Caller(actor, session.model_copy(update={"session": None}), secret)


def check_role(needed: UserRole | None, caller: Caller) -> None:
    """401 without a login, 403 with less than `needed`; None needs neither."""
    if needed is None:
        return
    if caller.actor is None:
        raise OperatorError("nobody is logged in", code="unauthenticated", hint="`hive login` prints a link")
    if needed is UserRole.OPERATOR and caller.actor.role is not UserRole.OPERATOR:
        raise OperatorError(
            f"{caller.actor.name} may look, but not decide",
            code="forbidden",
            hint="this needs the role operator",
        )


@functools.lru_cache(maxsize=256)
def unix_name(uid: int) -> str:
    """`unix:root` for a uid that the host has a name for, else `uid:1003`."""
    try:
        return f"unix:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid:{uid}"
