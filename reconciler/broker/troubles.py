"""What is wrong with the model's host for everybody, as the gateway sees it: a refused credential, an account
without credit, a long limit, no answer at all.

Nobody asks while a trouble lasts; then one agent does, for all: whose inbox holds something of the operator's
first, else who waits longest. When it succeeds, all go on. Only the gateway's word opens and ends a trouble;
what containers say of their turns does not. The operator is told once. Rows outlive hived.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from reconciler.broker.core import Core
from reconciler.broker.outcomes import RULES, pause_s
from reconciler.broker.sending import tell
from reconciler.broker.signals import Signal
from reconciler.model.instants import MICRO, micros, stamp
from reconciler.model.names import OPERATOR
from reconciler.model.risk import family
from reconciler.model.text import visible
from reconciler.store import agents, turns
from reconciler.store import troubles as rows
from reconciler.store.db import Row, Tx
from reconciler.store.troubles import Trouble

log = structlog.get_logger("broker")

SIGNS_MAX = 1000
LONG_LIMIT_S = 60.0
"""A limit that lasts longer is waited for together; the CLI waits for shorter ones by itself."""
TELL_LIMIT_S = 600.0
TELL_UNAVAILABLE_S = 300.0
PROBE_S = 60.0
"""So long one agent alone may ask; then another one may, too."""
AGAIN_S = 600.0
"""A trouble that comes back so soon is the same, of which the operator knows."""
STAGGER_S = 0.5
ALONE_S = 60.0
"""So much later one agent alone can prove that the account is refused: others would have been answered."""
_MESSAGE_MAX = 300

Kind = Literal["ok", "credential", "forbidden", "credit", "unavailable", "limit", "turn_budget"]
_OUTCOMES = {"credential": "auth", "credit": "credit", "unavailable": "unavailable", "limit": "rate_limited"}


@dataclass(frozen=True, slots=True)
class Sign:
    """What the gateway saw of one request: of which agent, with which model, in which of its turns. `until`
    is the end of a limit (microseconds)."""

    kind: Kind
    agent: str
    model: str = ""
    message: str = ""
    until: int | None = None
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """An agent may begin no turn: until then (microseconds; None: until it is let in), and why."""

    until: int | None
    reason: str


class Troubles:
    """Takes signs, keeps rows, lets agents in one by one. `last_ok`: when a request last succeeded."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._signs: deque[Sign] = deque(maxlen=SIGNS_MAX)
        self._news = Signal()
        self._known: dict[str, Trouble] = {}
        self._suspect: tuple[str, int | None, int] | None = None
        self._prober: dict[str, tuple[str, int]] = {}
        self._asked: dict[str, int] = {}
        self._not_before: dict[str, int] = {}
        self._models: dict[str, str] = {}
        self._limits: dict[str, int] = {}
        self._turn_budgets: dict[str, int] = {}
        self.last_ok = 0

    async def load(self) -> None:
        """What the process before knew."""
        self._known = {one.key: one for one in await rows.every(self._core.store.state)}
        self._models = {
            name: _family(model) for name, model in (await turns.last_models(self._core.store.state)).items()
        }

    # ------------------------------------------------------------------------------------- what others ask
    def open(self) -> list[Trouble]:
        """Those that go on, by key."""
        return [one for one in self._known.values() if one.over_at is None]

    def told(self) -> list[str]:
        """Those that go on, in words for the hive's status."""
        return [f"since {stamp(one.since_at)}: {_words(one)}".replace("\n", ". ") for one in self.open()]

    def gate(self, agent: str, row: Row) -> Gate | None:
        """Whether troubles keep this agent (its row of `agents`) from a turn."""
        now = self._now()
        for trouble in self.open():
            if not self._concerns(trouble, agent, row):
                continue
            if now < trouble.until_at:
                return Gate(trouble.until_at, _reason(trouble))
            prober = self._prober.get(trouble.key)
            if prober is None or prober[0] != agent:
                who = f"; {prober[0]} tries" if prober is not None else ""
                return Gate(None, _reason(trouble) + who)
        until = self._not_before.get(agent, 0)
        return (
            Gate(until, "goes on in a moment: the limit is over, one agent after the other")
            if until > now
            else None
        )

    def limit_of(self, agent: str) -> int | None:
        """The end of the limit that the agent met last, if it is still ahead."""
        until = self._limits.get(agent, 0)
        return until if until > self._now() else None

    def spent_its_turn(self, agent: str, turn: int) -> bool:
        """Whether the gateway refused something of that turn because of the turn's own budget."""
        return self._turn_budgets.get(agent) == turn

    # ------------------------------------------------------------------------------------ what others tell
    def heard(self, sign: Sign) -> None:
        """The gateway saw something. Never blocks."""
        if sign.model:
            self._models[sign.agent] = _family(sign.model)
        if sign.kind == "ok":
            self.last_ok = self._now()
            self._suspect = None
            if not self.open():
                return  # nearly every request
        elif sign.kind == "turn_budget" and sign.turn is not None:
            self._turn_budgets[sign.agent] = sign.turn
            return
        elif sign.kind == "limit" and sign.until is not None:
            self._limits[sign.agent] = sign.until
        self._signs.append(sign)
        self._news.notify()

    def urge(self, agent: str) -> None:
        """The operator wants this agent to try now."""
        for trouble in self.open():
            self._known[trouble.key] = replace(trouble, until_at=min(trouble.until_at, self._now()))
            self._prober[trouble.key] = (agent, self._now() + micros(PROBE_S))
        self._not_before.pop(agent, None)
        self._everybody_looks()

    def look(self) -> None:
        """Something came for an agent: it may be the one to try."""
        if self.open():
            self._news.notify()

    # -------------------------------------------------------------------------------------------- running
    async def run(self) -> None:
        """Take signs and let agents try, until cancelled."""
        while True:
            seen = self._news.version
            while self._signs:
                await self._take(self._signs[0])
                self._signs.popleft()
            await self._choose()
            await self._news.wait(seen, self._core.clock, self._pause_s())

    def _pause_s(self) -> float | None:
        """Until a trouble lets somebody try, or whoever tries has had its time."""
        now = self._now()
        ends = [t.until_at for t in self._gating() if t.until_at > now]
        ends += [until for _, until in self._prober.values() if until > now]
        return None if not ends else max(0.001, (min(ends) - now) / MICRO)

    async def _take(self, sign: Sign) -> None:
        if sign.kind == "ok":
            await self._over(sign)
            return
        key = self._key(sign)
        if key is None:
            return
        now, known = self._now(), self._known.get(key)
        if known is None or known.over_at is not None:
            again = known is not None and now - (known.over_at or 0) < micros(AGAIN_S)
            since, told = (known.since_at, known.told) if again and known is not None else (now, False)
            tries = 1
        else:
            if now < known.until_at and (sign.until or 0) <= known.until_at:
                return  # a turn that was under way when it began
            since, told, tries = known.since_at, known.told, known.tries + (now >= known.until_at)
        until = sign.until if sign.kind == "limit" else now + micros(pause_s(_outcome(key), tries))
        trouble = Trouble(key, visible(sign.message)[:_MESSAGE_MAX], since, until or now, tries, told)
        async with self._core.store.state.transaction() as tx:
            await self._write(tx, trouble, now)

    def _key(self, sign: Sign) -> str | None:
        """The trouble that a sign is of; None if it proves none."""
        if sign.kind == "forbidden":
            return "credential" if self._is_proven(sign) else None
        if sign.kind == "limit":
            is_long = sign.until is not None and sign.until - self._now() >= micros(LONG_LIMIT_S)
            return f"limit {_family(sign.model)}" if is_long else None
        return sign.kind

    def _is_proven(self, sign: Sign) -> bool:
        """A single agent may have asked for something that its account may not have, in as many turns as it
        likes. Two may not both, nor one for so long that somebody else would have been answered."""
        now, before = self._now(), self._suspect
        if before is not None and before[0] == sign.agent:
            return before[1] != sign.turn and now - before[2] >= micros(ALONE_S)
        self._suspect = (sign.agent, sign.turn, now)
        return before is not None

    async def _write(self, tx: Tx, trouble: Trouble, now: int) -> None:
        if not trouble.told and _worth_telling(trouble, now):
            trouble = replace(trouble, told=True)
            await tell(
                tx, OPERATOR, _words(trouble), key=f"trouble-{trouble.key}-{trouble.since_at}", urgent=True
            )
        await rows.put(tx, trouble)
        if trouble.key != "unavailable":
            await agents.unpark(tx, [RULES[_outcome(trouble.key)].reason])  # the trouble itself holds them
        until = stamp(trouble.until_at)
        await tx.emit("model.trouble", None, trouble=trouble.key, message=trouble.message, until=until)
        tx.after_commit(lambda: self._changed(trouble))

    async def _over(self, sign: Sign) -> None:
        """A request succeeded: what it disproves is over."""
        for trouble in self.open():
            if trouble.key.startswith("limit ") and trouble.key != f"limit {_family(sign.model)}":
                continue
            ended = replace(trouble, over_at=self._now())
            if trouble.key.startswith("limit "):
                await self._one_after_the_other(sign.agent)
            async with self._core.store.state.transaction() as tx:
                await rows.put(tx, ended)
                await agents.unpark(tx, [RULES[_outcome(trouble.key)].reason])
                await tx.emit("model.recovered", None, trouble=trouble.key, since=stamp(trouble.since_at))
                tx.after_commit(lambda ended=ended: self._changed(ended))  # type: ignore[misc]

    async def _one_after_the_other(self, first: str) -> None:
        """After a limit, those that wait go on with a pause between them, so that it is not met at once."""
        now = self._now()
        names = [name for name in await self._in_order() if name != first]
        self._not_before = {name: now + micros(STAGGER_S * (number + 1)) for number, name in enumerate(names)}

    def _changed(self, trouble: Trouble) -> None:
        self._known[trouble.key] = trouble
        self._prober.pop(trouble.key, None)
        self._everybody_looks()

    def _everybody_looks(self) -> None:
        for name in list(self._core.inboxes):
            self._core.ring(name)
            self._core.presence.touch(name)
        self._news.notify()

    async def _choose(self) -> None:
        """Let somebody try where it is time to."""
        now = self._now()
        for trouble in self._gating():
            prober = self._prober.get(trouble.key)
            if now < trouble.until_at or (prober is not None and now < prober[1]):
                continue
            for name in await self._in_order(trouble):
                self._prober[trouble.key] = (name, now + micros(PROBE_S))
                self._asked[name] = now
                self._core.ring(name)
                self._core.presence.touch(name)
                break

    async def _in_order(self, trouble: Trouble | None = None) -> list[str]:
        """Agents that could begin a turn if it were not for the trouble: with something of the operator's
        first, then who has not tried for the longest time, then by the oldest message. Who was let in since
        the trouble lets somebody try, and asked nothing, comes after all others, whosever message it has."""
        now, core = self._now(), self._core
        found = [
            row
            for row in await agents.waiting(core.store.state, now)
            if core.presence.is_ready(row["name"])
            and row["name"] not in core.draining
            and not row["held"]
            and agents.parked_until(row, now) == 0
            and agents.napping_until(row, now) == 0
            and core.presence.turn_of(row["name"]) is None
            and (trouble is None or self._concerns(trouble, row["name"], row))
        ]
        since = trouble.until_at if trouble is not None else self._now() + 1

        def rank(row: Row) -> tuple[bool, bool, int, int]:
            tried = self._asked.get(row["name"], 0)
            return tried >= since, not row["asked"], tried, row["first"]

        found.sort(key=rank)
        return [row["name"] for row in found]

    def _gating(self) -> list[Trouble]:
        return [one for one in self.open() if one.key != "unavailable"]

    def _concerns(self, trouble: Trouble, agent: str, row: Row) -> bool:
        """Whether it keeps that agent from a turn. Without an answer from the host everybody tries alone."""
        if trouble.key == "unavailable":
            return False
        if not trouble.key.startswith("limit "):
            return True
        override = row["model_override"]
        model = _family(override) if override else self._models.get(agent, "")
        return trouble.key == f"limit {model}"

    def _now(self) -> int:
        return micros(self._core.clock.now())


def _family(model: str) -> str:
    return family(model) or model


def _outcome(key: str) -> str:
    return _OUTCOMES[key.partition(" ")[0]]


def _reason(trouble: Trouble) -> str:
    said = f": {trouble.message}" if trouble.message else ""
    return f"{RULES[_outcome(trouble.key)].reason} (all agents){said}"


def _worth_telling(trouble: Trouble, now: int) -> bool:
    if trouble.key == "unavailable":
        return now - trouble.since_at >= micros(TELL_UNAVAILABLE_S)
    if trouble.key.startswith("limit "):
        return trouble.until_at - now >= micros(TELL_LIMIT_S)
    return True


def _words(trouble: Trouble) -> str:
    """For the operator, once."""
    rule = RULES[_outcome(trouble.key)]
    model = trouble.key.removeprefix("limit ") if trouble.key.startswith("limit ") else ""
    whom = f"All agents on {model} wait" if model else "All agents wait"
    if trouble.key == "unavailable":
        whom = "Each agent tries again by itself"
    return (
        f"{rule.reason[0].upper()}{rule.reason[1:]}: {trouble.message or 'no words came with it'}\n"
        f"{whom}; the next try is at {stamp(trouble.until_at)}, and all go on once one succeeds. "
        f"What to do: {rule.hint.replace(' NAME', ' AGENT')}. No message is lost."
    )
