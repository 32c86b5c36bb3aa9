"""The decision on one tool call. It never raises and never hangs: whatever goes wrong is a refusal.

Called by the session's PreToolUse hook for every call of the model, built-in tools and MCP tools alike.
"""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.policy.commands import Command, Reading, Unreadable, cd_folder, read
from harness.policy.files import FILE_TOOLS, Refused, Resolve, check, check_place
from harness.policy.launching import commands_in, is_wrapper, launching
from harness.policy.patterns import Pattern
from harness.policy.words import Word
from harness.policy.writers import WRITERS, Unclear, Written, written

OWN_PREFIX = "mcp__hyperhive__"
_DECIDE_S = 4.0  # below the hook's own limit of 5 s, so that the model gets a reason
_THINK_S = 2.0  # of that, for the words alone: nothing else of the harness moves meanwhile
_PLACES_MAX = 256
_WRITING = frozenset({*WRITERS, "git"})
# What the shell's own flow is made of: it runs no program, and reads and writes nothing.
FLOW = frozenset({":", "true", "false", "break", "continue", "exit"})


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed, or refused with a reason that the model can use."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the approved spec says about tools: patterns as written, tool names, and the allowed tools of
    further MCP servers by their full names.

    `roots`: the folders of the file tools. `work_tree`: those of the shell, the same if there are none.
    `values`: variables of the shell whose values are fixed.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    mcp_tools: frozenset[str] = frozenset()
    work_tree: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """A path that a command opens, writes or goes to. `allowing`: patterns that may name it."""

    path: str
    what: str
    instead: str = ""
    allowing: tuple[Pattern, ...] = ()


class _Deadline:
    """Ends a decision that takes too long: a long text against many patterns."""

    def __init__(self) -> None:
        self._end = time.monotonic() + _THINK_S

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise Refused("deciding on it takes too long; do it in several calls")


class Policy:
    """Decides tool calls under fixed rules."""

    def __init__(self, rules: Rules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._allow = tuple(Pattern.parse(text) for text in rules.allow)
        self._deny = tuple(Pattern.parse(text) for text in rules.deny)
        self._tree = rules.work_tree or rules.roots

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
            return await self.decide_command(arguments.get("command"), cwd)
        if tool.startswith(OWN_PREFIX) and "__" not in tool.removeprefix(OWN_PREFIX):
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

    async def decide_command(self, text: object, cwd: str = "/state") -> Decision:
        """The decision on a shell text: every simple command of it must be allowed, and every file that it
        opens for itself must lie in the work tree."""
        if not self._allow:
            return Decision(False, "refused: this agent has no shell (bash.allow is empty)")
        if not isinstance(text, str) or not text.strip():
            return Decision(False, "refused: the command is empty")
        until = _Deadline()
        try:
            reading = read(text, cwd, self._rules.values)
            places = list(self._opened(reading))
            for command in dict.fromkeys(reading.commands):
                places += self._judge(command, until)
                _check_count(places, _PLACES_MAX * 16)  # before those that are the same are dropped
            await self._check(places)
        except (Unreadable, Refused, Unclear) as why:
            return self._refusal(str(why))
        except RecursionError:
            return self._refusal("the command is nested too deeply")
        return Decision(True, "every part matches an allowed pattern")

    # commands

    def _judge(self, command: Command, until: _Deadline) -> Iterable[_Place]:
        """Raises `Refused` unless a simple command is allowed; the places that it touches are still to be
        checked."""
        words = command.words
        shown = _shown(command)
        variants = list(commands_in(words)) if words else [words]
        for pattern in self._deny:
            if any(_denies(pattern, variant, command, until) for variant in variants):
                raise Refused(f"{shown!r} matches the denied pattern {pattern.text!r}")
        marks = {"background": command.background, "expanding": command.expanding}
        matching = tuple(one for one in self._allow if one.allows(words, command.assignments, **marks))
        if not command.assignments and not any(marks.values()):
            if words[0].text in FLOW and all(word.is_known for word in words):
                return []
            folder = cd_folder(words)
            if folder is not None:
                return self._placed([Written(folder)], command, "cd", matching)
        if not matching:
            raise Refused(f"{shown!r} matches no allowed pattern{self._because(command)}")
        if not words:
            return []
        if "/" in words[0].text:
            matching = tuple(one for one in matching if one.words[:1] == (words[0].text,))
            if not matching:
                raise Refused(f"{words[0].text[:100]!r} is a path: call programs by their name")
        matching = _naming(words, shown, matching)
        return self._placed(_paths(words, until), command, words[0].text, matching)

    def _because(self, command: Command) -> str:
        """What it is about the command that no pattern names, if not its words."""
        if any(one.allows(command.words) for one in self._allow) or not command.words:
            for is_there, what in (
                (
                    bool(command.assignments),
                    "an assignment in front of it must be named, as in `NAME=* git *`",
                ),
                (command.background, "running in the background must be named, as in `git * &`"),
                (
                    command.expanding,
                    "expansions in a here-document must be named (`cat <<*`); or quote its word (<<'EOF')",
                ),
            ):
                if is_there:
                    return f" ({what})"
        formed = next((word.form for word in command.words if word.form), "")
        kind = {"$(*)": "command", "<(*)": "process", ">(*)": "process"}.get(formed)
        return (
            f" (a {kind} substitution must be named, as in `{command.words[0].text} {formed}`)"
            if kind
            else ""
        )

    # places

    def _opened(self, reading: Reading) -> Iterable[_Place]:
        for one in reading.opened:
            for path in _joined(one.path, one.folders):
                yield _Place(path, f"a redirection to or from {one.path[:100]!r}")

    def _placed(
        self, paths: Sequence[Written], command: Command, name: str, matching: tuple[Pattern, ...]
    ) -> Iterable[_Place]:
        for one in paths:
            if one.path in {"/dev/null", "/dev/stdout", "/dev/stderr"}:
                continue
            for path in _joined(posixpath.join(*one.behind, one.path), command.folders):
                yield _Place(path, f"{name} with {one.path[:100]!r}", one.path, matching)

    async def _check(self, places: Sequence[_Place]) -> None:
        """Raises `Refused` for the first place, as written or with links followed, that is not open."""
        wanted = list(dict.fromkeys(place.path for place in places))
        if len(wanted) > _PLACES_MAX:
            raise Refused(
                f"more than {_PLACES_MAX} files are written or folders entered; do it in several calls"
            )
        if not wanted:
            return
        found = dict(zip(wanted, await self._resolve(wanted), strict=True))
        for place in dict.fromkeys(places):
            for path in (posixpath.normpath(place.path), found[place.path]):
                try:
                    check_place(path, self._tree)
                except Refused as why:
                    if not _is_named(place, path, closed=why.closed):
                        raise Refused(f"{place.what}: {why}") from None

    def _refusal(self, why: str) -> Decision:
        allowed = ", ".join(self._rules.allow)[:1500] or "none"
        denied = f"; denied: {', '.join(self._rules.deny)[:500]}" if self._rules.deny else ""
        return Decision(False, f"refused: {why}. Allowed patterns: {allowed}{denied}.{_instead(why)}")


def _naming(words: tuple[Word, ...], shown: str, matching: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """Of the patterns that match, those that name all that makes the command a launcher; at least one."""
    found = launching(words)
    naming = tuple(one for one in matching if all(one.names(each.form, each.word) for each in found))
    if not naming:
        unnamed = (each for each in found if not any(one.names(each.form, each.word) for one in matching))
        first = next(unnamed, found[0])
        raise Refused(
            f"{shown!r} is a launcher: {first.word[:100]!r}: {first.why};"
            " a pattern must name that form itself"
        )
    return naming


def _paths(words: tuple[Word, ...], until: _Deadline) -> list[Written]:
    """The paths that a command writes, and those of a command in its arguments."""
    inner = [words[at:] for at in range(1, len(words))] if is_wrapper(words) else []
    paths: list[Written] = []
    for form in (words, *inner):
        until.check()
        if form[0].text.rsplit("/", 1)[-1] in _WRITING:
            paths += written(form)
        _check_count(paths, _PLACES_MAX)
    return paths


def _check_count(places: Sequence[object], most: int) -> None:
    if len(places) > most:
        raise Refused(f"more than {_PLACES_MAX} files are written or folders entered; do it in several calls")


def _denies(pattern: Pattern, words: tuple[Word, ...], command: Command, until: _Deadline) -> bool:
    until.check()
    return pattern.denies(words, command.assignments)


def _is_named(place: _Place, path: str, *, closed: bool) -> bool:
    """Whether a pattern that allows the command spells out the place; a closed one is spelled out to its
    end."""
    texts = {place.instead, path} if posixpath.normpath(place.path) == path else {path}
    if closed:
        return any(text in one.words for one in place.allowing for text in texts)
    return any(
        one.names("/", text) for one in place.allowing for text in texts if ".." not in text.split("/")
    )


def _joined(path: str, folders: Sequence[str]) -> Iterable[str]:
    """The path seen from each folder."""
    if not folders and not path.startswith("/"):
        raise Refused(
            f"{path[:100]!r} is relative, and the folder is not known after what ran before: give all of it"
        )
    return [posixpath.join(folder, path) for folder in folders or ("/",)]


def _shown(command: Command) -> str:
    words: list[Word] = [*command.assignments, *command.words]
    return " ".join(word.shown for word in words)[:200]


def _instead(why: str) -> str:
    """What the model can do about a refusal."""
    if "launcher" in why:
        return " Do it without that form, or ask for it with mcp__hyperhive__propose."
    if "outside of" in why:
        return " Work in /state or /config."
    if "closed:" in why:
        return " There is no way around this one: leave that file alone."
    if "matches no allowed pattern" in why:
        return " Use an allowed command or a file tool; a further pattern for agent.nix can be proposed."
    return " Write it as separate plain commands, or write files with the Write tool."
