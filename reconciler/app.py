"""hived's composition root: the only place where real effects are made and services are wired.

Start: databases are opened and migrated, services made, sockets bound, then everything runs in one task
group; whatever ends there that should not end ends the program, and its supervisor starts it again. Nothing
outside the databases is needed to go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from reconciler import gatewaysigns
from reconciler.agents import AgentService
from reconciler.approvals.projection import project_meta, project_tag
from reconciler.approvals.service import ApprovalService
from reconciler.approvals.tags import ProposalTags
from reconciler.backup.restore import refuse_half_restored
from reconciler.backup.service import BackupService
from reconciler.broker.broker import MessageBroker
from reconciler.broker.core import Seats
from reconciler.broker.events import EventLog
from reconciler.broker.loops import Limits
from reconciler.broker.presence import Presence
from reconciler.broker.troubles import Sign
from reconciler.budgets import BudgetService
from reconciler.config import Config, Sessions
from reconciler.control.accounts import AccountService
from reconciler.control.agentserver import AgentServers
from reconciler.control.auth import Ids
from reconciler.control.meters import TooManyError
from reconciler.control.server import ControlServer
from reconciler.doctor.gather import Gathering
from reconciler.doctor.service import DoctorService
from reconciler.effects.clock import SystemClock
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.containers.systemd import ForeignEnd, SystemdContainers
from reconciler.effects.git import GitRepositories
from reconciler.effects.git.quarantine import Quarantine
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.effects.measures import RealMeasures
from reconciler.effects.nix import RealNix
from reconciler.effects.protocols import Clock, Containers, Git, HostFiles, Measures, Nix
from reconciler.gateway.catalog import known
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.messages import LimitEvent, RefusalEvent, TroubleEvent, UsageEvent
from reconciler.gatewaysync import GatewaySync
from reconciler.lifecycle import LifecycleService
from reconciler.model.names import AgentName
from reconciler.model.states import ProposalState
from reconciler.notify import Notifier
from reconciler.othermodels import OtherModels
from reconciler.passes.apply import Applier, Paths
from reconciler.passes.builds import Builds
from reconciler.passes.loop import Passes
from reconciler.passes.loop import Presence as SeenByPasses
from reconciler.passes.roots import BareRoots, never
from reconciler.plan.facts import Bounds
from reconciler.plan.steps import Failed, Plan
from reconciler.retention import Retention
from reconciler.room import Room, lasting
from reconciler.services import Services
from reconciler.sockets import Bound, inherited
from reconciler.startstop import STOP_S, end_within, extending, prove_life
from reconciler.stats.recorder import Recorder
from reconciler.stats.service import StatService
from reconciler.store import agents
from reconciler.store.db import Store

log = structlog.get_logger("hived")

RESIDENT_BYTES = 300 * 1024 * 1024  # a Claude Code of a few turns has 235 MB, and grows
BUILD_USERS = ("trees", "quarantine", "clients")  # folders with things of the build user in them
READ_ONE_S = 60.0  # what the start may take longer for each agent that was read


@dataclass(frozen=True, slots=True)
class Effects:
    """All that hived does to the world outside its databases and sockets. `close` releases what they hold.
    `foreign`: containers of the host that are not the hive's, where the driver sees them."""

    containers: Containers
    nix: Nix
    git: Git
    host_files: HostFiles
    clock: Clock
    close: Callable[[], None]
    measures: Measures
    foreign: Callable[[], AsyncIterator[ForeignEnd]] | None = None


def real_effects(config: Config) -> Effects:
    """The effects on this machine."""
    state = Path(config.state_dir)
    git = GitRepositories(state, Quarantine(state / "quarantine", config.build_user))
    nix, files, clock = RealNix(config), RealHostFiles(config), SystemClock()
    measures = RealMeasures(state)
    if config.driver == "shim":
        return Effects(ShimContainers(config), nix, git, files, clock, git.close, measures)
    containers = SystemdContainers(config)

    def close() -> None:
        git.close()
        containers.close()

    return Effects(containers, nix, git, files, clock, close, measures, containers.foreign)


def seats(sessions: Sessions) -> Seats:
    """The seats of this host. By themselves as many as half of its memory holds, and not fewer than two."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return Seats(sessions.resident_max or max(2, half // RESIDENT_BYTES), sessions.idle_s)


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What started hived: the way to tell it how things stand, and the sockets that it holds for us."""

    notifier: Notifier
    sockets: Mapping[str, Bound]


class Hived:
    """All parts of one running hived."""

    def __init__(self, config: Config, store: Store, effects: Effects, supervisor: Supervisor) -> None:
        self.notifier = supervisor.notifier
        self._reading = "starting"
        state, run = Path(config.state_dir), Path(config.run_dir)
        self.store = store
        self.clock = effects.clock
        self.containers = effects.containers
        self.git, self._release, self._foreign = effects.git, effects.close, effects.foreign
        nix, files = effects.nix, effects.host_files
        self.gateway = GatewayClient(
            run, on_limit=self._limited, on_refusal=self._refused,
            on_model=lambda event: self.other_models.heard(event),  # noqa: PLW0108 - made below
            on_usage=self._used, on_trouble=self._in_difficulty, on_connect=self._gateway_connected,
            now=self.clock.now,
        )  # fmt: skip
        self.gateway_sync = GatewaySync(store, self.gateway, self.clock, config.budget)
        self.events = EventLog(
            store,
            self.clock,
            handlers={"tag": self._tag, "meta": self._meta, "notify": self._notify},
            spending=self.gateway.rows,
        )
        self.recorder = Recorder(
            store, self.clock, ledger=self.gateway, containers=self.containers, measures=effects.measures,
            sample_s=config.metrics.sample_s,
        )  # fmt: skip
        self.events.observe(self.recorder.observe)
        presence = Presence(store, self.clock, self.events.publish)
        self.broker = MessageBroker(
            store, self.clock, self.events, presence, wake=self.wake, on_hello=self._before_hello,
            limits=Limits(config.loops.slow_after, config.loops.hold_after),
            seats=seats(config.sessions),
            on_turn=self.gateway_sync.turn_begun,
        )  # fmt: skip
        self.other_models = OtherModels(store, self.broker.nudge)
        self.budgets = BudgetService(
            store=store, config=config, clock=self.clock, counted=self.gateway, nudge=self.broker.nudge,
            sync=self.gateway_sync.poke,
        )  # fmt: skip
        self.builds = Builds(
            store, self.git, nix, state / "trees", parallel=config.parallel_builds,
            append_log=self.events.append_build_log, wake=self.wake, clock=self.clock,
        )  # fmt: skip
        self.approvals = ApprovalService(
            store=store, git=self.git, nix=nix, host_files=files, broker=self.broker, config=config,
            clock=self.clock, wake=self.wake, building=self.builds.state,
        )  # fmt: skip
        self.accounts = AccountService(store, self.clock, ui_port=config.ui_port)
        self.retention = Retention(store, self.clock, self.events, config.retention)
        self.agents = AgentService(
            store=store, config=config, containers=self.containers, look=self._look, look_all=self._look_all,
            presence=presence, voice=self.broker, approvals=self.approvals, spending=self.gateway,
            wake=self.wake, models=known().names(config.gateway.allowed_models),
            last_event_id=self.events.last_id, storage=self.retention,
            trouble=self._trouble, troubled=self._in_trouble, shared=self.broker.troubles.told,
        )  # fmt: skip
        tags = ProposalTags(store, self.git)
        doctor = DoctorService(
            store=store, git=self.git, tags=tags, wake=self.wake,
            gathering=Gathering(
                store=store, config=config, containers=self.containers, git=self.git, nix=nix,
                gateway=self.gateway,
            ),
        )  # fmt: skip
        self.deletions = asyncio.Lock()  # held by whatever deletes for good, and by a backup
        self.backups = BackupService(store, config, self.clock, self.deletions)
        lifecycle = LifecycleService(
            store=store, agents=self.agents, approvals=self.approvals, wake=self.wake, now=self.clock.now,
            hold_now=self._hold_now, state_dir=Path(config.state_dir),
        )  # fmt: skip
        services = self.services = Services(
            agents=self.agents, broker=self.broker, approvals=self.approvals, accounts=self.accounts,
            events=self.events, lifecycle=lifecycle, backups=self.backups, doctor=doctor,
            budgets=self.budgets,
            stats=StatService(store, self.clock, config.metrics.token_file),
        )  # fmt: skip
        self.sites = AgentServers(services, run, state, limited=self._agent_limited)
        applier = Applier(
            store=store, containers=self.containers, nix=nix, git=self.git, host_files=files,
            sockets=self.sites, voice=self.broker, tags=tags, builds=self.builds, clock=self.clock,
            append_log=self.events.append_build_log, deletions=self.deletions,
            paths=Paths(agents=state / "agents", sockets=run / "agents", staged=state / "staged"),
        )  # fmt: skip
        bounds = Bounds(hello_s=config.timeouts.hello_s, ready_s=config.timeouts.ready_s)
        self.passes = Passes(
            store=store, containers=self.containers, nix=nix, tags=tags, host_files=files,
            sockets=self.sites, builds=self.builds, applier=applier, clock=self.clock, bounds=bounds,
            resync_s=config.timeouts.resync_s, after_step=self.gateway_sync.poke, on_failure=self._troubled,
            on_read=self._has_read,
            presence=SeenByPasses(
                self.broker.hello_of, presence.is_ready, self.broker.has_live_turn, presence.set_phase,
                self.broker.drain, presence.generation_of, presence.turn_ended_at,
            ),
            interchangeable=BareRoots(store) if config.platform == "bare" else never,
        )  # fmt: skip
        self.control = ControlServer(services, run, Ids.of(config), inherited=supervisor.sockets)

    # ------------------------------------------------------------------------------------- wired by name
    def wake(self, name: AgentName) -> None:
        """Let a pass look at the agent, and the gateway at the rows."""
        self.passes.wake(name)
        self.gateway_sync.poke()
        self.budgets.poke()

    def _hold_now(self, name: AgentName) -> None:
        self.passes.hold(name)
        self.gateway_sync.poke()

    async def _look(self, name: AgentName) -> Plan | None:
        found = await self.passes.look(name)
        if found is None:
            return None
        error = self.passes.error_of(name)
        return found[2] if error is None else dataclasses.replace(found[2], outcome=Failed(error, True))

    def _trouble(self, name: AgentName) -> str | None:
        return self.passes.error_of(name)

    def _in_trouble(self) -> set[AgentName]:
        return self.passes.troubled()

    def _troubled(self, name: AgentName, error: str) -> None:
        self.events.announce("agent.trouble", name, error, error=error)

    async def _look_all(self) -> Mapping[AgentName, Plan]:
        return await self.passes.look_all()

    async def _before_hello(self, name: AgentName) -> None:
        await self.containers.forbid_user_namespaces(name)

    def _sign(self, sign: Sign | None) -> None:
        if sign is not None:
            self.broker.troubles.heard(sign)

    def _used(self, event: UsageEvent) -> None:
        self._sign(gatewaysigns.of_usage(event))
        self.budgets.poke()
        self.recorder.usage(event)

    def _in_difficulty(self, event: TroubleEvent) -> None:
        self._sign(gatewaysigns.of_trouble(event))
        self.events.announce(
            "gateway.trouble", event.agent, str(event.status), status=event.status, message=event.message
        )

    def _limited(self, event: LimitEvent) -> None:
        self._sign(gatewaysigns.of_limit(event, self.clock.now()))
        self.events.announce(
            "gateway.limited", event.agent, "", status=event.status, message=event.message, until=event.until
        )

    def _agent_limited(self, name: AgentName, error: TooManyError) -> None:
        self.events.announce("agent.limited", name, error.sort, sort=error.sort, message=error.message)

    def _refused(self, event: RefusalEvent) -> None:
        self._sign(gatewaysigns.of_refusal(event))
        self.events.announce(
            "gateway.refused", event.agent, event.reason, reason=event.reason, message=event.message
        )
        if event.closure is not None:
            self.budgets.poke()

    def _gateway_connected(self) -> None:
        self.gateway_sync.poke()  # what it lost of a day changes what was added to it
        self.budgets.poke()

    async def _tell_foreign(self, ends: AsyncIterator[ForeignEnd]) -> None:
        async for end in ends:
            await self.events.publish(
                "foreign.changed", None, unit=end.unit, state=end.active_state, result=end.result
            )

    async def _tag(self, data: Mapping[str, Any]) -> None:
        await project_tag(self.git, data)
        if str(data["tag"]).startswith(f"{ProposalState.APPROVED}/"):
            # `main` has moved: the agent's own clone and the manager's are brought up to date.
            manager = await agents.manager(self.store.state)
            for name in {str(data["agent"]), manager or str(data["agent"])}:
                await self.broker.direct(AgentName(name), "repos")

    async def _meta(self, data: Mapping[str, Any]) -> None:
        await project_meta(self.git, data)

    async def _notify(self, data: Mapping[str, Any]) -> None:
        await self.broker.notify(
            AgentName(data["agent"]), data["body"], urgent=bool(data.get("urgent")), key=data["key"]
        )

    # ------------------------------------------------------------------------------------- life
    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; agents go on without hived."""
        self.backups.sweep()
        await self.broker.start()
        await self.builds.sweep()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.events.run(), name="events"),
                group.create_task(self.broker.run(), name="broker"),
                group.create_task(Room(self.store, self.events.publish, self.clock).run(), name="room"),
                group.create_task(self.gateway.run(), name="gateway"),
                group.create_task(self.gateway_sync.run(), name="gateway-sync"),
                group.create_task(lasting("models", self.other_models.run, self.clock), name="models"),
                group.create_task(lasting("budgets", self.budgets.run, self.clock), name="budgets"),
                group.create_task(lasting("passes", self.passes.run, self.clock), name="passes"),
                group.create_task(lasting("stats", self.recorder.run, self.clock), name="stats"),
                group.create_task(lasting("retention", self.retention.run, self.clock), name="retention"),
                group.create_task(prove_life(self.notifier, self.passes.stuck, self._status), name="life"),
            ]
            if self._foreign is not None:
                tasks.append(group.create_task(self._tell_foreign(self._foreign()), name="foreign"))
            await self.approvals.resume()
            tasks.append(
                group.create_task(lasting("approvals", self.approvals.run, self.clock), name="approvals")
            )
            await self.passes.first_read.wait()
            await self.control.start()
            self.notifier.ready()
            log.info("hived.ready", pid=os.getpid())
            await stop.wait()
            log.info("hived.stopping")
            self.events.close()
            # Callers first, while what answers them is whole; then what works by itself.
            await asyncio.gather(self.control.close(), self.sites.close())
            await asyncio.gather(self.approvals.close(), self.builds.close())
            for task in tasks:
                task.cancel()

    def _has_read(self, done: int, count: int) -> None:
        self._reading = f"first read: {done} of {count} agents"
        self.notifier.status(self._reading)
        self.notifier.extend(READ_ONE_S)

    def _status(self) -> str:
        if not self.passes.first_read.is_set():
            return self._reading
        count, builds = len(self.sites.serving()), len(self.builds.tasks)
        return f"serving {count} agents" + (f", {builds} builds" if builds else "")

    async def close(self) -> None:
        """Release what is left after `run`."""
        self.backups.close()
        self._release()


async def serve(config: Config, make_effects: Callable[[Config], Effects] = real_effects) -> None:
    """Run hived until SIGTERM or SIGINT. `make_effects` is for tests, which put faults into them."""
    state, run = Path(config.state_dir), Path(config.run_dir)
    refuse_half_restored(state)
    for directory in (state, run, run / "agents", *(state / name for name in BUILD_USERS)):
        # 0711 whatever the umask: the build user passes through to its own trees, and lists nothing.
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
    notifier = Notifier.from_environment(os.environ)
    supervisor = Supervisor(notifier, inherited(os.environ))
    notifier.status("opening the databases (migrating them, if they are of an older version)")
    store = await extending(Store.open(state), notifier)
    try:
        hived = Hived(config, store, make_effects(config), supervisor)
        stop = asyncio.Event()

        def end() -> None:
            end_within(STOP_S, notifier)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        try:
            await hived.run(stop)
        finally:
            await hived.close()
    finally:
        await store.close()
