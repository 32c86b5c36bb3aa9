"""hived's end of the gateway: which agents it serves, and what they spent.
 Level-triggered: `configure` says what shall be, and every connection brings the gateway to it, whichever
of the two was away. The listening sockets are made here, because only root can give them to the agents;
they stay open here too, so that a harness that connects while the gateway restarts waits instead of being
refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from pydantic import ValidationError

from reconciler.control import models as api
from reconciler.errors import HiveError, TemporaryError
from reconciler.gateway.messages import (
    REPLIES,
    VERSION,
    AgentPolicy,
    Answer,
    AskClosures,
    AskSpending,
    ClosureRow,
    DropAgent,
    Event,
    Hello,
    LimitEvent,
    ModelEvent,
    RefusalEvent,
    Request,
    SetAgent,
    SetHive,
    SpendingRow,
    TroubleEvent,
    UsageEvent,
)
from reconciler.gateway.packets import Closed, Packets
from reconciler.model.days import days_before, local_day
from reconciler.sockets import Bound, bind

log = structlog.get_logger("gateway.client")

CONNECT_S = 5.0
ANSWER_S = 10.0
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
HISTORY_DAYS = 92
_MICRO = 1_000_000


def _nothing(_event: object) -> None:
    """A callback nobody asked for."""


class GatewayClient:
    """One connection to the gateway, made anew for ever; also a `Spending` for the service of agents.

    `on_usage`, `on_limit`, `on_refusal`, `on_trouble` and `on_model` are called in order and must not block;
    events that happen while hived is away are not told again, but what was spent is in `rows`, and
    `on_connect` is called when all of that is known. `problems`: agent → why it is not served. `closures`:
    agents that get no more of a day; `known`: they were asked for; `unknown`: days of which the ledger lost
    what was before an instant (microseconds).
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_usage: Callable[[UsageEvent], None] = _nothing,
        on_limit: Callable[[LimitEvent], None] = _nothing,
        on_refusal: Callable[[RefusalEvent], None] = _nothing,
        on_trouble: Callable[[TroubleEvent], None] = _nothing,
        on_model: Callable[[ModelEvent], None] = _nothing,
        on_connect: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._run_dir = run_dir
        self._on_usage, self._on_limit, self._on_refusal = on_usage, on_limit, on_refusal
        self._on_trouble = on_trouble
        self._on_model, self._on_connect = on_model, on_connect
        self._now = now
        self.closures: dict[str, ClosureRow] = {}
        self.unknown: dict[str, int] = {}
        self.known = False
        self._hive = SetHive(id=0)
        # None until hived has read its rows: to drop what is not wanted would cut every turn off.
        self._wanted: dict[str, AgentPolicy] | None = None
        self._bound: dict[str, Bound] = {}
        self._applying = asyncio.Lock()
        self._connection: _Connection | None = None
        self._rows: dict[tuple[str, str, str], SpendingRow] = {}
        self.problems: dict[str, str] = {}

    @property
    def connected(self) -> bool:
        """Whether the gateway is there and was brought to what shall be."""
        return self._connection is not None and self._connection.ready

    async def run(self) -> None:
        """Keep a connection until cancelled; a guarded task of hived."""
        failures = 0
        try:
            while True:
                try:
                    packets = await Packets.connect(str(self._control_path()), timeout_s=CONNECT_S)
                except (OSError, TimeoutError) as error:
                    if failures == 0:
                        log.warning("gateway.away", error=str(error))
                else:
                    failures = 0
                    await self._use(packets)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
        finally:
            for bound in self._bound.values():
                bound.close(unlink=False)  # the gateway serves on
            self._bound.clear()

    async def configure(self, policies: Sequence[AgentPolicy]) -> None:
        """Let the gateway serve exactly these agents. Done on return if the gateway is there, else when
        it comes.

        An agent whose run directory does not exist yet is in `problems`, and is tried again with the next
        call.
        """
        self._wanted = {policy.agent: policy for policy in policies}
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Closed, TimeoutError):  # `run` sees it too, and begins anew
                await self._apply(connection)

    async def configure_one(self, policy: AgentPolicy) -> None:
        """The same for one agent that is served already; the others stay as they are."""
        connection = self._connection
        if self._wanted is None or policy.agent not in self._wanted:
            return
        self._wanted[policy.agent] = policy
        if connection is None or policy.agent not in connection.held:
            return
        with contextlib.suppress(Closed, TimeoutError):
            async with self._applying:
                await self._set(connection, policy)

    async def configure_hive(self, hive: SetHive) -> None:
        """What holds for all agents together, from now on and for every gateway to come."""
        if hive == self._hive:
            return
        self._hive = hive
        if self._connection is not None:
            with contextlib.suppress(Closed, TimeoutError):
                await self._connection.ask(hive)

    def spent_micro(self, day: str) -> dict[str, int]:
        """Micro-dollars of a day by agent."""
        found: dict[str, int] = {}
        for row in self._rows.values():
            if row.day == day:
                found[row.agent] = found.get(row.agent, 0) + row.usd_micro
        return found

    async def today(self) -> dict[str, tuple[int, float]]:
        """Tokens (input, output, cache writes) and dollars of the host-local day by agent."""
        day = local_day(self._now())
        found: dict[str, tuple[int, float]] = {}
        for row in self._rows.values():
            if row.day == day:
                tokens, usd = found.get(row.agent, (0, 0.0))
                counted = row.input_tokens + row.output_tokens + row.cache_write_tokens
                found[row.agent] = (tokens + counted, usd + row.usd_micro / _MICRO)
        return found

    def ledger_rows(self) -> Sequence[SpendingRow]:
        """Rows of the ledger as last told, in no order."""
        return list(self._rows.values())

    async def rows(self) -> Sequence[api.Spending]:
        """Spending of the last `HISTORY_DAYS` days, the newest day first; as last known if the gateway is
        away."""
        ordered = sorted(self._rows.values(), key=lambda row: (row.agent, row.model))
        ordered.sort(key=lambda row: row.day, reverse=True)
        return [_spending(row) for row in ordered]

    async def spending(self, since_day: str) -> Sequence[SpendingRow]:
        """Rows of days from `since_day` on, asked of the gateway; `TemporaryError` if it is away."""
        connection = self._connection
        if connection is None:
            raise TemporaryError("the gateway is away")
        try:
            return await _all_spending(connection, since_day)
        except (Closed, TimeoutError) as error:
            raise TemporaryError(f"the gateway did not answer: {error}") from error

    def _control_path(self) -> Path:
        return self._run_dir / "gateway" / "control.sock"

    def _socket_path(self, agent: str) -> Path:
        return self._run_dir / "agents" / agent / "model.sock"

    async def _use(self, packets: Packets) -> None:
        """Work with one connection until it ends."""
        connection = _Connection(packets, self._heard)
        reading = asyncio.create_task(connection.read(), name="gateway replies")
        try:
            hello = await connection.ask(Hello(id=0, version=VERSION))
            if hello.error:
                log.error("gateway.refused", error=hello.error)
                return
            connection.held, self.unknown = dict(hello.held), dict(hello.unknown)
            self._connection = connection
            for row in await _all_spending(connection, days_before(self._now(), HISTORY_DAYS)):
                self._take(row)
            self.closures = await _all_closures(connection, local_day(self._now()))
            self.known = True
            await connection.ask(self._hive)
            await self._apply(connection)
            self._on_connect()
            await reading
        except (Closed, TimeoutError) as error:
            log.warning("gateway.lost", error=str(error))
        finally:
            self._connection = None
            reading.cancel()
            packets.close()
            with contextlib.suppress(asyncio.CancelledError, Closed):
                await reading

    async def _apply(self, connection: _Connection) -> None:
        """Bring the gateway to what is wanted, once that is known; what it has already is not sent again."""
        async with self._applying:
            wanted = self._wanted
            if wanted is None:
                return
            for agent in sorted((connection.held.keys() | self._bound.keys()) - wanted.keys()):
                if agent in connection.held:
                    await connection.ask(DropAgent(id=0, agent=agent))
                    del connection.held[agent]
                connection.sent.pop(agent, None)
                self.problems.pop(agent, None)
                if bound := self._bound.pop(agent, None):
                    bound.close(unlink=True)
            for agent, policy in sorted(wanted.items()):
                try:
                    await self._set(connection, policy)
                    self.problems.pop(agent, None)
                except HiveError as error:
                    if self.problems.get(agent) != error.message:
                        # After a start of the host the first pass makes the directory, in a moment.
                        is_early = not self._socket_path(agent).parent.is_dir()
                        tell = log.info if is_early else log.warning
                        tell("gateway.agent_not_served", agent=agent, error=error.message)
                    self.problems[agent] = error.message
            if not connection.ready:
                connection.ready = True
                log.info("gateway.connected", serving=len(wanted))

    async def _set(self, connection: _Connection, policy: AgentPolicy) -> None:
        agent = policy.agent
        name = self._ensure_socket(policy, connection.held.get(agent))
        passes = connection.held.get(agent) != name
        if not passes and connection.sent.get(agent) == policy:
            return
        fds = [self._bound[agent].sock.fileno()] if passes else []
        answer = await connection.ask(SetAgent(id=0, policy=policy, socket=name), fds)
        if answer.error:
            raise TemporaryError(answer.error)
        connection.held[agent], connection.sent[agent] = name, policy

    def _ensure_socket(self, policy: AgentPolicy, held: str | None) -> str:
        """The name of the agent's socket; a new one is made unless the one in place is ours or the
        gateway's."""
        path = self._socket_path(policy.agent)
        there = _name_of(path, policy.uid_base)
        bound = self._bound.get(policy.agent)
        if there is not None and (there == held or (bound is not None and bound.is_in_place())):
            return there
        if bound is not None:
            bound.close(unlink=False)
        self._bound[policy.agent] = bind(path, mode=0o600, uid=policy.uid_base, gid=policy.uid_base)
        made = _name_of(path, policy.uid_base)
        if made is None:
            raise TemporaryError(f"the socket {path} was replaced while it was made")
        return made

    def _heard(self, event: Event) -> None:
        match event:
            case UsageEvent():
                self._take(event.row)
                self._on_usage(event)
            case LimitEvent():
                self._on_limit(event)
            case TroubleEvent():
                self._on_trouble(event)
            case RefusalEvent():
                if event.closure is not None:
                    self.closures[event.agent] = event.closure
                self._on_refusal(event)
            case ModelEvent():
                self._on_model(event)

    def _take(self, row: SpendingRow) -> None:
        key = (row.day, row.agent, row.model)
        known = self._rows.get(key)
        # Rows only grow; a page that was asked for before an event must not undo it.
        if known is None or row.requests >= known.requests:
            self._rows[key] = row


class _Connection:
    """Requests and answers over packets. `held` and `sent` are what the gateway is known to have."""

    def __init__(self, packets: Packets, heard: Callable[[Event], None]) -> None:
        self.held: dict[str, str] = {}
        self.sent: dict[str, AgentPolicy] = {}
        self.ready = False
        self._packets = packets
        self._heard = heard
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, request: Request, fds: Sequence[int] = ()) -> Answer:
        """Send a request and wait for its answer. Raises `Closed` or `TimeoutError`."""
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(ANSWER_S):
                text = request.model_copy(update={"id": number}).model_dump_json().encode()
                await self._packets.send(text, fds)
                return await answer
        finally:
            del self._asked[number]

    async def read(self) -> None:
        """Take replies until the connection ends; then every question gets `Closed`."""
        try:
            while True:
                text, _ = await self._packets.receive()
                try:
                    reply = REPLIES.validate_json(text)
                except ValidationError as error:
                    raise Closed(f"a malformed reply: {error.errors(include_url=False)[0]['msg']}") from None
                if not isinstance(reply, Answer):
                    self._heard(reply)
                elif (waiting := self._asked.get(reply.id)) is not None and not waiting.done():
                    waiting.set_result(reply)
        finally:
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(Closed("the connection ended"))


async def _all_spending(connection: _Connection, since: str) -> list[SpendingRow]:
    rows: list[SpendingRow] = []
    after = ("", "", "")
    while True:
        page = await connection.ask(AskSpending(id=0, since=since, after=after))
        if page.error:
            raise Closed(page.error)
        rows += page.rows
        if not page.more or not page.rows:
            return rows
        last = page.rows[-1]
        after = (last.day, last.agent, last.model)


async def _all_closures(connection: _Connection, day: str) -> dict[str, ClosureRow]:
    found: dict[str, ClosureRow] = {}
    after = ""
    while True:
        page = await connection.ask(AskClosures(id=0, day=day, after=after))
        if page.error:
            raise Closed(page.error)
        found |= {row.agent: row for row in page.closures}
        if not page.more or not page.closures:
            return found
        after = page.closures[-1].agent


def _name_of(path: Path, uid: int) -> str | None:
    """A name for the socket file at `path` that no other file will ever have; None if there is none of
    that owner."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if not path.is_socket() or found.st_uid != uid:
        return None
    return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}"


def _spending(row: SpendingRow) -> api.Spending:
    return api.Spending(
        agent=row.agent,
        day=row.day,
        model=row.model,
        requests=row.requests,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cache_read_tokens=row.cache_read_tokens,
        cache_write_tokens=row.cache_write_tokens,
        usd=row.usd_micro / _MICRO,
    )
