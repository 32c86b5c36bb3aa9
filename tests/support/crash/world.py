"""One hive whose hived is a process of its own: kept running as systemd keeps it, with harnesses that outlive
it, an operator who asks again, and a look at when all is at rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from reconciler.control import models as api
from reconciler.control.client import ControlClient
from reconciler.errors import OperatorError, PermanentError, TemporaryError
from reconciler.model.activation import needs_restart
from reconciler.model.names import AgentName
from tests.fakes.stored import FileContainers, FileNix
from tests.support.crash.forks import Forks
from tests.support.crash.harness import Harness
from tests.support.crash.points import Fault, reached

T = TypeVar("T")
LOOK_S = 0.005
SETTLE_S = 90.0  # a harness that was told to come again later waits as long as it was told
_UNFINISHED = "('examining', 'approved', 'building', 'activating')"


class World:
    """A hive in `directory`. `handled`: what harnesses have done, agent and message, in order."""

    def __init__(self, directory: Path, forks: Forks) -> None:
        self.directory = directory
        self.forks = forks
        self.containers: Any
        self.nix: Any
        self.containers, self.nix = self._effects()
        self.handled: list[tuple[AgentName, int]] = []
        self.harnesses: dict[AgentName, Harness] = {}
        self.mute: set[str] = set()
        self.starts = 0
        self.kills = 0
        self.hello_s = 20.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pidfd = -1
        self._up = asyncio.Event()
        self._keeping: list[asyncio.Task[None]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, directory: Path, forks: Forks, faults: Sequence[Fault] = (), *, hello_s: float = 20.0
    ) -> AsyncIterator[Self]:
        """A hive whose hived runs with these faults, whenever it comes to them; killed in the end."""
        world = cls(directory, forks)
        world.hello_s = hello_s
        world._keeping = [
            asyncio.create_task(world._keep_hived(faults)),
            asyncio.create_task(world._keep_harnesses()),
        ]
        try:
            await world._guarded(world.up())
            yield world
        finally:
            await world.end()

    async def end(self) -> None:
        """Everything dies at once."""
        keeping, self._keeping = self._keeping, []
        tasks = [*keeping, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    # ------------------------------------------------------------------------------------------- outside
    def _effects(self) -> tuple[Any, Any]:
        """Containers and Nix, as the test sees them."""
        return FileContainers(self.directory / "fakes"), FileNix(self.directory / "fakes")

    def outside(self) -> dict[str, Any]:
        """What there is beside the hive's own files: every start, what runs, what is pinned."""
        with self.containers.kept.world():
            starts = Counter((str(start.spec.name), start.spec.toplevel) for start in self.containers.history)
            found: dict[str, Any] = {
                "starts": sorted(f"{count} x {start}" for start, count in starts.items()),
                "containers": sorted(
                    (str(name), start.spec.toplevel, start.status.phase, start.status.frozen)
                    for name, start in self.containers._last.items()
                ),
            }
        found["profiles"] = {str(name): paths for name, paths in sorted(self.pins()[0].items())}
        return found

    def pins(self) -> tuple[dict[AgentName, dict[int, str]], list[str]]:
        """Generations that are pinned, and builds that are held."""
        with self.nix.kept.world():
            return {name: dict(paths) for name, paths in self.nix.profiles.items()}, list(self.nix.held)

    # ------------------------------------------------------------------------------------------- hived
    def kill(self) -> None:
        """Kill -9."""
        self.kills += 1
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def up(self) -> None:
        """Until hived answers."""
        await self._up.wait()

    async def _keep_hived(self, faults: Sequence[Fault]) -> None:
        starts_max = len(faults) + 2
        while True:
            self.starts += 1
            assert self.starts <= starts_max + self.kills, f"hived does not stay up\n{self.log()}"
            pid = self.forks.fork(self.directory, faults, self.hello_s)
            try:
                self._pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                ended = asyncio.ensure_future(_readable(self._pidfd))
                answers = asyncio.ensure_future(self._until_it_answers())
                try:
                    await asyncio.wait({ended, answers}, return_when=asyncio.FIRST_COMPLETED)
                    if answers.done():
                        self._up.set()
                    await ended
                finally:
                    self._up.clear()
                    for task in (ended, answers):
                        task.cancel()
                    await asyncio.gather(ended, answers, return_exceptions=True)
            finally:
                self.kill()
                os.close(self._pidfd)

    async def _until_it_answers(self) -> None:
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
                link.connect(str(self.directory / "run/control.sock"))
                return
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------------------------------------- harnesses
    async def _keep_harnesses(self) -> None:
        seen = -1
        while True:
            if seen != (seen := self.containers.kept.stamp()):
                with self.containers.kept.world():
                    starts = {
                        str(start.status.invocation): start
                        for start in self.containers._last.values()
                        if start.status.phase == "running" and start.spec.toplevel not in self.mute
                    }
                for gone in self._tasks.keys() - starts:
                    task = self._tasks.pop(gone)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                for invocation in starts.keys() - self._tasks:
                    start = starts[invocation]
                    agents = self.directory / "run/agents"
                    harness = Harness(start, agents, lambda *told: self.handled.append(told))
                    self.harnesses[start.spec.name] = harness
                    self._tasks[invocation] = asyncio.create_task(harness.run())
            for task in self._tasks.values():
                if task.done():
                    task.result()
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------------------------------------- the operator
    async def operator(self, ask: Callable[[ControlClient], Awaitable[T]]) -> T:
        """A call, made again when hived went away before it answered: it must be one that may be repeated."""
        return await self._guarded(self._ask(ask))

    async def _ask(self, ask: Callable[[ControlClient], Awaitable[T]]) -> T:
        while True:
            await self.up()
            async with ControlClient(self.directory / "run/control.sock") as client:
                try:
                    return await ask(client)
                except TemporaryError:
                    await asyncio.sleep(LOOK_S)
                except PermanentError as error:
                    error.add_note(self.log())
                    raise

    async def acting(self, acts: Awaitable[T]) -> T:
        """Something a harness does, while the world is kept."""
        return await self._guarded(acts)

    async def _guarded(self, work: Awaitable[T]) -> T:
        """Work that ends with an error when what keeps the world does."""
        task = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(SETTLE_S):
                await asyncio.wait({task, *self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise AssertionError(f"it does not come to an end\n{self.log()}") from None
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for kept in self._keeping:
            if kept.done() and (error := kept.exception()) is not None:
                error.add_note(self.log())
                raise error
        return task.result()

    # ------------------------------------------------------------------------------------------- rest
    async def at_rest(self, done: Callable[[sqlite3.Connection], bool] = lambda db: True) -> None:
        """Until nothing is left to do, for anybody, and `done` says that it was what was wanted."""
        await self._guarded(self._rest(done))

    async def until(self, done: Callable[[sqlite3.Connection], bool]) -> None:
        """Until the rows say so."""
        await self._guarded(self._until(done))

    async def _until(self, done: Callable[[sqlite3.Connection], bool]) -> None:
        while True:
            with contextlib.closing(self.rows()) as db:
                if done(db):
                    return
            await asyncio.sleep(LOOK_S)

    async def _rest(self, done: Callable[[sqlite3.Connection], bool]) -> None:
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(LOOK_S)
            resting = self._rows_rest(done)
            if resting:
                status = await self._ask(lambda client: client.agents())
                resting = all(agent.state in {"idle", "stopped", "held", "parked"} for agent in status.items)
            if resting:
                plans = await self._ask(lambda client: client.plans())
                resting = not any(plan.steps for plan in plans.items)
            quiet = quiet + 1 if resting else 0

    def _rows_rest(self, done: Callable[[sqlite3.Connection], bool]) -> bool:
        if not self._up.is_set():
            return False
        with contextlib.closing(self.rows()) as db:
            (busy,) = db.execute(
                "SELECT (SELECT COUNT(*) FROM outbox) + (SELECT COUNT(*) FROM turns WHERE state = 'open')"
                " + (SELECT COUNT(*) FROM leases WHERE state = 'open')"
                f" + (SELECT COUNT(*) FROM proposals WHERE state IN {_UNFINISHED})"
                " + (SELECT COUNT(*) FROM messages m JOIN agents a ON a.name = m.recipient"
                "    WHERE m.state = 'queued' AND a.desired = 'running'"
                "    AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.scope IN (a.name, '*')))"
            ).fetchone()
            return busy == 0 and self._as_wanted(db) and self.ended_are_cleared() and done(db)

    def _as_wanted(self, db: sqlite3.Connection) -> bool:
        """Whether what runs is what should, from a root of its generation, or of one that differs in
        nothing a container is made of."""
        wanted = dict(
            db.execute(
                "SELECT a.name, g.spec FROM agents a JOIN generations g "
                "ON g.agent = a.name AND g.number = a.generation WHERE a.desired = 'running'"
            )
        )
        roots = self.roots()
        specs = {(agent, path): spec for agent, path, spec in db.execute(
            "SELECT agent, store_path, spec FROM generations"
        )}  # fmt: skip
        return roots.keys() == wanted.keys() and not any(
            needs_restart(json.loads(specs[name, root]), json.loads(wanted[name]))
            for name, root in roots.items()
        )

    def roots(self) -> dict[AgentName, str]:
        """Agents whose containers run, and from which root."""
        found: dict[AgentName, str] = self.containers.running()
        return found

    def ended_are_cleared(self) -> bool:
        """Whether there is no container but those that run."""
        with self.containers.kept.world():
            return all(start.status.phase == "running" for start in self.containers._last.values())

    def rows(self, name: str = "state.db") -> sqlite3.Connection:
        """A look at a database."""
        return sqlite3.connect(f"file:{self.directory}/state/{name}?mode=ro", uri=True)

    # ------------------------------------------------------------------------------------------- faults
    def arm(self) -> None:
        """From now on points count."""
        (self.directory / "armed").touch()

    def reached(self) -> list[str]:
        """The points that were reached, in order."""
        return reached(self.directory)

    def log(self) -> str:
        """The end of what hived said."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "hived.log").read_text(errors="replace")[-6000:]
        return "hived said nothing"


@contextlib.contextmanager
def done_before() -> Iterator[None]:
    """A request whose answer got lost may have taken effect: then its repeat is refused."""
    try:
        yield
    except OperatorError as error:
        if error.code != "conflict":
            raise


async def approve(world: World, number: int) -> None:
    """Wait until a proposal can be decided, and say yes."""
    while True:
        shown = await world.operator(lambda client: client.proposal(number))
        if shown.state == "pending":
            request = api.Approve(digest=shown.digest or "")
            with done_before():
                await world.operator(partial(ControlClient.approve, number=number, request=request))
        elif shown.state != "examining":
            assert shown.state not in {"invalid", "denied", "cancelled"}, shown
            return
        await asyncio.sleep(LOOK_S)


async def new_agent(world: World, name: str, **fields: Any) -> int:
    """Ask for a new agent, once, whatever happens meanwhile; its proposal."""
    while True:
        found = await world.operator(lambda client: client.proposals(agent=name))
        for item in found.items:
            if item.state != "invalid":
                return item.id
        request = api.NewAgent(name=name, **fields)
        with done_before():
            return (await world.operator(partial(ControlClient.new_agent, request=request))).id


def copy_world(source: Path, target: Path) -> None:
    """A hive as another one was left by a sudden death."""
    shutil.copytree(source, target, symlinks=True, ignore=_sockets, copy_function=shutil.copy2)
    _own(source, target)


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_socket()]


def _own(source: Path, target: Path) -> None:
    for folder, folders, files in os.walk(target):
        for name in (*folders, *files):
            path = Path(folder, name)
            found = (source / path.relative_to(target)).lstat()
            if found.st_uid or found.st_gid:
                os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
