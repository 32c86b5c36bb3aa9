"""What a request may cost and has cost: reserved before it goes out, settled when it ends, whatever
happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace

import structlog

from reconciler.gateway.catalog import Catalog, ModelFacts, Worst
from reconciler.gateway.messages import Added, AgentPolicy, SetHive, SpendingRow, UsageEvent
from reconciler.gateway.screening import Refusal, Screened, for_counting, with_max_tokens
from reconciler.gateway.upstream import Upstream
from reconciler.gateway.usage import Meter, Usage
from reconciler.model.days import local_day
from reconciler.model.money import MICRO, dollars
from reconciler.store.ledger import Allowed, Ceilings, Closure, Cost, Entry, Ledger, Shortage

log = structlog.get_logger("gateway")

# An answer that may not even be this long is not worth asking for.
OUTPUT_MIN_TOKENS = 2048


@dataclass(slots=True)
class Charge:
    """A reservation that is open: whose, for what, since when, and the most that the answer may hold."""

    reservation: int
    policy: AgentPolicy
    model: ModelFacts
    output_tokens: int
    begun: float


class Cashier:
    """Reserves and settles. `tell` gets an event for every request that cost something. `hive` is what holds
    for all agents together; `place_s`: how long a request waits for room that others hold."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        catalog: Catalog,
        upstream: Upstream,
        now: Callable[[], float],
        tell: Callable[[UsageEvent], None],
        place_s: float,
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._upstream = upstream
        self._now = now
        self._tell = tell
        self._place_s = place_s
        self._ended = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self.hive = SetHive(id=0)

    async def reserve(
        self, policy: AgentPolicy, screened: Screened, raw: bytes, headers: Mapping[str, str]
    ) -> tuple[Charge, bytes]:
        """Reserve the worst case; the charge and the body to send. Raises `Refusal` when the budget is
        too small.

        Only where what the body's size bounds does not fit is the API asked for the exact number of tokens,
        and the answer made shorter to fit. Room that other requests under way hold is waited for.
        """
        model = self._catalog.get(screened.model)
        assert model is not None, "screened for known models"
        await self._check_open(policy)
        input_tokens = model.window if screened.input_tokens is None else screened.input_tokens
        worst = Worst(
            min(input_tokens, model.window), min(screened.max_tokens, model.max_output), screened.long_cache
        )
        counted = False
        deadline = asyncio.get_running_loop().time() + self._place_s
        while True:
            ended = self._ended
            found = await self._reserve(policy, model, worst)
            if not isinstance(found, Shortage):
                return Charge(found, policy, model, worst.output_tokens, self._now()), raw
            if not counted:
                counted = True
                exact = await self._upstream.count(for_counting(raw), headers)
                if exact is not None:
                    worst = replace(worst, input_tokens=min(model.window, _with_slack(exact)))
            least = max(min(worst.output_tokens, OUTPUT_MIN_TOKENS), screened.thinking_tokens + 1)
            if (room := self._room(model, worst, found)) >= least:
                if room < worst.output_tokens:
                    worst = replace(worst, output_tokens=room)
                    raw = with_max_tokens(raw, room)
                continue
            if self._room(model, worst, found, at_rest=True) < least:
                needed = self._catalog.worst_cost(model, replace(worst, output_tokens=least))
                raise await self._over_budget(policy, found, needed)
            await self._wait_for_room(ended, deadline)

    def _room(self, model: ModelFacts, worst: Worst, found: Shortage, *, at_rest: bool = False) -> int:
        return self._catalog.output_within(
            model,
            worst,
            usd_micro=found.usd_micro_left(at_rest=at_rest),
            tokens=found.tokens_left(at_rest=at_rest),
        )

    async def _wait_for_room(self, ended: asyncio.Event, deadline: float) -> None:
        """Until a request under way has ended; `Refusal` after the deadline, which the CLI tries again."""
        try:
            async with asyncio.timeout_at(deadline):
                await ended.wait()
        except TimeoutError:
            told = "other requests under way hold what is left of the budget"
            raise Refusal(529, "overloaded_error", told, reason="busy") from None

    async def _check_open(self, policy: AgentPolicy) -> None:
        """Who has used a day up gets no more of it, however little is asked for: `Refusal`."""
        closure = await self._ledger.closure(policy.agent)
        if closure is not None and closure.holds(local_day(self._now()), self._ceilings(policy)):
            raise _closed(closure)

    async def _over_budget(self, policy: AgentPolicy, shortage: Shortage, needed: Cost) -> Refusal:
        """The refusal of a request that needs `needed` at least; where an untouched day would have had room
        for it, the agent gets no more today."""
        for room in shortage.rooms:
            if room.budget == "turn" or needed.usd_micro <= room.left_at_rest:
                continue
            if needed.usd_micro > room.ceiling:
                whose = "the hive's budget" if room.budget == "hive" else "the budget"
                told = f"this request alone may cost {dollars(needed.usd_micro)}, {whose} of a whole day is "
                return _refusal(told + dollars(room.ceiling))
            day = local_day(self._now())
            closure = Closure(
                policy.agent, day, room.budget, room.ceiling, room.spent, needed.usd_micro
            )  # fmt: skip
            await self._ledger.close_day(closure)
            return _closed(closure)
        left = max(shortage.tokens_left(at_rest=True) or 0, 0)
        of = self._ceilings(policy).tokens_turn
        return _refusal(
            f"{left} of {of} tokens for this turn are left, too little for this request "
            f"({needed.tokens.counted} at least)"
        )

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

    async def _reserve(self, policy: AgentPolicy, model: ModelFacts, worst: Worst) -> int | Shortage:
        """Reserve; if the caller is cancelled meanwhile, nothing stays reserved."""
        cost = self._catalog.worst_cost(model, worst)
        entry, ceilings = self._entry(policy, model), self._ceilings(policy)
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
        self._ended.set()  # whoever waits for room looks again
        self._ended = asyncio.Event()
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
        day = local_day(self._now())
        # Between turns nothing should be asked; what is asked all the same shares one budget of a turn a day.
        turn = f"turn {policy.turn}" if policy.turn is not None else f"none {day}"
        return Entry(policy.agent, day, model.id, turn)

    def _ceilings(self, policy: AgentPolicy) -> Ceilings:
        day, hive = local_day(self._now()), self.hive
        tokens = [n for n in (policy.budget_tokens_turn, hive.budget_tokens_turn) if n is not None]
        return Ceilings(
            agent_day=_allowed(policy.budget_usd_day, policy.added, day),
            hive_day=_allowed(hive.budget_usd_day, hive.added, day),
            tokens_turn=min(tokens, default=None),
        )


def _allowed(dollars: float | None, added: Added | None, day: str) -> Allowed | None:
    if dollars is None:
        return None
    more = added.usd_micro if added is not None and added.day == day else 0
    return Allowed(round(dollars * MICRO), more)


def _with_slack(counted: int) -> int:
    """What the API counts beforehand is an estimate, by its own documentation a slightly different one."""
    return counted + 16 + counted // 50


def _closed(closure: Closure) -> Refusal:
    whose = "the hive's" if closure.budget == "hive" else "this agent's"
    spent, ceiling = dollars(closure.spent_usd_micro), dollars(closure.ceiling_usd_micro)
    told = (
        f"{spent} of {whose} {ceiling} for today are spent, what is left is too little for the next request "
        f"({dollars(closure.needed_usd_micro)})"
    )
    return _refusal(told, closure)


def _refusal(told: str, closure: Closure | None = None) -> Refusal:
    """The CLI gives up at once on 403, and the harness reads the word budget."""
    told = f"refused by budget: {told}"
    return Refusal(403, "permission_error", told, reason="budget", closure=closure)
