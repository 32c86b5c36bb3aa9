"""The warm session: one long-lived Claude Code, driven through claude-agent-sdk, one `run` per turn.

The CLI is started at the first turn, kept while the agent is busy, closed when it idles, and resumed by its
session id, which the host chose. This module imports the SDK, which takes half a second: import it late. It
holds no policy: the decision on tool calls, the tools and the texts are given to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ClaudeSDKError,
    HookContext,
    HookInput,
    HookJSONOutput,
    HookMatcher,
    McpServerConfig,
    SdkMcpTool,
    create_sdk_mcp_server,
)
from claude_agent_sdk.types import McpStdioServerConfig

from harness.buffer import Emit
from harness.compaction import Decider
from harness.events import Listener
from harness.outcomes import Facts
from harness.servers import Servers
from harness.spec import McpServer
from harness.tools import Tool
from harness.watchdog import Patience, stall

log = logging.getLogger(__name__)

# an agent's commits are its own; the operator reads them without the vendor's trailers
_SETTINGS = json.dumps({"attribution": {"commit": "", "pr": ""}})
_MESSAGE_MAX_BYTES = 32 * 1024 * 1024
_HOOK_S = 5.0
_INTERRUPT_S = 3.0
_KILL_AFTER_S = 5.0
_CLOSE_S = 25.0
_TICK_S = 1.0


LOST = (
    "hyperhive: your earlier conversation could not be resumed and begins anew. What you noted is in "
    "/state/notes.md.\n\n"
)


async def _nothing_aside(_session_id: str) -> None:
    """For sessions that are not written down."""


class SessionError(Exception):
    """The CLI could not be started; the message says how it failed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session is made of. A change of any field but `model` and `resume` needs a new CLI.

    `resume` says whether the session id exists already; `servers` are further MCP servers as the CLI's own
    configuration names them; `kept`: the conversation is written down, so that it can be resumed.
    """

    session_id: str
    resume: bool
    model: str
    system_prompt: str
    tools: tuple[str, ...]
    servers: Mapping[str, McpServer] = field(default_factory=dict)
    kept: bool = True

    def needs_new_cli(self, other: Settings) -> bool:
        return replace(self, model="", resume=False) != replace(other, model="", resume=False)


class Sweeper(Protocol):
    """Ends every process that a CLI may have left."""

    def __call__(self) -> Awaitable[None]: ...


@dataclass(slots=True)
class _Turn:
    """The turn that is going on. `kill_at`: when an interrupt has not worked by then, the CLI is killed."""

    listener: Listener
    over: asyncio.Event = field(default_factory=asyncio.Event)
    gone: str = ""
    cancelled: bool = False
    stalled: str = ""
    kill_at: float | None = None

    @property
    def must_be_swept(self) -> bool:
        """Whether something that the turn started may go on behind it: it was broken off while a tool ran, or
        by nobody of ours."""
        result = self.listener.result
        aborted = result is not None and (result.terminal_reason or "").startswith("aborted")
        in_tool = result is not None and result.terminal_reason == "aborted_tools"
        return bool(self.stalled) or in_tool or (aborted and not self.cancelled)

    def facts(self) -> Facts:
        return self.listener.facts(gone=self.gone, cancelled=self.cancelled, stalled=self.stalled)


class Session:
    """One agent's session. `run`, `apply` and `close` are called by one task at a time; `interrupt` by
    any."""

    def __init__(
        self,
        settings: Settings,
        *,
        cli: Path,
        environment: Mapping[str, str],
        policy: Callable[[], Decider],
        tools: Callable[[], Sequence[Tool]],
        sweep: Sweeper,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        set_aside: Callable[[str], Awaitable[None]] = _nothing_aside,
    ) -> None:
        self.settings = settings
        self.context: tuple[int, int] | None = None
        self._cli = cli
        self._environment = dict(environment)
        self._policy = policy
        self._tools = tools
        self._sweep = sweep
        self._patience = patience
        self._clock = clock
        self._client: ClaudeSDKClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._client_model = ""
        self._turn: _Turn | None = None
        self._servers = Servers()
        self._stderr: list[str] = []
        self._set_aside = set_aside
        self._lost = False

    @property
    def is_open(self) -> bool:
        """Whether a CLI is running."""
        return self._client is not None

    def sign_of_life(self) -> None:
        """Something moved that the SDK does not show: bytes from the model."""
        if self._turn is not None:
            self._turn.listener.moved()

    async def apply(self, settings: Settings) -> None:
        """Takes new settings; the CLI is closed if it cannot take them as it runs. Only between turns."""
        if self.settings.needs_new_cli(settings):
            await self.close()
            self.context = None if settings.session_id != self.settings.session_id else self.context
        elif self.settings.resume:
            settings = replace(settings, resume=True)
        self.settings = settings

    async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts:
        """One turn: sends the prompt and waits for its result. `command`: a command of the CLI itself, like
        `/compact`.

        It always comes to an end: an interrupt that does not work, or silence beyond the stall limit, kills
        the CLI.
        """
        prompt_id = str(uuid.uuid4())
        turn = _Turn(Listener(emit, prompt_id, self._clock, self.context))
        self._turn = turn
        try:
            try:
                client = await self._opened()
            except SessionError as error:
                turn.gone = str(error)
                return turn.facts()
            if self._lost:
                self._lost = False
                emit("note", {"text": "the conversation could not be resumed: it begins anew"})
                prompt = prompt if command else LOST + prompt
            if not turn.cancelled:
                await self._tell_servers(client, turn, begins=True)
                await self._send(client, prompt, prompt_id, command)
                await self._watch(turn)
                await self._tell_servers(client, turn, begins=False)
            if turn.listener.used_tokens and turn.listener.window_tokens:
                self.context = (turn.listener.used_tokens, turn.listener.window_tokens)
            return turn.facts()
        finally:
            self._turn = None
            if turn.gone or turn.must_be_swept:
                await self.close()

    async def _tell_servers(self, client: ClaudeSDKClient, turn: _Turn, *, begins: bool) -> None:
        """The states of further MCP servers into the transcript, where they have changed."""
        names = sorted(self.settings.servers)
        if not names or turn.gone or turn.cancelled:
            return
        if begins:
            await self._servers.revive(client, names)
        found = await self._servers.news(client, names)
        if found is not None:
            turn.listener.emit("mcp", {"servers": found})

    async def interrupt(self) -> None:
        """Cancels the turn that is going on, if there is one; `run` then returns soon."""
        turn = self._turn
        if turn is None or turn.over.is_set():
            return
        turn.cancelled = True
        await self._stop(turn)

    async def close(self) -> None:
        """Ends the CLI and everything it started. The session stays resumable."""
        client, reader = self._client, self._reader
        self._client = self._reader = None
        if client is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await client.disconnect()
            except Exception as error:  # noqa: BLE001 - the sweep below ends it in any case
                log.warning("closing the CLI: %s", error)
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        if client is not None:
            await self._sweep()

    async def _opened(self) -> ClaudeSDKClient:
        """The running CLI with the model of the settings; started if there is none."""
        if self._reader is not None and self._reader.done():
            await self.close()
        if self._client is not None:
            if self._client_model != self.settings.model:
                try:
                    await self._client.set_model(self.settings.model)
                except Exception as error:  # the SDK raises plain Exception for refusals and time-outs
                    raise SessionError(f"the model could not be set: {error}") from error
                self._client_model = self.settings.model
            return self._client
        # The host's word on whether the session exists can be outdated by a crash: the other way is the
        # second try. What a power cut left of a conversation can be neither resumed nor begun anew: the third
        # puts it aside.
        problems = []
        for resume, aside in (
            (self.settings.resume, False),
            (not self.settings.resume, False),
            (False, True),
        ):
            try:
                if aside:
                    await self._set_aside(self.settings.session_id)
                client = await self._start(resume)
            except SessionError as error:
                problems.append(str(error))
                continue
            self._lost = aside or (self.settings.resume and not resume)
            self.settings = replace(self.settings, resume=True)
            self._client = client
            self._servers.forget()
            self._client_model = self.settings.model
            self._reader = asyncio.create_task(self._read(client), name="session-reader")
            return client
        raise SessionError("the CLI did not start: " + "; ".join(problems))

    async def _start(self, resume: bool) -> ClaudeSDKClient:
        self._stderr.clear()
        client = ClaudeSDKClient(self._options(resume))
        try:
            async with asyncio.timeout(90):
                await client.connect()
        except Exception as error:
            with contextlib.suppress(Exception):
                await client.disconnect()
            await self._sweep()
            last = " / ".join(self._stderr[-3:])
            raise SessionError(
                f"{'resume' if resume else 'new session'}: {error} {last}".strip()[:1000]
            ) from error
        return client

    def _options(self, resume: bool) -> ClaudeAgentOptions:
        settings = self.settings
        own = [
            SdkMcpTool(tool.name, tool.description, dict(tool.schema), tool.call) for tool in self._tools()
        ]
        servers: dict[str, McpServerConfig] = {}
        if own:
            servers["hyperhive"] = create_sdk_mcp_server("hyperhive", tools=own)
        for name, config in settings.servers.items():
            servers[name] = McpStdioServerConfig(
                type="stdio", command=config.command, args=list(config.args), env=dict(config.env)
            )
        return ClaudeAgentOptions(
            cli_path=str(self._cli),  # a wrapper: `user` would keep group 0, `cwd` would be entered as root
            env=self._environment,
            model=settings.model,
            system_prompt=settings.system_prompt,
            tools=list(settings.tools),
            allowed_tools=[],
            permission_mode="dontAsk",
            setting_sources=[],
            strict_mcp_config=True,
            mcp_servers=servers,
            hooks={"PreToolUse": [HookMatcher(hooks=[self._decide], timeout=_HOOK_S, on_failure="block")]},
            # without this, a resumed session keeps the system prompt it began with
            extra_args={
                "system-prompt-snapshot": "off",
                **({} if settings.kept else {"no-session-persistence": None}),
            },
            max_buffer_size=_MESSAGE_MAX_BYTES,
            stderr=self._hear_stderr,
            settings=_SETTINGS,
            resume=settings.session_id if resume else None,
            session_id=None if resume else settings.session_id,
        )

    async def _decide(
        self, call: HookInput, _tool_use_id: str | None, _context: HookContext
    ) -> HookJSONOutput:
        """The PreToolUse hook: an explicit answer for every call. If it raised or hung, the CLI would block
        the call."""
        turn = self._turn
        told: Mapping[str, Any] = call
        name, arguments = told.get("tool_name"), told.get("tool_input")
        decision = await self._policy().decide(name, arguments, str(told.get("cwd") or "/state"))
        if turn is not None:
            turn.listener.sign()
            if not decision.allowed:
                data = {"tool": str(name), "reason": decision.reason}
                if isinstance(arguments, Mapping) and "command" in arguments:
                    data["command"] = str(arguments["command"])
                turn.listener.emit("policy_refusal", data)
        return {
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "allow" if decision.allowed else "deny",
                "permissionDecisionReason": decision.reason,
            }
        }

    async def _send(self, client: ClaudeSDKClient, prompt: str, prompt_id: str, command: bool) -> None:
        async def one() -> AsyncIterator[dict[str, Any]]:
            yield {
                "type": "user",
                "message": {"role": "user", "content": prompt},
                "parent_tool_use_id": None,
                "uuid": prompt_id,
                # as written: no @path is read and no slash command run
                "client_composed": not command,
            }

        try:
            await client.query(one())
        except (ClaudeSDKError, OSError) as error:
            self._gone(f"the prompt could not be sent: {error}")

    async def _read(self, client: ClaudeSDKClient) -> None:
        """Hands every message to the turn that is going on; ends with the CLI."""
        reason = "the CLI ended"
        try:
            async for message in client.receive_messages():
                turn = self._turn
                if turn is not None and turn.listener.take(message):
                    turn.over.set()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever ends the stream ends the CLI for us
            reason = f"the CLI ended: {error}"
        self._gone(reason)

    def _gone(self, reason: str) -> None:
        turn = self._turn
        if turn is not None and not turn.over.is_set():
            turn.gone = " / ".join([reason, *self._stderr[-2:]])[:1000]
            turn.over.set()
        elif self._client is not None:
            log.warning("between turns: %s", reason)  # the next turn starts another one

    async def _watch(self, turn: _Turn) -> None:
        """Waits for the turn's end; interrupts a silent CLI, kills one that does not obey."""
        while not turn.over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_TICK_S, self._patience.shortest_s / 4)):
                    await turn.over.wait()
                return
            now = self._clock()
            if turn.kill_at is not None:
                if now >= turn.kill_at:
                    turn.kill_at = now + _KILL_AFTER_S
                    turn.gone = turn.gone or "killed, because it did not stop when told to"
                    await self._sweep()
            elif (why := self._stall_of(turn.listener, now)) is not None:
                turn.stalled = why
                await self._stop(turn)

    def _stall_of(self, heard: Listener, now: float) -> str | None:
        return stall(heard.waiting, now - heard.last_sign, self._patience, heard.calls)

    async def _stop(self, turn: _Turn) -> None:
        if turn.kill_at is not None:
            return  # it is being stopped already
        turn.kill_at = self._clock() + _KILL_AFTER_S
        client = self._client
        if client is None:
            return
        try:
            async with asyncio.timeout(_INTERRUPT_S):
                await client.interrupt()
        except Exception as error:  # noqa: BLE001 - the watch kills it at `kill_at`
            log.warning("interrupting the CLI: %s", error)

    def _hear_stderr(self, line: str) -> None:
        self._stderr.append(line[:500])
        del self._stderr[:-20]
        if self._turn is not None:
            self._turn.listener.stderr(line)
