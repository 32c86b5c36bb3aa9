r"""A shell text taken apart into simple commands with literal words, or refused. Pure.

tree-sitter-bash reads the text, but it is a highlighter's grammar and not bash: it lets pass what bash would
read differently (a carriage return or `\\ ` as a blank, for instance). So everything that is not in a short
list of constructs is refused, every byte outside of the recognised words must be a plain blank, and Python's
own shell lexer must come to the same words.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

COMMAND_MAX_BYTES = 16 * 1024
_DEPTH_MAX = 64
_UNCLEAN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|[^\S \t\n]|[\ud800-\udfff]")
_BLANK = re.compile(rb"[ \t\n]*")
# unquoted text: nothing that bash would expand, split or take as an operator
_PLAIN = re.compile(r"[^\s\\$`*?\[\]|&;()<>\"'!{}~]+")
_HARMLESS_BRACES = re.compile(r"\{[A-Za-z0-9_-]*\}")
_DESCRIPTORS = frozenset({"1", "2"})
_SINKS = frozenset({">", ">>", "<", "&>", "&>>", ">|"})

# words that bash reads as syntax even where the grammar sees a command's name
_RESERVED = frozenset({
    "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "in", "select",
    "function", "coproc", "time", "{", "}", "!", "[[", "]]", "[", "]",
})  # fmt: skip

_WHY = {
    "variable_assignment": "an assignment in front of a command",
    "variable_assignments": "an assignment",
    "declaration_command": "export, declare and their like",
    "unset_command": "unset",
    "command_substitution": "a command substitution",
    "process_substitution": "a process substitution",
    "simple_expansion": "a variable",
    "expansion": "a variable",
    "arithmetic_expansion": "an arithmetic expansion",
    "brace_expression": "a brace expansion",
    "ansi_c_string": "a $'…' string",
    "translated_string": 'a $"…" string',
    "extglob_pattern": "a file-name pattern",
    "heredoc_redirect": "a here-document",
    "herestring_redirect": "a here-string",
    "subshell": "a subshell ( … )",
    "compound_statement": "a group { … }",
    "function_definition": "a function definition",
    "negated_command": "a negation with !",
    "test_command": "a test [ … ]",
    "if_statement": "if",
    "for_statement": "a loop",
    "c_style_for_statement": "a loop",
    "while_statement": "a loop",
    "case_statement": "case",
    "&": "running in the background with &",
}


class Unreadable(ValueError):  # noqa: N818 - it says what it is
    """The text is not one that can be decided; the message says why, in words for the model."""


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command: its literal words, the name first."""

    words: tuple[str, ...]


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_bash.language()))


def simple_commands(text: str) -> tuple[Command, ...]:
    """All simple commands of pipelines and lists, in order; at least one. Raises `Unreadable`."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > COMMAND_MAX_BYTES:
        raise Unreadable(f"the command is longer than {COMMAND_MAX_BYTES} bytes")
    if _UNCLEAN.search(text):
        raise Unreadable("the command contains a control character or an unusual blank")
    root = _parser().parse(raw).root_node
    if root.type != "program" or root.has_error:
        raise Unreadable("the command is not valid shell syntax")
    reading = _Reading(raw)
    reading.statements(root, 0)
    reading.check_gaps()
    if not reading.commands:
        raise Unreadable("there is no command in it")
    return tuple(reading.commands)


class _Reading:
    """One walk over the tree; collects the commands and the spans of all that was understood."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.commands: list[Command] = []
        self._spans: list[tuple[int, int]] = []

    def statements(self, node: Node, depth: int) -> None:
        """Reads a program, list or pipeline: commands with operators between them."""
        if depth > _DEPTH_MAX:
            raise Unreadable("the command is nested too deeply")
        for child in node.children:
            match child.type:
                case "list" | "pipeline":
                    self.statements(child, depth + 1)
                case "command":
                    self._command(child)
                case "redirected_statement":
                    self._redirected(child, depth + 1)
                case "&&" | "||" | "|" | "|&" | ";" | "\n":
                    self._take(child)
                case "comment":
                    self._comment(child)
                case _:
                    raise self._not_allowed(child)

    def check_gaps(self) -> None:
        """Between the understood pieces there may be nothing but blanks: what the grammar skips, bash may
        not."""
        at = 0
        for start, end in [*sorted(self._spans), (len(self.raw), len(self.raw))]:
            if start < at or not _BLANK.fullmatch(self.raw, at, start):
                raise Unreadable("the command has parts that cannot be read with certainty; quote plainly")
            at = end

    def _redirected(self, node: Node, depth: int) -> None:
        for child in node.children:
            match child.type:
                case "file_redirect":
                    self._redirect(child)
                case "command":
                    self._command(child)
                case "list" | "pipeline":
                    self.statements(child, depth + 1)
                case _:
                    raise self._not_allowed(child)

    def _command(self, node: Node) -> None:
        words: list[str] = []
        redirected = False
        at = node.start_byte
        for child in node.children:
            if b"\n" in self.raw[at : child.start_byte]:
                raise Unreadable("a command that goes on in the next line; write it in one")
            at = child.end_byte
            if child.type == "command_name" and not words and child.child_count == 1:
                words.append(self._word(child.children[0]))
            elif child.type == "file_redirect":
                redirected = True
                self._redirect(child)
            elif child.type in {"word", "number", "string", "raw_string", "concatenation"} and words:
                words.append(self._word(child))
            else:
                raise self._not_allowed(child)
        if not words or not words[0]:
            raise Unreadable("a command has an empty name")
        if words[0] in _RESERVED:
            raise Unreadable(f"{words[0]!r} is a word of the shell's own syntax")
        if not redirected:
            self._second_opinion(node, words)
        self.commands.append(Command(tuple(words)))

    def _second_opinion(self, node: Node, words: list[str]) -> None:
        """Python's shell lexer must read the same words (it knows no redirections, so those are not
        compared)."""
        try:
            same = shlex.split(_text(node), comments=False, posix=True) == words
        except ValueError:
            same = False
        if not same:
            raise Unreadable("the command's quoting cannot be read with certainty; quote plainly")

    def _word(self, node: Node) -> str:
        match node.type:
            case "word" | "number":
                self._take(node)
                if node.child_count:
                    raise self._not_allowed(node.children[0])
                return _unquoted(_text(node))
            case "raw_string":
                self._take(node)
                return _text(node)[1:-1]
            case "string":
                self._take(node)
                return self._double_quoted(node)
            case "concatenation":
                return self._concatenation(node)
            case _:
                raise self._not_allowed(node)

    def _concatenation(self, node: Node) -> str:
        at = node.start_byte
        plain = ""  # runs of unquoted parts are judged together: `{` `1` `}` is one thing
        value = ""
        for child in node.children:
            if child.start_byte != at:
                raise Unreadable("a word has parts that cannot be read with certainty; quote plainly")
            at = child.end_byte
            if child.type in {"word", "number"} and not child.child_count:
                self._take(child)
                plain += _text(child)
                continue
            value += _unquoted(plain) if plain else ""
            plain = ""
            if child.type not in {"raw_string", "string"}:
                raise self._not_allowed(child)
            value += self._word(child)
        return value + (_unquoted(plain) if plain else "")

    def _double_quoted(self, node: Node) -> str:
        for child in node.children:
            if child.type not in {'"', "string_content"}:
                raise self._not_allowed(child)
        inner = _text(node)[1:-1]
        value, at = [], 0
        while at < len(inner):
            char = inner[at]
            if char in "$`":
                raise Unreadable(f"{char} inside double quotes; use single quotes")
            if char == "\\" and at + 1 < len(inner):
                following = inner[at + 1]
                if following == "\n":
                    raise Unreadable("a line continued inside quotes")
                value.append(following if following in '$`"\\' else char + following)
                at += 2
                continue
            value.append(char)
            at += 1
        return "".join(value)

    def _redirect(self, node: Node) -> None:
        parts = [child for child in node.children if child.type != "file_descriptor"]
        operator = _text(parts[0]) if parts else ""
        target = _text(parts[1]) if len(parts) == 2 else ""
        duplicates = operator == ">&" and target in _DESCRIPTORS
        discards = operator in _SINKS and target == "/dev/null"
        descriptor = [_text(child) for child in node.children if child.type == "file_descriptor"]
        if not (duplicates or discards) or any(number not in _DESCRIPTORS for number in descriptor):
            raise Unreadable(
                f"a redirection ({_text(node)[:80]!r}): only 2>&1, 1>&2 and /dev/null are allowed; "
                "write files with the Write tool"
            )
        self._take(node)

    def _comment(self, node: Node) -> None:
        before = self.raw[: node.start_byte]
        if before and before[-1:] not in b" \t\n;":
            raise Unreadable("a comment that does not begin a word")
        if node.end_byte < len(self.raw) and self.raw[node.end_byte : node.end_byte + 1] != b"\n":
            raise Unreadable("a comment that does not end its line")
        self._take(node)

    def _take(self, node: Node) -> None:
        self._spans.append((node.start_byte, node.end_byte))

    def _not_allowed(self, node: Node) -> Unreadable:
        what = _WHY.get(node.type, f"the construct {node.type!r}")
        return Unreadable(f"{what} is not allowed here")


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _unquoted(text: str) -> str:
    """Unquoted text that bash leaves as it is; else `Unreadable`."""
    if "\\" in text:
        raise Unreadable("a backslash outside of quotes; put the word into single quotes")
    for char, what in (("$", "a variable"), ("`", "a command substitution")):
        if char in text:
            raise Unreadable(f"{what} is not allowed here")
    if re.search(r"[*?\[\]]", text):
        raise Unreadable("an unquoted *, ? or [ (a file-name pattern): quote it, or name the files")
    if text.startswith("#"):
        raise Unreadable("an unquoted # at the beginning of a word; quote it")
    if re.search(r"(?:^|[=:])~", text):
        raise Unreadable("an unquoted ~: write /home/agent")
    rest = _HARMLESS_BRACES.sub("", text).replace("~", "").replace("!", "")
    if rest and not _PLAIN.fullmatch(rest):
        raise Unreadable("characters that the shell may expand; put the word into single quotes")
    return text
