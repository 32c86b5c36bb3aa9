"""Parts of addresses, checked where they enter: a number is a number, a name is a name, a cursor is one or
absent."""

from __future__ import annotations

import re

from aiohttp import web

NAME = r"{name:[a-z][a-z0-9-]{0,30}}"
NUMBER = r"{number:[1-9][0-9]{0,17}}"
_NUMBER = re.compile(r"[0-9]{1,18}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def name(request: web.Request) -> str:
    return request.match_info["name"]


def number(request: web.Request) -> int:
    return int(request.match_info["number"])


def as_number(text: str) -> int | None:
    """A number of at most 18 digits; None for anything else."""
    return int(text) if _NUMBER.fullmatch(text) else None


def cursor(request: web.Request, key: str) -> int | None:
    """`?key=` as a number; anything else counts as absent, because a cursor only says where to look from."""
    return as_number(request.query.get(key, ""))


def named(request: web.Request, key: str) -> str | None:
    """`?key=` as an agent's name (or operator, manager, system); None for anything else."""
    text = request.query.get(key, "")
    return text if _NAME.fullmatch(text) else None
