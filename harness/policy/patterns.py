"""Shell patterns of the spec, matched against a command's words. Pure; the host reads them with the same
code.

The grammar is that of Claude Code's `Bash(...)` rules (`git *`, `git:*`, exact), with four marks for what is
refused unless a pattern names it: `NAME=*` in front of the command, `$(*)` and `<(*)` for a word, `<<*` and
`&` at the end. docs/bash-policy.md explains them.

An allow pattern is matched word by word, so that a quoted argument can never pass for two words. A deny
pattern is matched on characters: what is denied may be a little more than what was meant, never less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from harness.policy.words import Rest, Word

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
SUBSTITUTIONS = frozenset({"$(*)", "<(*)", ">(*)"})
_NO_NAME = re.compile(r"[\"'\\$`|&;<>(){}!?#~=]|^\]|^-|:\*")
_SYNTAX = frozenset({
    "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "select",
    "function", "coproc", "time", "in", "[[", "]]",
})  # fmt: skip
_OPERATORS = frozenset({"&&", "||", "|", "|&", ";", "&", ">", ">>", "<", "<<", "2>&1", "2>/dev/null"})


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern as written and its parts. A last part that ends in `*` stands for itself and all words behind
    it."""

    text: str
    words: tuple[str, ...]
    assignments: tuple[str, ...] = ()
    background: bool = False
    expanding: bool = False

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads one pattern; any text is one, though it may match nothing (`problem`)."""
        parts = [part for part in _inner(text).split(" ") if part]
        marks = set()
        while len(parts) > 1 and parts[-1] in {"&", "<<*"} and parts[-1] not in marks:
            marks.add(parts.pop())
        front = 0
        while front < len(parts) and _ASSIGNMENT.match(parts[front]):
            front += 1
        return cls(text, tuple(parts[front:]), tuple(parts[:front]), "&" in marks, "<<*" in marks)

    def allows(
        self,
        words: Sequence[Word],
        assignments: Sequence[Word] = (),
        *,
        background: bool = False,
        expanding: bool = False,
    ) -> bool:
        """Whether every command that these words can be matches, word by word."""
        if (self.background, self.expanding, len(self.assignments)) != (
            background,
            expanding,
            len(assignments),
        ):
            return False
        pairs = zip(self.assignments, assignments, strict=True)
        if not all(word.is_known and _glob(part).fullmatch(word.text) for part, word in pairs):
            return False
        if not self.words or not words:
            return not self.words and not words and bool(assignments)
        return _match(self.words, tuple(words))

    def denies(self, words: Sequence[Word], assignments: Sequence[Word] = ()) -> bool:
        """Whether this, as a deny pattern, can catch the command."""
        parts = (*self.assignments, *self.words)
        if not parts:
            return False
        forms = [tuple(words), (*assignments, *words)] if assignments else [tuple(words)]
        return any(form and _meets(_tokens(parts), _characters(form)) for form in forms)

    def names(self, form: str, word: str) -> bool:
        """Whether the pattern spells out `word`, which is of the form `form` (`-c` for `-ccore.pager=x`):
        itself, or with `*` for its end, but not for the form."""
        return any(
            part == word
            or (
                bool(form)
                and part.endswith("*")
                and part.count("*") == 1
                and part[:-1].startswith(form)
                and word.startswith(part[:-1])
            )
            for part in (*self.words, *self.assignments)
        )


def problem(text: str) -> str:
    """Why a pattern can never match anything, for people; empty if it can. modules/bare/types.nix agrees."""
    inner = _inner(text)
    if not inner or _unwrapped(text) != _unwrapped(text).strip() or re.search(r"[\x00-\x1f\x7f]", text):
        return "it is blank, padded, or has control characters"
    pattern = Pattern.parse(text)
    if not pattern.words:
        return "" if pattern.assignments else "it is blank, padded, or has control characters"
    name = pattern.words[0]
    if _NO_NAME.search(name) or name in _SYNTAX:
        return f"no command is named {name!r}"
    if any(":*" in part for part in pattern.words[:-1]):
        return "`:*` has its meaning at the end only"
    if odd := [part for part in pattern.words if part in _OPERATORS - {";"}]:
        return f"each command is matched by itself, so none has the word {odd[0]!r}"
    return ""


def _unwrapped(text: str) -> str:
    return text[5:-1] if text.startswith("Bash(") and text.endswith(")") else text


def _inner(text: str) -> str:
    inner = text.strip()
    inner = "*" if inner == "Bash" else _unwrapped(inner).strip()
    return inner[:-2].rstrip() + " *" if inner.endswith(":*") else inner


@cache
def _glob(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", text)), re.DOTALL)


def _match(pattern: tuple[str, ...], words: tuple[Word, ...]) -> bool:
    """Word-wise match. `*` alone stands for any number of words; the last word may end in `*` and then stands
    for more. What a substitution makes is matched by `$(*)` alone."""
    reachable = {0}  # positions in `words` that the pattern read so far can end at
    for number, part in enumerate(pattern):
        if part.strip("*") == "":
            reachable = {
                end
                for at in reachable
                for end in range(at + (number == 0), len(words) + 1)
                if not any(word.form for word in words[at:end])
            }
        else:
            last = number == len(pattern) - 1
            open_end = last and part.endswith("*") and part not in SUBSTITUTIONS
            reachable = {at + 1 for at in reachable if at < len(words) and _fits(part, words[at], open_end)}
            if open_end:
                return any(not any(word.form for word in words[at:]) for at in reachable)
        if not reachable:
            return False
    return len(words) in reachable


def _fits(part: str, word: Word, open_end: bool) -> bool:
    """Whether all that the word can be fits one part of a pattern; several words do at an open end only."""
    if word.form or part in SUBSTITUTIONS:
        return word.form == part
    if word.is_known:
        return _glob(part).fullmatch(word.text) is not None
    plain = part.endswith("*") and part.count("*") == 1 and word.text.startswith(part[:-1])
    return plain and (open_end or word.rest is not Rest.WORDS)


# Deny patterns on characters. A token is one character, or one of these:
_ANY = object()  # any characters
_MORE = object()  # nothing, or a blank and any characters

_Token = str | object


@cache
def _tokens(parts: tuple[str, ...]) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    for number, part in enumerate(parts):
        if part in SUBSTITUTIONS or part.strip("*") == "":
            tokens.append(_ANY if number == 0 else _MORE)
            continue
        if number:
            tokens.append(" ")
        tokens += [_ANY if piece.startswith("*") else piece for piece in re.findall(r"\*+|[^*]", part)]
    return tuple(tokens)


def _characters(words: Sequence[Word]) -> list[_Token]:
    """A command's characters; `_ANY` for what is not known of it."""
    found: list[_Token] = []
    for word in words:
        if found:
            found.append(" ")
        found += word.text
        if not word.is_known:
            found.append(_ANY)
    return found


def _meets(pattern: Sequence[_Token], command: Sequence[_Token]) -> bool:
    """Whether the pattern matches some text that the command can be."""
    end = len(pattern)
    states = _closed({0}, pattern)
    for one in command:
        if not states:
            return False
        if one is _ANY:
            # some text leads from here to every later place, and into every later `_MORE`
            least = min(at if at <= end else at - end - 1 for at in states)
            inside = {at + end + 1 for at in range(least, end) if pattern[at] is _MORE}
            states = inside | set(range(least, end + 1))
            continue
        following = set()
        for at in states:
            token = pattern[at] if at < end else None
            if token is _ANY:
                following.add(at)
            elif token is _MORE:
                if one == " ":
                    following.add(at + end + 1)  # inside of it: any characters follow
            elif token == one:
                following.add(at + 1)
            if at > end:
                following.add(at)
        states = _closed(following, pattern)
    return end in states


def _closed(states: set[int], pattern: Sequence[_Token]) -> set[int]:
    """Also the states that are reached without a character. Beyond the end: inside of a `_MORE`."""
    end = len(pattern)
    found: set[int] = set()
    todo = list(states)
    while todo:
        at = todo.pop()
        if at in found:
            continue
        found.add(at)
        if at > end:
            todo.append(at - end)
        elif at < end and (pattern[at] is _ANY or pattern[at] is _MORE):
            todo.append(at + 1)
    return found
