"""Tokens to programs: the part of bash's grammar that the policy understands. Everything else is refused.

Functions, `select`, `coproc`, `time`, `[[`, `((` and arrays are not understood on purpose: what they do can
not be seen in the words of a command.
"""

from __future__ import annotations

import re
from dataclasses import replace

from harness.policy.lexer import Lexer, Token
from harness.policy.syntax import (
    Block,
    For,
    Glob,
    Literal,
    Node,
    Pipeline,
    Program,
    RawWord,
    Redirection,
    Simple,
    Unreadable,
)

RESERVED = frozenset({
    "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "select",
    "function", "coproc", "time", "{", "}", "!", "[[", "]]", "in",
})  # fmt: skip
_REFUSED = {
    "function": "a function definition",
    "coproc": "coproc",
    "select": "select",
    "time": "time (leave it out)",
    "[[": "a test [[ … ]]: use [ … ]",
}
_REDIRECTIONS = frozenset({">", ">>", ">|", ">&", "&>", "&>>", "<", "<<", "<<-", "<<<", "<&", "<>"})
_NESTED_MAX = 24
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")
_LOOP_VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,40}")


def parse(text: str) -> Program:
    """The whole text. Raises `Unreadable`."""
    lexer = Lexer(text, _substituted)
    parser = _Parser(lexer)
    program = parser.program(frozenset())
    if parser.ahead.kind != "end":
        raise Unreadable(f"not valid shell syntax: {parser.ahead.text[:40]!r} is not expected there")
    if not program.parts:
        raise Unreadable("there is no command in it")
    return program


def _substituted(lexer: Lexer) -> Program:
    parser = _Parser(lexer)
    program = parser.program(frozenset({")"}))
    # the parser has looked one token ahead, at the `)`; the lexer stands behind it
    if parser.ahead.text != ")" or parser.ahead.kind != "op" or not program.parts:
        raise Unreadable("a substitution that is not closed, or empty")
    return program


class _Parser:
    def __init__(self, lexer: Lexer) -> None:
        self._lexer = lexer
        self._nested = 0
        self.ahead: Token = lexer.next()

    def _step(self) -> Token:
        token = self.ahead
        self.ahead = self._lexer.next()
        return token

    def _is(self, *operators: str) -> bool:
        return self.ahead.kind == "op" and self.ahead.text in operators

    def _keyword(self) -> str:
        """The reserved word that comes next; only where a command may begin."""
        word = self.ahead.word
        return word.bare if word is not None and word.bare in RESERVED else ""

    def _expect(self, keyword: str) -> None:
        if self._keyword() != keyword:
            raise Unreadable(f"not valid shell syntax: {keyword!r} is missing")
        self._step()

    def _newlines(self) -> None:
        while self._is("\n"):
            self._step()

    def program(self, until: frozenset[str]) -> Program:
        """Pipelines up to one of the reserved words or operators, which is not taken."""
        self._nested += 1
        if self._nested > _NESTED_MAX:
            raise Unreadable("the command is nested too deeply")
        parts: list[tuple[Pipeline, bool]] = []
        begun = 0  # first pipeline of the list of && and ||: all of it goes to the background together
        while True:
            self._newlines()
            if self.ahead.kind == "end" or self._keyword() in until or (self._is(*until)):
                break
            parts.append((self._pipeline(), False))
            if self._is("&&", "||"):
                self._step()
                self._newlines()
                if self.ahead.kind == "end" or self._is(*until) or self._keyword() in until:
                    raise Unreadable("not valid shell syntax: nothing follows && or ||")
                continue
            if self._is("&"):
                parts[begun:] = [(pipeline, True) for pipeline, _ in parts[begun:]]
            if self._is(";", "&", "\n"):
                self._step()
                begun = len(parts)
                continue
            break
        self._nested -= 1
        return Program(tuple(parts))

    def _pipeline(self) -> Pipeline:
        if self._keyword() == "!":
            self._step()
            if self._keyword() == "!":
                raise Unreadable("not valid shell syntax: ! twice")
        commands = [self._command()]
        while self._is("|", "|&"):
            self._step()
            self._newlines()
            commands.append(self._command())
        return Pipeline(tuple(commands))

    def _command(self) -> Node:
        keyword = self._keyword()
        if self.ahead.kind == "word" and self.ahead.text == "[[":
            keyword = "[["
        if keyword in _REFUSED:
            raise Unreadable(f"{_REFUSED[keyword]} is not allowed here")
        match keyword:
            case "if":
                return self._finish(self._if())
            case "while" | "until":
                return self._finish(self._while())
            case "for":
                return self._for()
            case "case":
                return self._finish(self._case())
            case "{":
                self._step()
                body = self._body("}")
                self._step()
                return self._finish(Block((body,), ()))
            case "":
                pass
            case _:
                raise Unreadable(f"not valid shell syntax: {keyword!r} is not expected there")
        if self._is("("):
            opening = self._step()
            if self._is("(") and self.ahead.start == opening.end:
                raise Unreadable("an arithmetic command ((…)) is not allowed here")
            body = self._body(")")
            self._step()
            return self._finish(Block((body,), (), subshell=True))
        return self._simple()

    def _body(self, *until: str) -> Program:
        body = self.program(frozenset(until))
        if not body.parts or not (self._keyword() in until or self._is(*until)):
            raise Unreadable(f"not valid shell syntax: {until[0]!r} or a command is missing")
        return body

    def _if(self) -> Block:
        bodies = []
        self._step()
        while True:
            bodies.append(self._body("then"))
            self._step()
            bodies.append(self._body("elif", "else", "fi"))
            keyword = self._keyword()
            self._step()
            if keyword == "elif":
                continue
            if keyword == "else":
                bodies.append(self._body("fi"))
                self._step()
            return Block(tuple(bodies), ())

    def _while(self) -> Block:
        self._step()
        condition = self._body("do")
        self._step()
        body = self._body("done")
        self._step()
        return Block((condition, body), (), loop=True)

    def _for(self) -> For:
        self._step()
        variable = self.ahead.word.bare if self.ahead.word is not None else ""
        if not _LOOP_VARIABLE.fullmatch(variable):
            raise Unreadable("a loop needs a variable of lower-case letters: for name in …; do …; done")
        self._step()
        self._newlines()
        if self._keyword() != "in":
            raise Unreadable("a loop without its words: write for name in …; do …; done")
        self._step()
        words = []
        while self.ahead.kind == "word":
            word = self._step().word
            assert word is not None
            words.append(word)
        if not self._is(";", "\n"):
            raise Unreadable("not valid shell syntax: the words of a loop end with ; or a new line")
        self._step()
        self._newlines()
        self._expect("do")
        body = self._body("done")
        self._step()
        return For(variable, tuple(words), body, tuple(self._redirections()))

    def _case(self) -> Block:
        self._step()
        if self.ahead.word is None:
            raise Unreadable("not valid shell syntax: case without a word")
        matched = [self.ahead.word]
        self._step()
        self._newlines()
        self._expect("in")
        bodies = []
        self._newlines()
        while self._keyword() != "esac":
            if self._is("("):
                self._step()
            while True:
                if self.ahead.word is None:
                    raise Unreadable("not valid shell syntax: a pattern of case is missing")
                matched.append(self.ahead.word)
                self._step()
                if not self._is("|"):
                    break
                self._step()
            if not self._is(")"):
                raise Unreadable("not valid shell syntax: a pattern of case without )")
            self._step()
            bodies.append(self.program(frozenset({"esac", ";;"})))
            if self._is(";;"):
                self._step()
            elif self._keyword() != "esac":
                raise Unreadable("not valid shell syntax: a branch of case without ;;")
            self._newlines()
        self._step()
        return Block(tuple(bodies), (), tuple(matched))

    def _finish(self, block: Block) -> Block:
        return replace(block, redirections=tuple(self._redirections()))

    def _redirections(self) -> list[Redirection]:
        found = []
        while (one := self._redirection()) is not None:
            found.append(one)
        return found

    def _redirection(self) -> Redirection | None:
        descriptor = ""
        if self.ahead.kind == "descriptor":
            descriptor = self._step().text
        elif not self._is(*_REDIRECTIONS):
            return None
        operator = self._step().text
        target = self.ahead.word
        if operator not in _REDIRECTIONS or target is None:
            raise Unreadable("not valid shell syntax: a redirection without its file")
        if operator in {"<<", "<<-"}:
            body = self._lexer.await_body(target, tabs=operator == "<<-")
            self._step()
            return Redirection(operator, descriptor, body)
        self._step()
        return Redirection(operator, descriptor, target)

    def _simple(self) -> Simple:
        assignments: list[tuple[str, RawWord]] = []
        words: list[RawWord] = []
        redirections: list[Redirection] = []
        start = self.ahead.start
        while True:
            if (redirection := self._redirection()) is not None:
                redirections.append(redirection)
                continue
            word = self.ahead.word
            if word is None:
                break
            name = "" if words else _assigned(word)
            if name:
                assignments.append((name, word))
            else:
                if not words and word.bare in RESERVED:
                    raise Unreadable(f"{word.bare!r} is a word of the shell's own syntax")
                words.append(word)
            self._step()
        if self._is("("):
            raise Unreadable("a function definition, an array or a pattern with ( is not allowed here")
        if not (assignments or words or redirections):
            raise Unreadable(f"not valid shell syntax: {self.ahead.text[:40]!r} is not expected there")
        return Simple(tuple(assignments), tuple(words), tuple(redirections), start)


def _assigned(word: RawWord) -> str:
    """The name that a word in front of a command assigns to; empty if it is none."""
    first = word.pieces[0] if word.pieces else None
    if not isinstance(first, Literal) or first.quoted:
        return ""
    found = _ASSIGNMENT.match(first.text)
    if found is None:
        if word.pieces[1:2] == (Glob("["),):
            raise Unreadable("an assignment to an array, or a name that is a file-name pattern")
        return ""
    if found.group(2) != "=":
        raise Unreadable("an assignment with += or to an array is not allowed here")
    return found.group(1)
