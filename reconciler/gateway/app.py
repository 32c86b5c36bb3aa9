"""The gateway put together from its configuration."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from reconciler.config import Config
from reconciler.gateway.catalog import Catalog
from reconciler.gateway.charges import Cashier
from reconciler.gateway.control import Control
from reconciler.gateway.credential import Credential
from reconciler.gateway.deadlines import Bounds, Deadlines
from reconciler.gateway.doors import Doors
from reconciler.gateway.messages import Event, SetHive
from reconciler.gateway.proxy import Proxy
from reconciler.gateway.upstream import Upstream
from reconciler.store.ledger import Ledger

DEADLINES = Deadlines()
BOUNDS = Bounds()


def control_path(config: Config) -> Path:
    """Where hived finds the gateway."""
    return Path(config.run_dir, "gateway", "control.sock")


def ledger_dir(config: Config) -> Path:
    """Where the ledger lies; it belongs to the gateway's user."""
    return Path(config.state_dir, "gateway")


@contextlib.asynccontextmanager
async def gateway(
    config: Config,
    *,
    deadlines: Deadlines = DEADLINES,
    bounds: Bounds = BOUNDS,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Control]:
    """The whole gateway without its control socket: `await control.serve(control_path(config))` runs it.

    On leaving, connections are closed, what is under way is settled, and the ledger is closed.
    """
    wanted = config.gateway
    file = Path(wanted.credential_file) if wanted.credential_file else None
    told: list[Control] = []

    def tell(event: Event) -> None:
        for control in told:
            control.tell(event)

    async with contextlib.AsyncExitStack() as stack:
        ledger = await Ledger.open(ledger_dir(config), now=now)
        stack.push_async_callback(ledger.close)
        upstream = Upstream.open(wanted.upstream, Credential(file, wanted.credential_kind), deadlines)
        stack.push_async_callback(upstream.close)
        catalog = Catalog.load()
        cashier = Cashier(
            ledger=ledger, catalog=catalog, upstream=upstream, now=now, tell=tell, place_s=deadlines.place_s
        )
        cashier.hive = SetHive(
            id=0, budget_usd_day=config.budget.usd_per_day, budget_tokens_turn=config.budget.tokens_per_turn
        )
        stack.push_async_callback(cashier.close)
        proxy = Proxy(
            upstream=upstream, cashier=cashier, catalog=catalog, deadlines=deadlines, now=now, tell=tell
        )
        doors = Doors(proxy=proxy, catalog=catalog, host_models=wanted.allowed_models, bounds=bounds)
        stack.push_async_callback(doors.close)
        stack.callback(proxy.hurry)
        control = Control(doors, ledger, cashier)
        told.append(control)
        yield control
