"""The audit: every decision as a row of the hash chain, newest first."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from ui.keys import client_of
from ui.pages.paths import cursor
from ui.render import page, part

routes = web.RouteTableDef()
PER_PAGE = 100


async def _list(request: web.Request) -> dict[str, Any]:
    found = await client_of(request).audit(before=cursor(request, "before"), limit=PER_PAGE)
    rows = [
        (row, json.dumps(row.data, ensure_ascii=False, indent=2) if row.data else "") for row in found.items
    ]
    return {"rows": rows, "next": found.next, "head": found.head}


@routes.get("/audit")
async def show(request: web.Request) -> web.Response:
    """The chain and its head."""
    return await page(request, "audit.html", title="Audit", section="audit", **await _list(request))


@routes.get("/fragments/audit")
async def list_part(request: web.Request) -> web.Response:
    """The rows alone."""
    return await part(request, "_audit.html", **await _list(request))
