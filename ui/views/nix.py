"""Colours for lines of Nix in a diff: comments, strings, words of the language.

A single linear pass per line instead of a highlighter: the input is an agent's, and a general lexer's regular
expressions can be made to take for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<comment>\#.*)"
    r'|(?P<string>"(?:[^"\\]|\\.)*"?)'
    r"|(?P<word>\b(?:true|false|null|let|in|with|inherit|rec|if|then|else|import|assert|or)\b(?![-'\w]))"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text; `kind` is a class or empty."""

    kind: str
    text: str


def spans(line: str, *, path: str) -> list[Span]:
    """The runs of one line; a single plain one for files that are no Nix."""
    if not path.endswith(".nix"):
        return [Span("", line)]
    found: list[Span] = []
    end = 0
    for match in _TOKEN.finditer(line):
        if match.start() > end:
            found.append(Span("", line[end : match.start()]))
        found.append(Span(match.lastgroup or "", match.group()))
        end = match.end()
    if end < len(line) or not found:
        found.append(Span("", line[end:]))
    return found
