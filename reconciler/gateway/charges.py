"""What a request may cost and has cost: reserved before it goes out, settled when it ends, whatever
happens."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace

import structlog

from reconciler.gateway.catalog import Catalog, ModelFacts, Worst
from reconciler.gateway.messages import AgentPolicy, SpendingRow, UsageEvent
from reconciler.gateway.screening import Refusal, Screened, for_counting, with_max_tokens
from reconciler.gateway.upstream import Upstream
from reconciler.gateway.usage import Meter, Usage
from reconciler.store.ledger import Ceilings, Cost, Entry, Ledger, Shortage

log = structlog.get_logger("gateway")

# An answer that may not even be this long is not worth asking for.
OUTPUT_MIN_TOKENS = 2048
_MICRO = 1_000_000


@dataclass(slots=True)
class Charge:
    """A reservation that is open: whose, for what, since when, and the most that the answer may hold."""

    reservation: int
    policy: AgentPolicy
    model: ModelFacts
    output_tokens: int
    begun: float


class Cashier:
    """Reserves and settles. `tell` gets an event for every request that cost something."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        catalog: Catalog,
        upstream: Upstream,
        now: Callable[[], float],
        tell: Callable[[UsageEvent], None],
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._upstream = upstream
        self._now = now
        self._tell = tell
        self._open: set[asyncio.Task[None]] = set()

    async def reserve(
        self, policy: AgentPolicy, screened: Screened, raw: bytes, headers: Mapping[str, str]
    ) -> tuple[Charge, bytes]:
        """Reserve the worst case; the charge and the body to send. Raises `Refusal` when the budget is
        too small.

        No token is less than a byte, so the size of the body bounds the input. Only where that does not
        fit is the API asked for the exact number, and the answer made shorter to fit.
        """
        model = self._catalog.get(screened.model)
        assert model is not None, "screened for known models"
        entry = self._entry(policy, model)
        ceilings = _ceilings(policy)
        worst = Worst(
            min(len(raw), model.window), min(screened.max_tokens, model.max_output), screened.long_cache
        )
        found = await self._reserve(entry, self._catalog.worst_cost(model, worst), ceilings)
        if isinstance(found, Shortage):
            counted = await self._upstream.count(for_counting(raw), headers)
            if counted is not None:
                worst = replace(worst, input_tokens=min(worst.input_tokens, counted))
            room = self._catalog.output_within(
                model, worst, usd_micro=found.usd_micro_left, tokens=found.tokens_left
            )
            if room < max(min(worst.output_tokens, OUTPUT_MIN_TOKENS), screened.thinking_tokens + 1):
                raise _over_budget(policy, found)
            if room < worst.output_tokens:
                worst = replace(worst, output_tokens=room)
                raw = with_max_tokens(raw, room)
            found = await self._reserve(entry, self._catalog.worst_cost(model, worst), ceilings)
            if isinstance(found, Shortage):
                raise _over_budget(policy, found)
        return Charge(found, policy, model, worst.output_tokens, self._now()), raw

    async def settle(self, charge: Charge, usage: Usage) -> None:
        """The request ended and said what it used."""
        await self._close(self._settle(charge, self._catalog.cost(charge.model, usage), certain=True))

    async def forfeit(self, charge: Charge, meter: Meter) -> None:
        """The answer broke off: it costs its reservation, or, where its start told the input, that and
        the longest answer that could have come."""
        cost = None
        if meter.started:
            cost = self._catalog.cost(charge.model, replace(meter.usage, output=charge.output_tokens))
        await self._close(self._settle(charge, cost, certain=False))

    async def release(self, charge: Charge) -> None:
        """The API refused the request, or never got it."""
        await self._close(self._ledger.release(charge.reservation))

    async def _reserve(self, entry: Entry, cost: Cost, ceilings: Ceilings) -> int | Shortage:
        """Reserve; if the caller is cancelled meanwhile, nothing stays reserved."""
        task = asyncio.ensure_future(self._ledger.reserve(entry, cost, ceilings))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _ = self._track(self._undo(task))
            raise

    async def _undo(self, task: asyncio.Future[int | Shortage]) -> None:
        found = await task
        if isinstance(found, int):
            await self._ledger.release(found)

    async def close(self) -> None:
        """Wait for what is being written."""
        while self._open:
            await asyncio.wait(self._open)

    async def _close(self, work: Coroutine[None, None, None]) -> None:
        """Run to the end even if the caller, whose client has gone, is cancelled.

        Does not raise what the ledger raises: the answer has been given, and a reservation that could not be
        settled stays spent.
        """
        await asyncio.wait({self._track(work)})

    def _track(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._closed)
        return task

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ledger.unsettled", error=f"{type(error).__name__}: {error}")

    async def _settle(self, charge: Charge, cost: Cost | None, *, certain: bool) -> None:
        spent = await self._ledger.settle(charge.reservation, cost)
        if spent is None:
            return
        charged = spent.last
        self._tell(
            UsageEvent(
                agent=charge.policy.agent,
                turn=charge.policy.turn,
                model=charge.model.id,
                input_tokens=charged.tokens.input,
                output_tokens=charged.tokens.output,
                cache_read_tokens=charged.tokens.cache_read,
                cache_write_tokens=charged.tokens.cache_write,
                usd_micro=charged.usd_micro,
                certain=certain,
                duration_ms=round((self._now() - charge.begun) * 1000),
                row=SpendingRow.of(spent.row),
            )
        )

    def _entry(self, policy: AgentPolicy, model: ModelFacts) -> Entry:
        day = dt.datetime.fromtimestamp(self._now(), dt.UTC).astimezone().date().isoformat()
        # Between turns nothing should be asked; what is asked all the same shares one budget of a turn a day.
        turn = f"turn {policy.turn}" if policy.turn is not None else f"none {day}"
        return Entry(policy.agent, day, model.id, turn)


def _ceilings(policy: AgentPolicy) -> Ceilings:
    dollars = policy.budget_usd_day
    return Ceilings(None if dollars is None else round(dollars * _MICRO), policy.budget_tokens_turn)


def _over_budget(policy: AgentPolicy, shortage: Shortage) -> Refusal:
    """The CLI gives up at once on 403, and the harness reads the word budget."""
    left = []
    if shortage.usd_micro_left is not None and policy.budget_usd_day is not None:
        left.append(
            f"${max(shortage.usd_micro_left, 0) / _MICRO:.4f} of ${policy.budget_usd_day:g} for today"
        )
    if shortage.tokens_left is not None:
        left.append(f"{max(shortage.tokens_left, 0)} of {policy.budget_tokens_turn} tokens for this turn")
    told = f"refused by budget: {' and '.join(left)} are left, too little for this request"
    return Refusal(403, "permission_error", told, reason="budget")
