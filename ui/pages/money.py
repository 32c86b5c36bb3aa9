"""Budgets: the hive's line on the dashboard, and the forms that add to a budget of today."""

from __future__ import annotations

import re

from aiohttp import web

from reconciler.control.client import ControlClient, OperatorError
from reconciler.control.models import Budget, RaiseBudget
from ui.keys import client_of
from ui.pages.paths import NAME, name
from ui.render import part, said
from ui.security import field

routes = web.RouteTableDef()
_AMOUNT = re.compile(r"\$?\s*([0-9]{1,6}(?:[.,][0-9]{1,6})?)")


async def by_scope(client: ControlClient) -> dict[str, Budget]:
    """All budgets: agents' by name, the hive's under `*`."""
    return {budget.scope: budget for budget in (await client.budgets()).items}


@routes.post(f"/agents/{NAME}/budget")
async def raise_agents(request: web.Request) -> web.StreamResponse:
    """Add to an agent's budget of today."""
    await client_of(request).raise_budget(name(request), RaiseBudget(usd=_amount(request)))
    return said(request, "raised", f"/agents/{name(request)}")


@routes.post("/budget")
async def raise_hives(request: web.Request) -> web.StreamResponse:
    """Add to the hive's."""
    await client_of(request).raise_budget(None, RaiseBudget(usd=_amount(request)))
    return said(request, "raised", "/")


@routes.get("/fragments/budget")
async def budget_part(request: web.Request) -> web.Response:
    """The hive's line."""
    return await part(request, "_budget_hive.html", hive_budget=await client_of(request).budget(None))


def _amount(request: web.Request) -> float:
    text = field(request, "usd").strip()
    found = _AMOUNT.fullmatch(text)
    value = float(found[1].replace(",", ".")) if found else 0.0
    if not value:
        raise OperatorError(f"{text[:40]!r} is no amount of dollars", hint="as 5 or 0.25")
    return value
