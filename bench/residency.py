"""Twenty agents that are busy all the time and six seats: how many turns each gets, how long it waits for the
next, how many command lines there are at once, and what they take. And what a turn costs in a warm session
and in a cold one, against the same CLI started by itself.

Harness and CLI are the genuine ones, each agent in a container of its own (bubblewrap), over their real
sockets; broker, databases and seats are hived's own; the model is scripted and answers at once.

    python -m bench.residency [SECONDS]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog
from aiohttp import web

from bench import bare
from bench.figures import Figure
from bench.memory import resident_mib
from reconciler.broker.core import Seats
from reconciler.control import models as api
from reconciler.control.agentserver import AgentServers
from reconciler.effects.clock import SystemClock
from reconciler.model.names import AgentName
from reconciler.model.states import Role
from reconciler.scripted.scenario import File
from reconciler.scripted.server import Log, ScriptedModel
from tests.fakes.container import Container, command_of, processes_of_agent
from tests.fakes.services import FakeServices
from tests.support.brokers import World

AGENTS = 20
CAP = 6
SECONDS = 90.0
SAMPLES = 8
DEADLINE_S = 180.0
_SAMPLE_S = 1.0
_PLAN = [{"name": "any", "when": {"prompt": "."}, "steps": [{"text": "Done."}]}]


class Host:
    """hived's broker over real sockets, and containers with harnesses in them."""

    def __init__(self, folder: Path, cap: int, count: int) -> None:
        self.folder = folder
        self.names = [AgentName(f"agent-{number:02}") for number in range(count)]
        self.world = World(folder, "FULL", Seats(cap=cap))
        self.world.clock = SystemClock()  # type: ignore[assignment] # real harnesses need real time
        self.log = Log(bodies=False)
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of it, with every harness waiting for messages."""
        async with contextlib.AsyncExitStack() as stack:
            await self.world._start()  # noqa: SLF001 - with another clock than tests have
            stack.push_async_callback(self.world.close)
            await stack.enter_async_context(self.world.running())
            services = dataclasses.replace(FakeServices().bundle(), broker=self.world.broker)
            sites = AgentServers(services, self.folder / "run", self.folder)
            stack.push_async_callback(sites.close)
            model = web.AppRunner(
                ScriptedModel(File.model_validate({"scenarios": _PLAN}).scenarios, self.log).app(),
                access_log=None,
            )
            await model.setup()
            stack.push_async_callback(model.cleanup)
            for name in self.names:
                await self.world.agent(name, spec={"tools": {"allow": ["Read"]}})
                await self.world.set(name, session_id=str(uuid.uuid4()))
                await self.world.runs(name)
                await sites.serve(name, 0, Role.AGENT)
                (self.folder / name).mkdir()
                container = Container(self.folder / name)
                container.run.rmdir()
                container.run.symlink_to(self.folder / "run/agents" / name)
                await web.UnixSite(model, str(container.run / "model.sock")).start()
                self.processes[name] = await stack.enter_async_context(container.harness())
            async with asyncio.timeout(DEADLINE_S):
                while not all(self.world.presence.is_ready(name) for name in self.names):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            yield

    async def ask(self, name: AgentName) -> None:
        await self.world.broker.notify(name, "go on", key=self.world.key())

    def command_lines(self) -> dict[str, list[int]]:
        """Agents that have a Claude Code, with the pids of it and of what it has just forked."""
        found = {
            name: [pid for pid in processes_of_agent(process) if "stream-json" in command_of(pid)]
            for name, process in self.processes.items()
        }
        return {name: pids for name, pids in found.items() if pids}


@dataclasses.dataclass
class Seen:
    """What happened: turns of each agent, waits for the next one (s), command lines and MiB at each look."""

    turns: Counter[str] = dataclasses.field(default_factory=Counter)
    waits: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    lines: list[int] = dataclasses.field(default_factory=list)
    mib: list[float] = dataclasses.field(default_factory=list)


def jain(counts: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all got the same, 1/n when one got all."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


async def busy(folder: Path, *, count: int, cap: int, seconds: float) -> Seen:
    """All agents busy for so long: each has its next message as soon as it has taken the one before."""
    host, seen, asked = Host(folder, cap, count), Seen(), dict[str, float]()

    def observe(event: api.Event) -> None:
        if event.kind == "turn.begun" and event.agent is not None:
            seen.turns[event.agent] += 1
            seen.waits[event.agent].append(time.monotonic() - asked[event.agent])
            asked[event.agent] = time.monotonic()
            again.put_nowait(AgentName(event.agent))

    again: asyncio.Queue[AgentName] = asyncio.Queue()

    async def feed() -> None:
        while True:
            await host.ask(await again.get())

    async with host.running():
        host.world.events.observe(observe)
        for name in host.names:
            asked[name] = time.monotonic()
            await host.ask(name)
        seen.turns.clear()  # who was asked first had the seats to itself for a moment
        seen.waits.clear()
        feeding = asyncio.create_task(feed())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(_SAMPLE_S)
            seen.mib.append(await asyncio.to_thread(_look, host, seen))
        feeding.cancel()
        for name in host.names:  # who waits still has waited that long
            seen.waits[name].append(time.monotonic() - asked[name])
    return seen


def _look(host: Host, seen: Seen) -> float:
    found = host.command_lines()
    seen.lines.append(len(found))
    total = 0.0
    for pid in itertools.chain.from_iterable(found.values()):
        with contextlib.suppress(OSError, StopIteration):
            total += resident_mib(pid)
    return total


async def latencies(folder: Path, samples: int) -> tuple[list[float], list[float]]:
    """Milliseconds from a message to its request at the model: warm, and with the CLI parked before."""
    host = Host(folder, 2, 1)
    [name] = host.names
    warm, cold = [], []
    async with host.running():
        await _one(host, name)
        warm.extend([await _one(host, name) for _ in range(samples)])
        for _ in range(samples):
            await host.world.broker.direct(name, "park", after=1_000_000)
            async with asyncio.timeout(DEADLINE_S):
                while host.command_lines():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            cold.append(await _one(host, name))
    return warm, cold


async def _one(host: Host, name: AgentName) -> float:
    before = len(host.log.after(0))
    begun = time.time()
    await host.ask(name)
    async with asyncio.timeout(DEADLINE_S):
        while len(host.log.after(0)) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        taken = (float(host.log.after(0)[before]["at"]) - begun) * 1000
        while host.world.broker.has_live_turn(name):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return taken


def measure(seconds: float = SECONDS, samples: int = SAMPLES) -> list[Figure]:
    """All figures; prints the turns of each agent on standard error."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="hive-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "one").mkdir()
        (folder / "many").mkdir()
        baseline = bare.measure(samples)
        warm, cold = asyncio.run(latencies(folder / "one", samples))
        seen = asyncio.run(busy(folder / "many", count=AGENTS, cap=CAP, seconds=seconds))
    counts = [float(seen.turns[f"agent-{number:02}"]) for number in range(AGENTS)]
    waits = [wait for several in seen.waits.values() for wait in several]
    sys.stderr.write(f"turns: {sorted(seen.turns.items())}\n")
    what = f"{AGENTS} agents, {CAP} seats, {seconds:.0f} s:"
    return [
        Figure("message → request, warm session", "ms", warm, "claude --print", baseline),
        Figure("message → request, parked session", "ms", cold, "claude --print", baseline),
        Figure(f"{what} turns of an agent", "", counts),
        Figure(f"{what} fairness (Jain)", "%", [100 * jain(counts)]),
        Figure(f"{what} wait for the next turn", "s", waits),
        Figure(f"{what} longest wait / median", "", [max(waits) / statistics.median(waits)]),
        Figure(f"{what} agents with a CLI at once", "", [float(count) for count in seen.lines]),
        Figure(f"{what} memory (PSS) of command lines, peak", "MiB", [max(seen.mib)]),
    ]


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS):
        show(figure)
