"""The life of a harness after its first hello: the parts, the tasks, and what the host's words change in
them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.buffer import Emit
from harness.compaction import NotesOnly, can_write, take_notes
from harness.config import Config, agent_environment, cli_environment
from harness.forward import Forwarder
from harness.link import Link, LinkError
from harness.notes import SYSTEM_PROMPT, NotesFile, NotesKeeper
from harness.outcomes import Verdict
from harness.policy.engine import Policy, Rules
from harness.programs import AgentPrograms, ProgramError
from harness.prompts import system_prompt
from harness.spec import AgentSpec
from harness.tools import Status, Tool, ToolContext, agent_tools, manager_tools
from harness.trees import TreeError, Trees
from harness.turn import Orders, TurnLoop
from harness.wire import Agents, Welcome

if TYPE_CHECKING:
    from harness.session import Session, Settings

log = logging.getLogger(__name__)

_TREES_S = 20.0
# what the CLI gets to write its record to the end; whatever is left dies with the container
_CLOSE_S = 1.0


async def live(config: Config, boot: str, welcome: Welcome) -> None:
    """Runs until SIGTERM or SIGINT, then ends the turn that is going on and returns. A bug raises."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="harness: %(levelname)s %(name)s: %(message)s"
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    life = Life(config, boot, welcome)
    work = asyncio.create_task(life.work(), name="work")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        stopping.cancel()
        await work  # raises: it never ends by itself
    await life.stop()
    work.cancel()
    await asyncio.wait({work})


class Life:
    """All parts of one harness; also what the turn loop asks between turns (`harness.turn.Between`)."""

    def __init__(self, config: Config, boot: str, welcome: Welcome) -> None:
        self._config = config
        self._welcome = welcome
        self._spec = AgentSpec.model_validate(welcome.spec)
        self._orders = Orders()
        self._link = Link(config.agent_socket, boot, welcome, on_welcome=self._orders.heard_welcome)
        self._programs = AgentPrograms(agent_environment(welcome.agent, config))
        self._trees = Trees(welcome.agent, config.config, config.agents, self._programs, self._link.bundle)
        self._policy = Policy(self._spec.rules(welcome.role, config), self._resolve)
        self._forwarder = Forwarder(config.model_socket, self._heard_model)
        self._notes = NotesKeeper(NotesFile(self._programs))
        self._no_tools = Policy(Rules(), self._resolve)
        self._narrowed: NotesOnly | None = None
        self._session: Session | None = None
        self._second: Session | None = None
        self._turns: TurnLoop | None = None

    async def work(self) -> None:
        """Serves the model's port, prepares trees and SDK side by side, then takes turns and orders. Never
        returns."""
        trees = asyncio.create_task(self.refresh_trees(), name="trees")
        try:
            async with self._forwarder.serving(self._config.model_port):
                await self._serve(trees)
        finally:
            trees.cancel()
            await self._link.close()

    async def _serve(self, trees: asyncio.Task[None]) -> None:
        await asyncio.to_thread(importlib.import_module, "harness.session")
        self._session = self._new_session()
        await asyncio.wait({trees}, timeout=_TREES_S)
        self._turns = TurnLoop(
            self._link,
            self._session,
            self,
            self._orders,
            agent=self._welcome.agent,
            idle_park_s=self._config.idle_park_s,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._turns.run(), name="turns")
            group.create_task(self._obey(self._turns), name="directives")

    async def stop(self) -> None:
        """Ends what is going on, within about four seconds."""
        if self._turns is not None:
            await self._turns.stop()
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._session.close()

    # between turns

    async def take_model(self, model: str) -> None:
        """The model of the turn that begins."""
        self._welcome = self._welcome.model_copy(update={"model": model})
        await self._apply()

    async def take_session(self, session_id: str) -> None:
        """A fresh conversation."""
        self._welcome = self._welcome.model_copy(update={"session_id": session_id, "resume": False})
        await self._apply()

    async def take_welcome(self, welcome: Welcome) -> None:
        """What the host approves now; an unreadable spec leaves all as it was."""
        try:
            spec = AgentSpec.model_validate(welcome.spec)
        except ValueError as error:
            log.error("the approved spec cannot be read, the one before stays in force: %s", error)  # noqa: TRY400
            return
        self._welcome, self._spec = welcome, spec
        self._policy = Policy(spec.rules(welcome.role, self._config), self._resolve)
        await self._apply()

    async def refresh_trees(self) -> None:
        """Brings the clones up to date; one that cannot be is logged and left as it is."""
        names = [self._welcome.agent]
        if self._welcome.role == "manager":
            try:
                names += [
                    one.name for one in (await self._link.get("agents", Agents, deadline_s=None)).agents
                ]
            except LinkError as error:
                log.warning("asking for the agents: %s", error)
            names += self._welcome.hive_drafts
        for name in dict.fromkeys(names):
            try:
                log.info("%s", await self._trees.refresh(name))
            except (LinkError, ProgramError, TreeError, OSError) as error:
                log.warning("the repository of %s: %s", name, error)

    def compact_at(self) -> float:
        """Share of the context window at which the conversation is summed up."""
        return self._spec.compact.atTokens

    def has_conversation(self) -> bool:
        """Whether anything was said in this session."""
        return self._session is not None and self._session.settings.resume

    async def take_notes(self, emit: Emit) -> None:
        """A short turn before the conversation is summed up."""
        assert self._session is not None, "the turn loop has one"
        await take_notes(self._session, self._notes_only, emit, max_bytes=self._spec.notes.maxBytes)

    @contextlib.contextmanager
    def _notes_only(self, enough: Callable[[], Awaitable[None]]) -> Iterator[bool]:
        self._narrowed = NotesOnly(self._policy, enough)
        try:
            yield can_write(self._spec.built_in_tools())
        finally:
            self._narrowed = None

    async def notes_are_due(self) -> bool:
        """Whether the notes outgrow their limit; asked once after each turn."""
        return await self._notes.due(self._spec.notes.maxBytes)

    async def rewrite_notes(self, emit: Emit) -> Verdict:
        """One try, in a second session that is gone afterwards."""
        second = self._second = self._second_session()
        try:
            return await self._notes.rewrite(second, emit, self._spec.notes.maxBytes)
        finally:
            self._second = None

    async def interrupt(self) -> None:
        """Ends what goes on beside the conversation."""
        if self._second is not None:
            await self._second.interrupt()

    # parts

    def _settings(self) -> Settings:
        from harness.session import Settings

        welcome = self._welcome
        return Settings(
            session_id=welcome.session_id,
            resume=welcome.resume,
            model=welcome.model,
            system_prompt=system_prompt(welcome),
            tools=self._spec.built_in_tools(),
            servers=self._spec.mcpServers,
        )

    def _new_session(self) -> Session:
        from harness.session import Session

        return Session(
            self._settings(),
            cli=self._config.cli,
            environment=cli_environment(self._welcome.agent, self._config),
            policy=lambda: self._narrowed or self._policy,
            tools=self._tools,
            sweep=self._programs.kill_all,
            patience=self._config.patience,
            set_aside=self._set_aside,
        )

    async def _set_aside(self, session_id: str) -> None:
        """Renames what the CLI wrote of a conversation that it can neither read nor write on."""
        folder = f"{self._config.home}/.claude/projects"
        name = f"{session_id}.jsonl"
        command = ["find", folder, "-mindepth", "2", "-maxdepth", "2", "-name", name]
        with contextlib.suppress(ProgramError):
            await self._programs.run([*command, "-exec", "mv", "-f", "-T", "--", "{}", "{}.broken", ";"])

    def _second_session(self) -> Session:
        """For one question beside the conversation: no tools, no memory, no thinking, a cheap model. The
        first one's CLI is closed meanwhile."""
        from harness.session import Session, Settings

        return Session(
            Settings(
                session_id=str(uuid.uuid4()),
                resume=False,
                model=self._spec.cheap_model(self._welcome.model),
                system_prompt=SYSTEM_PROMPT,
                tools=(),
                kept=False,
            ),
            cli=self._config.cli,
            environment={**cli_environment(self._welcome.agent, self._config), "MAX_THINKING_TOKENS": "0"},
            policy=lambda: self._no_tools,
            tools=tuple,
            sweep=self._programs.kill_all,
            patience=self._config.patience,
        )

    async def _apply(self) -> None:
        if self._session is not None:
            await self._session.apply(self._settings())

    def _tools(self) -> Sequence[Tool]:
        context = ToolContext(self._link, self._trees, self._status)
        return agent_tools(context) + (manager_tools(context) if self._welcome.role == "manager" else ())

    def _status(self) -> Status:
        welcome = self._welcome
        return Status(
            agent=welcome.agent,
            role=welcome.role,
            model=welcome.model,
            generation=welcome.generation,
            session_id=welcome.session_id,
            peers=tuple(welcome.peers),
            context=self._session.context if self._session is not None else None,
            bash_allow=tuple(self._spec.bash.allow),
        )

    def _heard_model(self) -> None:
        if self._session is not None:
            self._session.sign_of_life()

    async def _resolve(self, paths: Sequence[str]) -> Sequence[str]:
        """All links in paths followed, with the agent's own eyes: container root may not look into its
        folders."""
        found = await self._programs.run(
            ["realpath", "-m", "-z", "--", *paths], deadline_s=3.0, output_max=1 << 20
        )
        return found.rstrip(b"\0").decode().split("\0")

    async def _obey(self, turns: TurnLoop) -> None:
        """Waits for the host's orders beside the turns; one that was taken is not asked for again."""
        after = self._welcome.directives_after
        while True:
            try:
                orders = await self._link.directives(after)
            except LinkError as error:
                log.warning("asking for orders: %s", error)
                await asyncio.sleep(1.0)
                continue
            for order in orders.directives:
                after = max(after, order.id)
                await turns.obey(order)
