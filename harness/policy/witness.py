"""The second reader: tree-sitter-bash must see the same commands and the same words at the same places.

It is a highlighter's grammar and not bash: it lets pass what bash reads differently. Our own parser reads
little and strictly, but is our own. A text on which the two do not agree is not decided, it is refused.
"""

from __future__ import annotations

from functools import cache

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from harness.policy.syntax import (
    Block,
    For,
    Glob,
    HereDocument,
    Literal,
    Program,
    RawWord,
    Redirection,
    Simple,
    Substitution,
    Unreadable,
)

_WORDS = frozenset({
    "word", "number", "string", "raw_string", "concatenation", "simple_expansion", "expansion",
    "extglob_pattern", "test_operator", "regex", "brace_expression", "ansi_c_string", "translated_string",
    "process_substitution", "command_substitution", "arithmetic_expansion",
})  # fmt: skip
_WHOLE = frozenset(
    {"test_command", "declaration_command", "unset_command"}
)  # a command with words of its own kind
_WHOLE_NAMES = frozenset({"[", "export", "declare", "typeset", "local", "readonly", "unset", "unsetenv"})
_DEPTH_MAX = 96


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_bash.language()))


class Places:
    """Where commands begin and which stretches are words, in bytes."""

    def __init__(self) -> None:
        self.commands: set[int] = set()
        self.words: set[tuple[int, int]] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and (self.commands, self.words) == (other.commands, other.words)

    __hash__ = None  # type: ignore[assignment] # compared once, kept nowhere


def agree(text: str, program: Program) -> None:
    """Raises `Unreadable` unless tree-sitter reads the text without a fault and as `program` says."""
    raw = text.encode()
    root = _parser().parse(raw).root_node
    if root.type != "program" or root.has_error:
        raise Unreadable("the command is not valid shell syntax")
    seen, ours = Places(), Places()
    _see(root, seen, 0)
    _Ours(text, ours).program(program)
    if seen != ours:
        raise Unreadable("the command has parts that cannot be read with certainty; write it more plainly")


def _see(node: Node, places: Places, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise Unreadable("the command is nested too deeply")
    match node.type:
        case "command":
            places.commands.add(node.start_byte)
        case kind if kind in _WHOLE:
            places.commands.add(node.start_byte)
            _inside(node, places, depth)
            return
        case "variable_assignment":
            if node.parent is None or node.parent.type not in {"command", "variable_assignments"}:
                places.commands.add(node.start_byte)
            places.words.add((node.start_byte, node.end_byte))
            _inside(node, places, depth)
            return
        case "variable_assignments":
            places.commands.add(node.start_byte)
        case "heredoc_start" | "heredoc_end" | "comment":
            return
        case "heredoc_body":
            _inside(node, places, depth)
            return
        case kind if kind in _WORDS:
            places.words.add((node.start_byte, node.end_byte))
            _inside(node, places, depth)
            return
    for child in node.children:
        _see(child, places, depth + 1)


def _inside(node: Node, places: Places, depth: int) -> None:
    """Inside a word only substitutions matter."""
    if depth > _DEPTH_MAX:
        raise Unreadable("the command is nested too deeply")
    if node.type in {"command_substitution", "process_substitution"}:
        for child in node.children:
            _see(child, places, depth + 1)
        return
    for child in node.children:
        if child.child_count:
            _inside(child, places, depth + 1)


class _Ours:
    """The same of our own reading."""

    def __init__(self, text: str, places: Places) -> None:
        self._places = places
        self._text = text
        self._plain = text.isascii()

    def _byte(self, at: int) -> int:
        return at if self._plain else len(self._text[:at].encode())

    def program(self, program: Program) -> None:
        for pipeline, _ in program.parts:
            for node in pipeline.commands:
                self._node(node)

    def _node(self, node: Simple | Block | For) -> None:
        match node:
            case Simple():
                self._simple(node)
            case Block():
                for word in node.matched:
                    self._word(word)
                for body in node.bodies:
                    self.program(body)
            case For():
                for word in node.words:
                    self._word(word)
                self.program(node.body)
        for redirection in node.redirections:
            self._redirection(redirection)

    def _simple(self, node: Simple) -> None:
        whole = (bool(node.words) and node.words[0].bare in _WHOLE_NAMES) or (
            node.words[:1] and self._is_test(node.words[0])
        )
        if node.assignments or node.words:
            first = node.assignments[0][1] if node.assignments else node.words[0]
            self._places.commands.add(self._byte(first.start))
        for word in (*(word for _, word in node.assignments), *node.words):
            if whole and word.start >= node.words[0].start:
                self._pieces(word)
            else:
                self._word(word)

    @staticmethod
    def _is_test(word: RawWord) -> bool:
        return word.pieces == (Glob("["),)

    def _redirection(self, one: Redirection) -> None:
        if isinstance(one.target, HereDocument):
            for piece in one.target.pieces:
                if isinstance(piece, Substitution):
                    self.program(piece.body)
        else:
            self._word(one.target)

    def _word(self, word: RawWord) -> None:
        self._places.words.add((self._byte(word.start), self._byte(word.end)))
        self._pieces(word)

    def _pieces(self, word: RawWord) -> None:
        for piece in word.pieces:
            if isinstance(piece, Substitution):
                self.program(piece.body)
            else:
                assert isinstance(piece, Literal | Glob) or piece.name
