"""What the application and a request carry, under typed keys; imported by every page, imports no page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from aiohttp import web

from reconciler.control.client import ControlClient
from reconciler.control.models import Session

if TYPE_CHECKING:
    from ui.assets import Assets
    from ui.stream import Streams


@dataclass(frozen=True, slots=True)
class Settings:
    """How this server was started. `hosts`: further values of the Host header that are ours (a reverse
    proxy's name). `secure`: browsers reach it by https, so the cookie may say Secure."""

    socket: Path
    host: str = "127.0.0.1"
    port: int = 7000
    hosts: frozenset[str] = frozenset()
    secure: bool = False

    @property
    def cookie(self) -> str:
        """Named with the port, because browsers share cookies between the ports of a host."""
        return f"hive_session_{self.port}"


@dataclass(slots=True)
class Reach:
    """Since when hived has been away, RFC 3339; None while it answers. One for the whole server."""

    away_since: str | None = None


@dataclass(frozen=True, slots=True)
class Visitor:
    """A logged-in browser: what hived said about its session, and the client that acts for it."""

    session: Session
    client: ControlClient
    may_act: bool = field(default=False)


SETTINGS: web.AppKey[Settings] = web.AppKey("SETTINGS", Settings)
CLIENT: web.AppKey[ControlClient] = web.AppKey("CLIENT", ControlClient)
TEMPLATES: web.AppKey[jinja2.Environment] = web.AppKey("TEMPLATES", jinja2.Environment)
ASSETS: web.AppKey[Assets] = web.AppKey("ASSETS")
STREAMS: web.AppKey[Streams] = web.AppKey("STREAMS")
REACH: web.AppKey[Reach] = web.AppKey("REACH", Reach)

VISITOR: web.RequestKey[Visitor] = web.RequestKey("VISITOR", Visitor)
FORM: web.RequestKey[Mapping[str, list[str]]] = web.RequestKey("FORM")


def client_of(request: web.Request) -> ControlClient:
    """The client that acts for this request's visitor."""
    return request[VISITOR].client
