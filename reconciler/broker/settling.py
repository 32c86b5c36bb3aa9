"""The end of a turn: what becomes of its messages, whether its agent rests, and who is told. One transaction,
the caller's.

A message that fails too often is set aside, so that its agent goes on with the next one; people are told, its
sender never is. What the container says of the failure is quoted for the operator only: the manager is an
agent, and foreign words are not the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reconciler.broker.core import Core
from reconciler.broker.outcomes import (
    ASIDE_MAX,
    DEFER_AFTER,
    FAILURES_MAX,
    GOOD,
    RULES,
    TELL_AFTER,
    Rest,
    rest,
)
from reconciler.broker.sending import tell
from reconciler.broker.troubles import Troubles
from reconciler.model.instants import MICRO, micros, stamp
from reconciler.model.names import MANAGER, OPERATOR, AgentName
from reconciler.model.text import visible
from reconciler.store import agents, leases, messages, turns
from reconciler.store.db import Row, Tx
from reconciler.store.leases import Fault

ERROR_MAX = 4000
_QUOTED_MAX = 1000
_SAID_MAX_S = 3600.0  # how far a container's own word on a rate limit is believed


@dataclass(frozen=True, slots=True)
class Ended:
    """How a turn ended. `leases` as in `EndTurn`; `by_host`: the harness did not say so itself."""

    outcome: str
    error: str
    retry_after_s: float | None = None
    leases: frozenset[int] | None = None
    by_host: bool = False


@dataclass(slots=True)
class Settled:
    """What followed: messages set aside, until when the agent rests (None: not, or without end), why, and
    what the operator can do."""

    aside: list[int] = field(default_factory=list)
    until: int | None = None
    reason: str = ""
    hint: str = ""

    def shown(self) -> dict[str, Any]:
        """As the turn's last line has it; nothing where nothing followed."""
        found: dict[str, Any] = {"hint": self.hint, "reason": self.reason, "set_aside": self.aside}
        found["until"] = stamp(self.until) if self.until is not None else ""
        return {key: value for key, value in found.items() if value}


class Settling:
    """Settles turns with what the gateway saw of them."""

    def __init__(self, core: Core, troubles: Troubles) -> None:
        self._core = core
        self._troubles = troubles

    async def settle(self, tx: Tx, row: Row, ended: Ended) -> Settled:
        """Ack or return what the open turn `row` held, and park its agent if need be; the caller closes
        it."""
        agent, turn = AgentName(row["agent"]), int(row["id"])
        cause = self._cause(agent, turn, ended)
        good_turn, good_at = await turns.last_good(tx, agent)
        in_row = 1 + await turns.failed_since(tx, agent, good_turn)
        wanted = ended.outcome == "crashed" and await agents.is_being_stopped(tx, agent)
        fault = Fault() if wanted else self._fault(cause, in_row)
        failed = await self._give_back(tx, row, ended, fault)
        if ended.outcome in GOOD:
            return Settled()
        settled = Settled(hint=RULES[cause].hint.replace("NAME", agent) if not wanted else "")
        for message in failed:
            if message["failures"] >= FAILURES_MAX:
                await messages.set_aside(tx, message["id"])
                settled.aside.append(int(message["id"]))
        await self._tell_aside(tx, agent, turn, ended, settled)
        if settled.aside and await messages.set_aside_since(tx, agent, good_at) >= ASIDE_MAX:
            why = f"{ASIDE_MAX} messages in a row failed, so it is not the messages; the last turn: {cause}"
            await self._park(tx, agent, Rest(None, why), settled)
            await self._tell_parked(tx, agent, turn, why, ended)
            return settled
        worst = 0 if settled.aside else max((int(m["failures"]) for m in failed), default=0)
        await self._rest(tx, agent, cause, ended, worst, in_row, settled)
        if RULES[cause].blame == "agent" and in_row == TELL_AFTER:
            await self._tell_parked(tx, agent, turn, f"{in_row} turns failed: {RULES[cause].reason}", ended)
        return settled

    def _cause(self, agent: str, turn: int, ended: Ended) -> str:
        """The outcome, as the host knows better."""
        if ended.outcome == "budget" and self._troubles.spent_its_turn(agent, turn):
            return "turn_budget"
        return ended.outcome

    def _fault(self, cause: str, in_row: int) -> Fault:
        blame = RULES[cause].blame if cause in RULES else "world"
        if blame == "message":
            return Fault(counted=True)
        if blame == "proven":
            return Fault(proven_by=self._troubles.last_ok, deferred=in_row >= DEFER_AFTER)
        return Fault()

    async def _give_back(self, tx: Tx, row: Row, ended: Ended, fault: Fault) -> Sequence[Row]:
        """Settle its leases; messages whose failures were counted."""
        failed: list[Row] = []
        for lease in await leases.of_turn(tx, row["id"]):
            arrived = ended.leases is None or lease in ended.leases or lease == row["lease_id"]
            if ended.outcome in GOOD and arrived:
                await leases.ack(tx, lease)
            else:
                failed += await leases.give_back(tx, lease, fault if arrived else Fault())
        return failed

    async def _rest(
        self, tx: Tx, agent: AgentName, cause: str, ended: Ended, worst: int, in_row: int, settled: Settled
    ) -> None:
        if ended.by_host:
            return  # a harness that vanished is restarted with a delay of its own
        row = await agents.get(tx, agent)
        assert row is not None, "it had a turn"
        if RULES[cause].shared and (gate := self._troubles.gate(agent, row)) is not None:
            settled.until, settled.reason = gate.until, gate.reason  # the trouble holds it, and lets it go
            return
        limit_s = None
        if (until := self._troubles.limit_of(agent)) is not None:
            limit_s = (until - tx.now) / MICRO
        elif ended.retry_after_s is not None:
            limit_s = min(ended.retry_after_s, _SAID_MAX_S)
        found = rest(cause, failures=worst, in_row=in_row, limit_s=limit_s)
        if found is not None:
            await self._park(tx, agent, found, settled)

    async def _park(self, tx: Tx, agent: AgentName, found: Rest, settled: Settled) -> None:
        settled.until = None if found.seconds is None else tx.now + micros(found.seconds)
        settled.reason = found.reason
        await agents.park(tx, agent, settled.until, found.reason)

    async def _tell_aside(self, tx: Tx, agent: AgentName, turn: int, ended: Ended, settled: Settled) -> None:
        for message in settled.aside:
            row = await messages.get(tx, message)
            assert row is not None, "it was set aside in this transaction"
            what = (
                f"Message {message} from {row['sender']} to {agent} was set aside: {FAILURES_MAX} turns over "
                f"it failed, the last one (turn {turn}): {ended.outcome}. {agent} goes on with the next one."
            )
            again = f"`hive redeliver {message}` lets it come once more."
            await self._tell_people(
                tx, agent, what, f"{again}{_quoted(ended)}", key=f"aside-{message}-{turn}"
            )

    async def _tell_parked(self, tx: Tx, agent: AgentName, turn: int, why: str, ended: Ended) -> None:
        what = f"{agent} is parked: {why}."
        more = f"`hive wake {agent}` lets it try again. {RULES[ended.outcome].hint.replace('NAME', agent)}."
        await self._tell_people(tx, agent, what, f"{more}{_quoted(ended)}", key=f"parked-{turn}")

    async def _tell_people(self, tx: Tx, agent: AgentName, what: str, more: str, *, key: str) -> None:
        """The operator, and the manager unless it is about itself."""
        await tell(tx, OPERATOR, f"{what}\n{more}", key=key, urgent=True)
        manager = await agents.manager(tx)
        if manager is not None and manager != agent:
            await tell(tx, MANAGER, what, key=key)
            self._ring_after(tx, manager)

    def _ring_after(self, tx: Tx, name: str) -> None:
        tx.after_commit(lambda: self._core.ring(name))


def _quoted(ended: Ended) -> str:
    """The container's own words, or the host's."""
    if not ended.error:
        return ""
    who = "The host" if ended.by_host else "Its container"
    return f"\n{who} says: {visible(ended.error)[:_QUOTED_MAX]}"
