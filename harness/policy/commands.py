"""A shell text taken apart into the simple commands that it may run and the files that it may open. Pure.

Whatever can not be decided with certainty raises `Unreadable`. Loops are walked once for each value of their
variable, branches one after another; folders are collected: a command is given with every folder in which it
may be run.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from harness.policy.parser import parse
from harness.policy.syntax import (
    Block,
    For,
    Glob,
    HereDocument,
    Literal,
    Node,
    Program,
    RawWord,
    Redirection,
    Simple,
    Substitution,
    Unreadable,
    Variable,
)
from harness.policy.witness import agree
from harness.policy.words import Rest, Word

__all__ = ["COMMAND_MAX_BYTES", "Command", "Opened", "Reading", "Unreadable", "read", "simple_commands"]

COMMAND_MAX_BYTES = 16 * 1024
_COMMANDS_MAX = 500
_FOLDERS_MAX = 16
_UNCLEAN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What changes variables: with one of these in the text, no variable's value is known. The
# first ones run text.
_SETTERS = frozenset({
    "eval", "source", ".", "command", "builtin", "exec", "read", "mapfile", "readarray", "getopts",
    "printf", "unset", "declare", "typeset", "local", "export", "readonly", "let", "set", "shift",
    "wait", "trap", "alias", "enable", "coproc", "select",
})  # fmt: skip
# What goes to another folder, or may do so
_GOERS = frozenset({
    "cd", "pushd", "popd", "eval", "source", ".", "command", "builtin", "exec",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command: its words, the name first. No words: assignments or redirections alone.

    `assignments`: each as one word. `expanding`: a here-document with expansions goes in. `folders`: where it
    may be run; none if that can not be known.
    """

    words: tuple[Word, ...]
    assignments: tuple[Word, ...] = ()
    background: bool = False
    expanding: bool = False
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a redirection opens, and the folders in which that may happen."""

    path: str
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a text may do by itself."""

    commands: tuple[Command, ...]
    opened: tuple[Opened, ...]


def read(text: str, folder: str = "/state", values: Mapping[str, str] | None = None) -> Reading:
    """All simple commands and opened files of the text, run in `folder`. `values`: variables that are known.
    Raises `Unreadable`."""
    if len(text) > COMMAND_MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > COMMAND_MAX_BYTES:
        raise Unreadable(f"the command is longer than {COMMAND_MAX_BYTES} bytes")
    if _UNCLEAN.search(text):
        raise Unreadable("the command contains a control character")
    program = parse(text)
    agree(text, program)
    walk = _Walk(
        {} if _sets_variables(program) else {name: Word(value) for name, value in (values or {}).items()}
    )
    walk.trusting = not _sets_variables(program)
    walk.program(program, _Where((folder,)), {})
    return Reading(tuple(walk.commands), tuple(walk.opened))


def simple_commands(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of all simple commands, as far as they are known."""
    return tuple(tuple(word.shown for word in command.words) for command in read(text).commands)


@dataclass(frozen=True, slots=True)
class _Where:
    """Folders in which what follows may be run. `repeats`: inside a loop, which may go on from any of
    them."""

    folders: tuple[str, ...]
    repeats: bool = False
    background: bool = False

    def plus(self, folders: Iterable[str]) -> _Where:
        together = tuple(dict.fromkeys((*self.folders, *folders)))
        if len(together) > _FOLDERS_MAX:
            raise Unreadable("too many changes of the folder; use absolute paths")
        return replace(self, folders=together)


@dataclass(slots=True)
class _Walk:
    """One walk over a program; collects."""

    values: Mapping[str, Word]
    trusting: bool = True
    commands: list[Command] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)

    def program(self, program: Program, where: _Where, loops: Mapping[str, Word]) -> _Where:
        """Walks it; where the shell may be behind it."""
        for pipeline, background in program.parts:
            here = replace(where, background=True) if background else where
            for node in pipeline.commands:
                here = self._node(node, here, loops)
            where = replace(here, background=where.background)
        return where

    def _node(self, node: Node, where: _Where, loops: Mapping[str, Word]) -> _Where:
        match node:
            case Simple():
                return self._simple(node, where, loops)
            case Block():
                return self._block(node, where, loops)
            case For():
                return self._for(node, where, loops)

    def _block(self, node: Block, where: _Where, loops: Mapping[str, Word]) -> _Where:
        for redirection in node.redirections:
            self._redirect(redirection, where, loops)
        for word in node.matched:
            self._unformed(word, loops, "a word of case")
        inside = replace(where, repeats=not node.subshell and (where.repeats or node.loop))
        if node.subshell:
            inside = replace(inside, repeats=False)
        after = self._bodies(node.bodies, inside, loops)
        if node.loop and after.folders != inside.folders:
            after = self._bodies(node.bodies, after, loops)
        return where if node.subshell else replace(after, repeats=where.repeats)

    def _bodies(self, bodies: Iterable[Program], where: _Where, loops: Mapping[str, Word]) -> _Where:
        for body in bodies:
            where = self.program(body, where, loops)
        return where

    def _for(self, node: For, where: _Where, loops: Mapping[str, Word]) -> _Where:
        for redirection in node.redirections:
            self._redirect(redirection, where, loops)
        values = [self._unformed(word, loops, "a word of a loop") for word in node.words]
        inside = replace(where, repeats=True)
        for _ in range(2):  # the second time from wherever the first time may have ended
            begun = inside.folders
            for value in values or [Word("", Rest.SOMETHING)]:
                one = replace(value, rest=Rest.SOMETHING) if value.rest is Rest.WORDS else value
                inside = self.program(node.body, inside, {**loops, node.variable: one})
            if inside.folders == begun:
                break
        return replace(inside, repeats=where.repeats)

    def _simple(self, node: Simple, where: _Where, loops: Mapping[str, Word]) -> _Where:
        if len(self.commands) >= _COMMANDS_MAX:
            raise Unreadable(f"more than {_COMMANDS_MAX} commands")
        words = [self._word(word, loops, where, name=not at) for at, word in enumerate(node.words)]
        assignments = [self._assigned(word, loops) for _, word in node.assignments]
        expanding = False
        for redirection in node.redirections:
            expanding |= self._redirect(redirection, where, loops, of_simple=True)
            if isinstance(redirection.target, HereDocument):
                for piece in redirection.target.pieces:
                    if isinstance(piece, Substitution):
                        self._substituted(piece, where, loops)
        if words and (not words[0].is_known or not words[0].text or words[0].form):
            raise Unreadable("the name of a command is empty or not plain")
        command = Command(tuple(words), tuple(assignments), where.background, expanding, where.folders)
        if words or assignments:
            self.commands.append(command)
        return _gone(command, where)

    def _substituted(self, piece: Substitution, where: _Where, loops: Mapping[str, Word]) -> None:
        self.program(piece.body, replace(where, repeats=False), loops)

    # words

    def _word(
        self, raw: RawWord, loops: Mapping[str, Word], where: _Where | None, *, name: bool = False
    ) -> Word:
        """What a command gets. `where` None: substitutions are not allowed in this place."""
        if name and raw.pieces == (Glob("["),):
            return Word("[")
        text, rest, form = "", Rest.NOTHING, ""
        for piece in raw.pieces:
            more, kind = "", Rest.NOTHING
            match piece:
                case Literal():
                    more = piece.text
                case Glob():
                    kind = Rest.WORDS
                case Variable():
                    value = self._variable(piece, loops)
                    more, kind = value.text, value.rest
                case Substitution():
                    if where is None:
                        raise Unreadable("a command substitution is not allowed in this place")
                    self._substituted(piece, where, loops)
                    form = piece.mark + "*)"
                    kind = Rest.SOMETHING if piece.quoted or piece.mark != "$(" else Rest.WORDS
            if rest is Rest.NOTHING:
                text += more
            rest = max(rest, kind, key=list(Rest).index)
        if rest is Rest.WORDS and not form and (not text or text.startswith("-")):
            raise Unreadable(
                "a file-name pattern (*, ? or [ without quotes) must begin with plain text, as ./*.py does:"
                " else a file's name could pass for an option"
            )
        return Word(text, rest, form, _shape(raw) if rest is Rest.WORDS and not form else "")

    def _variable(self, piece: Variable, loops: Mapping[str, Word]) -> Word:
        if piece.name == "?":
            return Word("", Rest.DIGITS)
        value = (loops.get(piece.name) or self.values.get(piece.name)) if self.trusting else None
        if value is None:
            value = Word("", Rest.SOMETHING)
        if not piece.quoted and not (value.is_known and re.fullmatch(r"[A-Za-z0-9_./:@%+,=-]+", value.text)):
            raise Unreadable(
                f"the variable {piece.name} outside of double quotes can become several words: quote it"
            )
        return value

    def _assigned(self, raw: RawWord, loops: Mapping[str, Word]) -> Word:
        """`NAME=value` as one word; the shell splits and expands no file names in it."""
        pieces = tuple(Literal(piece.text) if isinstance(piece, Glob) else piece for piece in raw.pieces)
        pieces = tuple(replace(one, quoted=True) if isinstance(one, Variable) else one for one in pieces)
        return self._word(replace(raw, pieces=pieces), loops, None)

    def _unformed(self, raw: RawWord, loops: Mapping[str, Word], what: str) -> Word:
        if any(isinstance(piece, Substitution) for piece in raw.pieces):
            raise Unreadable(f"a command substitution in {what} is not allowed")
        if what == "a word of case":
            pieces = tuple(Literal(piece.text) if isinstance(piece, Glob) else piece for piece in raw.pieces)
            pieces = tuple(replace(one, quoted=True) if isinstance(one, Variable) else one for one in pieces)
            raw = replace(raw, pieces=pieces)
        return self._word(raw, loops, None)

    # redirections

    def _redirect(
        self, one: Redirection, where: _Where, loops: Mapping[str, Word], *, of_simple: bool = False
    ) -> bool:
        """Notes the file that is opened; whether a here-document with expansions goes in."""
        if one.descriptor not in {"", "0", "1", "2"} or one.operator in {"<&", "<>"}:
            raise Unreadable("a redirection of this kind is not allowed: only 0, 1 and 2, only <, > and >>")
        if isinstance(one.target, HereDocument):
            if one.target.pieces and not of_simple:
                raise Unreadable("a here-document with expansions: quote its word (<<'EOF')")
            return bool(one.target.pieces)
        if one.operator == "<<<":
            pieces = tuple(
                Literal(piece.text) if isinstance(piece, Glob) else piece for piece in one.target.pieces
            )
            self._word(replace(one.target, pieces=pieces), loops, None)
            return False
        target = self._word(one.target, loops, None)
        if not target.is_known or not target.text:
            raise Unreadable("a redirection to a file that is not named plainly")
        if one.operator == ">&":
            if target.text in {"1", "2"}:
                return False
            if one.descriptor or re.fullmatch(r"[0-9]*-?", target.text):
                raise Unreadable("a redirection of this kind is not allowed: 2>&1 and 1>&2 are")
        if target.text != "/dev/null":
            self.opened.append(Opened(target.text, where.folders))
        return False


def _gone(command: Command, where: _Where) -> _Where:
    """Where the shell may be after the command."""
    name = command.words[0].text if command.words else ""
    if name not in _GOERS:
        return where
    folder = cd_folder(command.words)
    if folder is None:
        return replace(where, folders=())
    if not where.folders and not folder.startswith("/"):
        return where
    if where.repeats and not folder.startswith("/"):
        raise Unreadable("a relative cd in a loop; give the whole path, or use ( cd … && … )")
    new = []
    for start in where.folders or ("/",):
        joined = posixpath.join(start, folder)
        new += [joined, posixpath.normpath(joined)]  # the kernel's way and the shell's way through a link
    return where.plus(new) if where.folders else where


def cd_folder(words: tuple[Word, ...]) -> str | None:
    """The folder that a plain `cd` names; None for any other command."""
    rest = words[1:]
    if rest and rest[0] == Word("--"):
        rest = rest[1:]
    plain = words[0].text == "cd" and len(rest) == 1 and rest[0].is_known and not rest[0].form
    return rest[0].text if plain and rest[0].text and not rest[0].text.startswith("-") else None


def _shape(raw: RawWord) -> str:
    r"""A word with file-name patterns as it was written, `\\0` for what is not known."""
    return "".join(piece.text if isinstance(piece, Literal | Glob) else "\0" for piece in raw.pieces)


def _sets_variables(program: Program) -> bool:
    """Whether some command in it can change a variable."""
    return any(_sets(node) for pipeline, _ in program.parts for node in pipeline.commands)


def _sets(node: Node) -> bool:
    match node:
        case Simple():
            name = node.words[0].pieces if node.words else ()
            text = "".join(piece.text for piece in name if isinstance(piece, Literal))
            plain = all(isinstance(piece, Literal) for piece in name) or name == (Glob("["),)
            return not node.words or text in _SETTERS or not plain
        case Block():
            return any(_sets_variables(body) for body in node.bodies)
        case For():
            return _sets_variables(node.body)
