"""The decision on one tool call. It never raises and never hangs: whatever goes wrong is a refusal.

Called by the session's PreToolUse hook for every call of the model, built-in tools and MCP tools alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.policy.commands import Command, Unreadable, simple_commands
from harness.policy.files import FILE_TOOLS, Refused, Resolve, check
from harness.policy.launchers import launching_words
from harness.policy.patterns import Pattern

OWN_PREFIX = "mcp__hyperhive__"
_DECIDE_S = 4.0  # below the hook's own limit of 5 s, so that the model gets a reason


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed, or refused with a reason that the model can use."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the approved spec says about tools: patterns as written, tool names, folders of the work tree,
    and the allowed tools of further MCP servers by their full names."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    mcp_tools: frozenset[str] = frozenset()


class Policy:
    """Decides tool calls under fixed rules."""

    def __init__(self, rules: Rules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._allow = tuple(Pattern.parse(text) for text in rules.allow)
        self._deny = tuple(Pattern.parse(text) for text in rules.deny)

    async def decide(self, tool: object, arguments: object, cwd: str) -> Decision:
        """The decision on a call, as the CLI announces it; `cwd` is where relative paths begin."""
        try:
            async with asyncio.timeout(_DECIDE_S):
                return await self._decide(tool, arguments, cwd)
        except Exception as error:  # noqa: BLE001 - fail closed: any trouble at all is a refusal
            return Decision(False, f"refused: the policy could not decide ({type(error).__name__})")

    async def _decide(self, tool: object, arguments: object, cwd: str) -> Decision:
        if not isinstance(tool, str) or not isinstance(arguments, Mapping):
            return Decision(False, "refused: the call has no readable name or arguments")
        if tool == "Bash":
            return self.decide_command(arguments.get("command"))
        if tool.startswith(OWN_PREFIX):
            return Decision(True, "a tool of the hive")
        if tool in self._rules.mcp_tools:
            return Decision(True, "an MCP tool that the spec allows")
        if tool in FILE_TOOLS and tool in self._rules.tools:
            return await self._decide_file(tool, arguments, cwd)
        return Decision(False, f"refused: the tool {tool[:100]} is not in this agent's tools.allow")

    async def _decide_file(self, tool: str, arguments: Mapping[str, Any], cwd: str) -> Decision:
        try:
            await check(tool, arguments, cwd, self._rules.roots, self._resolve)
        except Refused as why:
            return Decision(False, f"refused: {why}")
        return Decision(True, "inside the work tree")

    def decide_command(self, text: object) -> Decision:
        """The decision on a shell text: every simple command of it must be allowed."""
        if not self._allow:
            return Decision(False, "refused: this agent has no shell (bash.allow is empty)")
        if not isinstance(text, str) or not text.strip():
            return Decision(False, "refused: the command is empty")
        try:
            commands = simple_commands(text)
        except Unreadable as why:
            return self._refusal(str(why))
        except RecursionError:
            return self._refusal("the command is nested too deeply")
        for command in commands:
            why_not = self._why_not(command)
            if why_not:
                return self._refusal(why_not)
        return Decision(True, "every part matches an allowed pattern")

    def _why_not(self, command: Command) -> str:
        """Why one simple command is not allowed; empty if it is."""
        words = command.words
        shown = " ".join(words)[:200]
        for pattern in self._deny:
            if pattern.denies(words):
                return f"{shown!r} matches the denied pattern {pattern.text!r}"
        matching = [pattern for pattern in self._allow if pattern.allows(words)]
        if not matching:
            return f"{shown!r} matches no allowed pattern"
        if "/" in words[0] and not any(pattern.words[0] == words[0] for pattern in matching):
            return f"{words[0][:100]!r} is a path: call programs by their name"
        launching = launching_words(words)
        if launching and not any(all(pattern.names(word) for word in launching) for pattern in matching):
            named = " ".join(launching)[:200]
            return f"{shown!r} can start any other program ({named!r}); a pattern must name that form itself"
        return ""

    def _refusal(self, why: str) -> Decision:
        allowed = ", ".join(self._rules.allow)[:1500] or "none"
        denied = f"; denied: {', '.join(self._rules.deny)[:500]}" if self._rules.deny else ""
        return Decision(False, f"refused: {why}. Allowed patterns: {allowed}{denied}")
