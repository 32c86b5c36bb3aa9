"""Shell text to tokens, as bash reads them: words with their quoting, operators, here-documents.

Only what can be read with certainty is read; anything else raises `Unreadable`. `parser` asks for the tokens;
`$( … )` inside a word asks the parser back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.policy.syntax import (
    Glob,
    HereDocument,
    Literal,
    Piece,
    Program,
    RawWord,
    Substitution,
    Unreadable,
    Variable,
)

_OPERATOR = re.compile(r"&&|\|\||\|&|;;&|;;|;&|&>>|&>|>>|>&|>\||<<<|<<-|<<|<&|<>|[;&|()<>\n]")
_COMMENT = re.compile(r"#[^\n]*")
_END_OF_WORD = frozenset(" \t\n;&|()<>")
_PLAIN = re.compile(r"[^\s\\$`*?\[|&;()<>\"']+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DELIMITER = re.compile(r"[A-Za-z0-9_.-]+")
_BRACES = re.compile(r"\{.*(?:,|\.\.).*\}", re.DOTALL)
_TILDE = re.compile(r"(?:^|[=:])~")
_SUBSTITUTIONS_MAX = 8


@dataclass(frozen=True, slots=True)
class Token:
    """An operator (`kind` "op", a newline among them), a word, or the end of the text."""

    kind: str
    text: str
    start: int
    end: int
    word: RawWord | None = None


@dataclass(slots=True)
class Lexer:
    """One text, read from left to right. `program` reads what is inside `$( … )`, up to the `)`."""

    text: str
    program: Callable[[Lexer], Program]
    at: int = 0
    depth: int = 0
    _awaited: list[HereDocument] = field(default_factory=list)

    def next(self) -> Token:
        """The token at the present position; the position moves behind it."""
        self._skip_blanks()
        start = self.at
        if start >= len(self.text):
            if self._awaited:
                raise Unreadable("a here-document without its last line")
            return Token("end", "", start, start)
        char = self.text[start]
        if self.text.startswith(("<(", ">("), start):
            return self._word_token()
        if found := _OPERATOR.match(self.text, start):
            self.at = found.end()
            if char == "\n":
                self._read_bodies()
            return Token("op", found.group(), start, found.end())
        return self._word_token()

    def _skip_blanks(self) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in " \t":
                self.at += 1
            elif self.text.startswith("\\\n", self.at):
                if self.at and self.text[self.at - 1] not in " \t\n":
                    raise Unreadable("a \\ at the end of a line needs a blank before it")
                self.at += 2
            elif self.text[self.at] == "#":
                found = _COMMENT.match(self.text, self.at)
                assert found is not None
                self.at = found.end()
            else:
                return

    def _word_token(self) -> Token:
        word = self._word()
        if word.bare.isdigit() and self.text[self.at : self.at + 1] in {"<", ">"}:
            return Token("descriptor", word.bare, word.start, word.end)
        if self._awaited and "\n" in self.text[word.start : word.end]:
            raise Unreadable("a word of several lines on the line of a here-document")
        return Token("word", self.text[word.start : word.end], word.start, word.end, word)

    def _word(self) -> RawWord:
        start = self.at
        pieces: list[Piece] = []
        plain = ""  # the unquoted text, with a letter for whatever is quoted or expanded
        while self.at < len(self.text):
            before = self.at
            if self.text.startswith(("<(", ">("), before):
                if pieces:
                    raise Unreadable("a process substitution inside a word")
                self.at += 2
                pieces.append(self._substitution(self.text[before : before + 2], quoted=False))
                self._must_end_here("a process substitution")
                break
            if self.text[before] in _END_OF_WORD:
                break
            new = self._piece()
            pieces += new
            unquoted = (
                len(new) == 1 and isinstance(new[0], Literal | Glob) and not getattr(new[0], "quoted", False)
            )
            plain += self.text[before : self.at] if unquoted else "q"
        if re.fullmatch(r"\{[A-Za-z_]\w*\}", plain) and self.text[self.at : self.at + 1] in {"<", ">"}:
            raise Unreadable("a descriptor named by a variable")
        if _BRACES.search(plain):
            raise Unreadable("a brace expansion {…,…}: write the words out, or quote them")
        if _TILDE.search(plain):
            raise Unreadable("an unquoted ~: write /home/agent, or quote it")
        return RawWord(tuple(_joined(pieces)), start, self.at)

    def _must_end_here(self, what: str) -> None:
        if self.at < len(self.text) and self.text[self.at] not in _END_OF_WORD:
            raise Unreadable(f"{what} inside a word")

    def _piece(self) -> list[Piece]:
        char = self.text[self.at]
        if char == "'":
            return [Literal(self._single_quoted(), quoted=True)]
        if char == '"':
            return self._double_quoted()
        if char == "\\":
            following = self.text[self.at + 1 : self.at + 2]
            if following in {"", "\n"}:
                raise Unreadable("a \\ in the middle of a word at the end of a line")
            self.at += 2
            return [Literal(following, quoted=True)]
        if char in "$`":
            return [self._dollar(quoted=False)]
        if char in "*?[":
            self.at += 1
            return [Glob(char)]
        found = _PLAIN.match(self.text, self.at)
        if found is None:
            raise Unreadable(f"the character {char!r} outside of quotes")
        self.at = found.end()
        return [Literal(found.group())]

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise Unreadable("not valid shell syntax: a ' is not closed")
        value = self.text[self.at + 1 : end]
        self.at = end + 1
        return value

    def _double_quoted(self) -> list[Piece]:
        pieces: list[Piece] = [Literal("", quoted=True)]
        value = ""
        self.at += 1
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return [*pieces, Literal(value, quoted=True)]
            if char == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                if following == "\n":
                    raise Unreadable("a line continued inside quotes")
                value += following if following and following in '$`"\\' else char + following
                self.at += 2
            elif char in "$`":
                pieces += [Literal(value, quoted=True), self._dollar(quoted=True)]
                value = ""
            else:
                value += char
                self.at += 1
        raise Unreadable('not valid shell syntax: a " is not closed')

    def _dollar(self, *, quoted: bool) -> Piece:
        """A variable or a substitution; anything else that begins with `$` or a backtick is refused."""
        rest = self.text[self.at + 1 : self.at + 3]
        if self.text[self.at] == "`":
            raise Unreadable("a command substitution with backticks: not allowed in this form")
        if rest.startswith("(("):
            raise Unreadable("an arithmetic expansion is not allowed here")
        if rest.startswith("("):
            self.at += 2
            return self._substitution("$(", quoted=quoted)
        if rest.startswith("?"):
            self.at += 2
            return Variable("?", quoted)
        braced = rest.startswith("{")
        found = _NAME.match(self.text, self.at + 1 + braced)
        if found is None or (braced and self.text[found.end() : found.end() + 1] != "}"):
            shown = {"'": "a $'…' string", '"': 'a $"…" string'}.get(rest[:1])
            raise Unreadable(
                f"{shown or 'a variable'} is not allowed here; use plain quotes ' for a literal $"
            )
        self.at = found.end() + braced
        return Variable(found.group(), quoted)

    def _substitution(self, mark: str, *, quoted: bool) -> Substitution:
        if self.depth >= _SUBSTITUTIONS_MAX or self._awaited:
            raise Unreadable("a substitution nested too deeply, or on the line of a here-document")
        self.depth += 1
        body = self.program(self)
        self.depth -= 1
        if self._awaited:
            raise Unreadable("a here-document inside of a substitution")
        return Substitution(mark, body, quoted)

    # here-documents

    def await_body(self, delimiter: RawWord, *, tabs: bool) -> HereDocument:
        """The operator and its word were read: the body follows the line."""
        text = "".join(piece.text for piece in delimiter.pieces if isinstance(piece, Literal))
        if not all(isinstance(piece, Literal) for piece in delimiter.pieces) or not _DELIMITER.fullmatch(
            text
        ):
            raise Unreadable("a here-document whose last line is not a plain word")
        quoted = any(piece.quoted for piece in delimiter.pieces if isinstance(piece, Literal))
        awaited = HereDocument(text, quoted, tabs)
        self._awaited.append(awaited)
        return awaited

    def _read_bodies(self) -> None:
        for one in self._awaited:
            start = self.at
            while True:
                if self.at >= len(self.text):
                    raise Unreadable(f"a here-document without its last line {one.delimiter}")
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                begun = self.at
                self.at = min(end + 1, len(self.text))
                if (line.lstrip("\t") if one.tabs else line) == one.delimiter:
                    break
            one.pieces = () if one.quoted else self._expansions(start, begun)
        self._awaited.clear()

    def _expansions(self, start: int, end: int) -> tuple[Piece, ...]:
        """What the shell puts into an unquoted here-document. A backslash could join lines or hide a `$`."""
        if "\\" in self.text[start:end]:
            raise Unreadable("a backslash in a here-document: quote its word (<<'EOF')")
        after, awaited = self.at, self._awaited
        self._awaited = []
        pieces: list[Piece] = []
        self.at = start
        while True:
            found = min((at for at in (self.text.find(c, self.at, end) for c in "$`") if at >= 0), default=-1)
            if found < 0:
                break
            self.at = found
            pieces.append(self._dollar(quoted=True))
        if self.at > end:
            raise Unreadable("a substitution that goes on behind its here-document")
        self.at, self._awaited = after, awaited
        return tuple(pieces)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring literals of the same kind as one; an empty one stays only if it is all there is."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, Literal) and isinstance(last, Literal) and piece.quoted == last.quoted:
            result[-1] = Literal(last.text + piece.text, piece.quoted)
        else:
            result.append(piece)
    return result
