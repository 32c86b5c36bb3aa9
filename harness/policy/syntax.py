"""The shapes that `parser` makes of a shell text. Pure data; positions are characters of the text."""

from __future__ import annotations

from dataclasses import dataclass


class Unreadable(ValueError):  # noqa: N818 - it says what it is
    """The text is not one that can be decided; the message says why, in words for the model."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stays as it is. `quoted`: by quotes or a backslash, so that it is never syntax."""

    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Glob:
    """Unquoted characters of a file-name pattern."""

    text: str


@dataclass(frozen=True, slots=True)
class Variable:
    """`$name`, `${name}` or `$?`. `quoted`: inside double quotes."""

    name: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    """`$( … )`, or `<( … )` and `>( … )`; `mark` is how it begins."""

    mark: str
    body: Program
    quoted: bool


Piece = Literal | Glob | Variable | Substitution


@dataclass(frozen=True, slots=True)
class RawWord:
    """One word as written."""

    pieces: tuple[Piece, ...]
    start: int
    end: int

    @property
    def bare(self) -> str:
        """The text of a word without quotes and expansions, the only kind that can be a word of the syntax;
        else empty."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], Literal) and not self.pieces[0].quoted:
            return self.pieces[0].text
        return ""


@dataclass(slots=True)
class HereDocument:
    """A here-document: how its last line reads, and once that was met, what the shell would put into it.

    The one shape that is filled in later: its lines follow those of the command.
    """

    delimiter: str
    quoted: bool
    tabs: bool
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Redirection:
    """`operator` without its descriptor; the target is a word, or the here-document's body."""

    operator: str
    descriptor: str
    target: RawWord | HereDocument


@dataclass(frozen=True, slots=True)
class Simple:
    """A simple command as written: assignments in front, words, redirections."""

    assignments: tuple[tuple[str, RawWord], ...]
    words: tuple[RawWord, ...]
    redirections: tuple[Redirection, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands connected by pipes; one alone is no pipeline of the shell, but has the same shape here."""

    commands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Pipelines one after another, whatever connects them; True: the one goes on in the background."""

    parts: tuple[tuple[Pipeline, bool], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A group, a subshell, `if`, `while`, `until` or `case`: programs that may run, in this order.

    `subshell`: what they do to the shell itself is lost at the end; `loop`: they may run again. `matched`:
    words that are compared only (of `case`).
    """

    bodies: tuple[Program, ...]
    redirections: tuple[Redirection, ...]
    matched: tuple[RawWord, ...] = ()
    subshell: bool = False
    loop: bool = False


@dataclass(frozen=True, slots=True)
class For:
    """`for variable in words; do body; done`."""

    variable: str
    words: tuple[RawWord, ...]
    body: Program
    redirections: tuple[Redirection, ...]


Node = Simple | Block | For
