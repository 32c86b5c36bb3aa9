"""The loop of passes: names on a queue without duplicates, a few workers, one pass per agent at a time,
back-off, a periodic full read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog

from reconciler.effects.protocols import Clock, Containers, ContainerStatus, HostFiles, Nix
from reconciler.errors import HiveError, TemporaryError, disk_full
from reconciler.model.instants import micros
from reconciler.model.names import AgentName
from reconciler.model.states import Desired as Want
from reconciler.model.states import Role
from reconciler.passes.apply import Applier, Sockets, Tags
from reconciler.passes.builds import Builds
from reconciler.passes.endings import HEALTHY_AFTER_S
from reconciler.passes.roots import Interchangeable, never
from reconciler.plan.facts import Actual, Bounds
from reconciler.plan.planner import plan
from reconciler.plan.steps import Again, Failed, Kind, Outcome, Plan, Settled, Waiting
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import AgentFacts
from reconciler.store.projections import Version

log = structlog.get_logger("passes")

WORKERS = 8
# They only suspend what is held: agents that are slow to stop or to start keep all the others busy.
HOLDERS = 2
STEPS_PER_PASS = 50
PAUSE_EVERY = 10
GLANCE_S = 1.0
ABSENT = ContainerStatus(phase="absent")
RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 30.0
FIRST_READ_TRIES = 10
# Every effect has a deadline of its own, and those of one step add up to less.
STUCK_S = 300.0


Look = tuple[AgentFacts, ContainerStatus, Plan]


class Drain(Protocol):
    """Let the agent come to rest between two turns, or give it turns again."""

    def __call__(self, agent: AgentName, *, on: bool) -> None: ...


class Presence:
    """What passes need to know of harnesses (implemented by the broker) and tell it of containers."""

    def __init__(
        self,
        hello_of: Callable[[AgentName], float | None],
        is_ready: Callable[[AgentName], bool],
        has_live_turn: Callable[[AgentName], bool],
        set_phase: Callable[[AgentName, ContainerStatus, Outcome], Awaitable[None]],
        drain: Drain,
        generation_of: Callable[[AgentName], int | None] = lambda _: None,
        turn_ended_at: Callable[[AgentName], float] = lambda _: 0.0,
    ) -> None:
        self.hello_of = hello_of
        self.is_ready = is_ready
        self.has_live_turn = has_live_turn
        self.set_phase = set_phase
        self.drain = drain
        self.generation_of = generation_of
        self.turn_ended_at = turn_ended_at


class Passes:
    """Brings every agent from what it is to what it should be."""

    def __init__(
        self,
        *,
        store: Store,
        containers: Containers,
        nix: Nix,
        tags: Tags,
        host_files: HostFiles,
        sockets: Sockets,
        builds: Builds,
        applier: Applier,
        presence: Presence,
        clock: Clock,
        bounds: Bounds,
        resync_s: float,
        after_step: Callable[[], None],
        on_failure: Callable[[AgentName, str], None],
        stuck_s: float = STUCK_S,
        on_read: Callable[[int, int], None] = lambda _done, _all: None,
        interchangeable: Interchangeable = never,
    ) -> None:
        self._store = store
        self._containers = containers
        self._nix = nix
        self._tags = tags
        self._host_files = host_files
        self._sockets = sockets
        self._builds = builds
        self._applier = applier
        self._presence = presence
        self._clock = clock
        self._bounds = bounds
        self._resync_s = resync_s
        self._after_step = after_step
        self._on_failure = on_failure
        self._stuck_s = stuck_s
        self._on_read = on_read
        self._interchangeable = interchangeable
        self._queue: dict[AgentName, None] = {}
        self._held: dict[AgentName, None] = {}
        self._ready = asyncio.Event()
        self._busy: set[AgentName] = set()
        self._timers: dict[AgentName, asyncio.TimerHandle] = {}
        self._failures: dict[AgentName, int] = {}
        self._errors: dict[AgentName, str] = {}
        self._moved_at: dict[AgentName, float] = {}
        self._read_at = clock.monotonic()
        self._began_at = clock.now()
        self.first_read = asyncio.Event()
        self.passes_done = 0

    # ------------------------------------------------------------------------------------------- the queue
    def wake(self, name: AgentName) -> None:
        """Put a name on the queue; the only thing that events may do."""
        self._queue[name] = None
        self._ready.set()

    def hold(self, name: AgentName) -> None:
        """Look at a name at once, whatever the workers are at, as it may have to be suspended."""
        self._held[name] = None
        self.wake(name)

    def _later(self, name: AgentName, delay_s: float) -> None:
        """Wake it in `delay_s` seconds, or when it was to be woken before that: who wishes for a later time
        again and again must not put off for ever what is due."""
        loop = asyncio.get_running_loop()
        old = self._timers.get(name)
        if old is not None and old.when() <= loop.time() + delay_s:
            return
        if old is not None:
            old.cancel()
        self._timers[name] = loop.call_later(delay_s, self._due, name)

    def _due(self, name: AgentName) -> None:
        self._timers.pop(name, None)
        self.wake(name)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync(), name="resync")
            group.create_task(self._hints(), name="container-hints")
            for number in range(HOLDERS):
                group.create_task(self._holder(), name=f"holder-{number}")
            for number in range(WORKERS):
                group.create_task(self._worker(), name=f"worker-{number}")

    def stuck(self) -> str | None:
        """What no longer moves, though it should: a step beyond all deadlines, or the periodic full read.
        None: all is well."""
        now = self._clock.monotonic()
        for name, since in self._moved_at.items():
            if now - since > self._stuck_s:
                return f"the pass of {name} has not moved for {now - since:.0f} s"
        if now - self._read_at > self._resync_s + self._stuck_s:
            return f"the last full read was {now - self._read_at:.0f} s ago"
        return None

    async def _resync(self) -> None:
        for _ in range(FIRST_READ_TRIES):
            if await self._is_done(self._look_at_all):
                break
            await self._clock.sleep(RETRY_FIRST_S)
        self.first_read.set()
        while True:
            await self._is_done(self.full_read)
            self._read_at = self._clock.monotonic()  # a read that failed has moved, too: it did not hang
            await self._clock.sleep(self._resync_s)

    @staticmethod
    async def _is_done(read: Callable[[], Awaitable[None]]) -> bool:
        """Whether the world could be read. A bus that is away is no reason to end: it is asked again."""
        try:
            await read()
        except HiveError as error:
            log.warning("read.failed", error=str(error))
            return False
        return True

    async def _look_at_all(self) -> None:
        """The first full read: every agent is known as it is before anybody is answered or anything done.
        Tags, which need a program for each repository the first time, wait for the next one."""
        statuses, everybody = await self._containers.statuses(), await self._everybody()
        for done, (name, facts) in enumerate(everybody.items()):
            self._on_read(done, len(everybody))
            try:
                _, status, planned = await self._compare(facts, statuses.get(name, ABSENT), None)
                await self._presence.set_phase(name, status, planned.outcome)
            except HiveError as error:  # its pass meets the same, and tells
                log.warning("read.failed", agent=name, error=str(error))
        self._on_read(len(everybody), len(everybody))

    async def full_read(self) -> None:
        """Look at every agent, and put those with anything to do on the queue."""
        statuses, tags = await self._containers.statuses(), await self._tags.version()
        for number, (name, facts) in enumerate((await self._everybody()).items()):
            if number % PAUSE_EVERY == 0:
                await asyncio.sleep(0)  # others have their turn
            if name in self._busy or name in self._queue:
                self.wake(name)  # a pass is under way, and what was read may be older than what it does
            else:
                await self._work(name, self._glance(facts, statuses.get(name, ABSENT), tags))

    async def _everybody(self) -> dict[AgentName, AgentFacts]:
        now = micros(self._clock.now())
        return await deployments.read_all(self._store.state, now=now, building=self._builds.running)

    async def _hints(self) -> None:
        async for name in self._containers.changes():
            self.wake(name)

    async def _worker(self) -> None:
        while True:
            name = next((n for n in self._queue if n not in self._busy), None)
            if name is None:
                self._ready.clear()
                await self._ready.wait()
                continue
            del self._queue[name]
            await self._work(name)

    async def _holder(self) -> None:
        while True:
            name = next((n for n in self._held if n not in self._busy), None)
            if name is None:
                self._ready.clear()
                await self._ready.wait()
                continue
            del self._held[name]
            await self._work(name, self._suspend(name))

    async def _suspend(self, name: AgentName) -> Outcome:
        """One step of a pass and no other; the rest is for a worker."""
        found = await self.look(name)
        if found is not None and found[2].steps and found[2].steps[0].kind is Kind.FREEZE:
            await self._applier.apply(found[2].steps[0], found[0], found[1])
            self.passes_done += 1
            self._after_step()
        return Again(0.0)

    async def _work(self, name: AgentName, work: Coroutine[Any, Any, Outcome] | None = None) -> None:
        """A pass, or a part of one: never two of one agent at a time."""
        self._busy.add(name)
        try:
            outcome = await self._guarded(name, work)
        finally:
            self._moved_at.pop(name, None)
            self._busy.discard(name)
            self._ready.set()
        self._reschedule(name, outcome)

    def _reschedule(self, name: AgentName, outcome: Outcome) -> None:
        match outcome:
            case Again(after_s):
                self._later(name, max(0.01, after_s))
            case Failed(temporary=True):
                count = self._failures[name] = self._failures.get(name, 0) + 1
                self._later(name, min(RETRY_LONGEST_S, RETRY_FIRST_S * 2 ** min(count, 10)))
            case Failed():
                self._later(name, RETRY_LONGEST_S)
            case Settled() | Waiting():
                self._failures.pop(name, None)

    async def _guarded(self, name: AgentName, work: Coroutine[Any, Any, Outcome] | None = None) -> Outcome:
        """One of the three places that catch everything: a bug in one agent's pass must not end the
        others'."""
        try:
            outcome = await (work or self.run_pass(name))
        except TemporaryError as error:
            log.warning("pass.temporary", agent=name, error=str(error))
            return self._failed(name, str(error))
        except HiveError as error:
            log.warning("pass.failed", agent=name, error=str(error))
            return self._failed(name, str(error))
        except Exception as error:
            if full := disk_full(error):
                log.warning("pass.temporary", agent=name, error=str(full))
                return self._failed(name, str(full))
            log.exception("pass.bug", agent=name)
            return self._failed(name, f"internal error: {error}")
        self._errors.pop(name, None)
        return outcome

    def _failed(self, name: AgentName, error: str) -> Failed:
        """Told once for each different error, not at each try."""
        if self._errors.get(name) != error:
            self._errors[name] = error
            self._on_failure(name, error)
        return Failed(error, temporary=True)

    def troubled(self) -> set[AgentName]:
        """The agents whose last pass failed."""
        return set(self._errors)

    def error_of(self, name: AgentName) -> str | None:
        """Why the last pass of the agent failed; None if it did not."""
        return self._errors.get(name)

    # ------------------------------------------------------------------------------------------- one pass
    async def run_pass(self, name: AgentName) -> Outcome:
        """Read, plan, apply the first step; again until nothing is left to do here and now."""
        for _ in range(STEPS_PER_PASS):
            self._moved_at[name] = self._clock.monotonic()
            found = await self.look(name)
            if found is None:
                await self._builds.tend(name, None)
                return Settled()
            facts, status, planned = found
            if await self._rests(found):
                return planned.outcome
            self._moved_at[name] = self._clock.monotonic()
            await self._applier.apply(planned.steps[0], facts, status)
            self._failures.pop(name, None)  # what moves is not slowed down for what failed before
            self.passes_done += 1
            self._after_step()
        return Again(1.0)

    async def _glance(self, facts: AgentFacts, status: ContainerStatus, tags: Version) -> Outcome:
        """What a pass does when nothing is to be done; else a pass is needed, at once. As it is for one that
        is slow to look at: nobody waits for it here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GLANCE_S):
                found = await self._compare(facts, status, tags)
            if await self._rests(found):
                return found[2].outcome
        return Again(0.0)

    async def _rests(self, found: Look) -> bool:
        """Whether there is nothing to do here and now; tells what was seen."""
        facts, status, planned = found
        name = facts.desired.name
        await self._builds.tend(name, facts.candidate)
        await self._presence.set_phase(name, status, planned.outcome)
        turn_end = isinstance(planned.outcome, Waiting | Again) and planned.outcome.turn_end
        self._presence.drain(name, on=turn_end)
        if planned.steps:
            return False
        await self._forgive(facts, status)
        return True

    async def look(self, name: AgentName) -> Look | None:
        """What is, what should be, and the plan between; changes nothing. None: no such agent."""
        now = micros(self._clock.now())
        facts = await deployments.read(self._store.state, name, now=now, building=self._builds.running)
        if facts is None:
            return None
        return await self._compare(facts, await self._containers.status(name), await self._tags.version())

    async def look_all(self) -> dict[AgentName, Plan]:
        """The plans of all agents, by name; rows and containers are read at once. One that cannot be looked
        at has failed."""
        statuses, tags = await self._containers.statuses(), await self._tags.version()
        found = {}
        for name, facts in (await self._everybody()).items():
            try:
                found[name] = (await self._compare(facts, statuses.get(name, ABSENT), tags))[2]
            except HiveError as error:
                found[name] = Plan((), Failed(str(error), temporary=True))
        return found

    async def _compare(self, facts: AgentFacts, status: ContainerStatus, tags: Version | None) -> Look:
        name = facts.desired.name
        hello = self._presence.hello_of(name)
        actual = Actual(
            phase=status.phase,
            toplevel=status.toplevel,
            invocation=status.invocation,
            started_at=status.started_at,
            hello=hello is not None and status.started_at is not None and hello >= status.started_at,
            ready=self._presence.is_ready(name),
            busy=self._presence.has_live_turn(name),
            directories=await self._host_files.agent_is_ready(
                name, facts.uid_base, manager=facts.role is Role.MANAGER
            ),
            sockets=self._sockets.is_served(name),
            socket_left=self._sockets.is_left(name),
            host_restarted=status.host_restarted,
            stop_asked=status.stop_asked,
            frozen=status.frozen,
            restless=status.restless,
            attached=facts.attached,
            generation=self._presence.generation_of(name),
            asked=self._applier.asked.get(name),
            idle_since=max(self._began_at, self._presence.turn_ended_at(name)),
            serves=await self._serves(facts, status),
            drift=status.drift,
            pinned=(pinned := await self._is_pinned(facts)),
            stored=await self._is_stored(facts, status, pinned=pinned),
            rebuild=self._builds.again.why(name),
            tagged=tags is None or await self._tags.are_there(name, tags),
        )
        return facts, status, plan(facts.desired, actual, self._clock.now(), self._bounds)

    async def _serves(self, facts: AgentFacts, status: ContainerStatus) -> frozenset[str]:
        """Of the roots that are wanted, those that the running container serves as well as its own."""
        deployment, current = facts.desired.deployment, facts.desired.current
        wanted = {
            one.toplevel for one in (deployment, current) if one is not None and one.toplevel is not None
        }
        runs = status.toplevel
        if runs is None or status.phase not in {"starting", "running"}:
            return frozenset()
        found = [one for one in wanted - {runs} if await self._interchangeable(facts.desired.name, runs, one)]
        return frozenset(found)

    async def _is_pinned(self, facts: AgentFacts) -> bool:
        """Whether the profile holds and points to the generation that should run. While another one is
        probed, the profile may be ahead."""
        current, name = facts.desired.current, facts.desired.name
        if current is None or facts.desired.deployment is not None:
            return True
        return await self._nix.runs(name, current.generation, current.toplevel)

    async def _is_stored(self, facts: AgentFacts, status: ContainerStatus, *, pinned: bool) -> bool:
        """Whether the store has what should run next. Not looked for while that runs, and pinned it is
        there."""
        deployment, current = facts.desired.deployment, facts.desired.current
        wanted = deployment.toplevel if deployment is not None else None
        wanted = wanted or (current.toplevel if current is not None else None)
        if wanted is None or facts.desired.state is not Want.RUNNING:
            return True
        runs = status.phase in {"starting", "running"} and status.toplevel == wanted
        return (runs and pinned) or await self._nix.exists(wanted)

    async def _forgive(self, facts: AgentFacts, status: ContainerStatus) -> None:
        if facts.desired.crashes.count == 0 or status.phase != "running" or status.started_at is None:
            return
        left = status.started_at + HEALTHY_AFTER_S - self._clock.now()
        if left > 0:
            self._later(facts.desired.name, left)
            return
        async with self._store.state.transaction() as tx:
            await deployments.record_well(tx, facts.desired.name)
