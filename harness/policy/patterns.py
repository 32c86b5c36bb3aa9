"""Shell patterns of the spec (`git *`, `git:*`, `Bash(git *)`, exact), matched against a command's literal
words. Pure.

An allow pattern is matched word by word, so that a quoted argument can never pass for two words. A deny
pattern is also matched against the words joined by blanks: what is denied may be a little more than what was
meant, never less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern as written, and its words. A last word that ends in `*` stands for itself and all words
    behind it."""

    text: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads one pattern; the grammar is that of Claude Code's `Bash(...)` rules."""
        inner = text.strip()
        if inner == "Bash":
            inner = "*"
        elif inner.startswith("Bash(") and inner.endswith(")"):
            inner = inner[5:-1].strip()
        if inner.endswith(":*"):
            inner = inner[:-2].rstrip() + " *"
        return cls(text=text, words=tuple(inner.split()))

    def allows(self, words: Sequence[str]) -> bool:
        """Whether the words of one simple command match, word by word."""
        return bool(self.words) and _match(self.words, tuple(words))

    def denies(self, words: Sequence[str]) -> bool:
        """Whether this, as a deny pattern, catches the command; its name counts without its folder, too."""
        if not self.words:
            return False
        forms = [tuple(words)]
        if "/" in words[0]:
            forms.append((words[0].rsplit("/", 1)[1], *words[1:]))
        whole = " ".join(self.words)
        return any(
            _match(self.words, form) or _glob(whole).fullmatch(" ".join(form)) is not None for form in forms
        )

    def names(self, word: str) -> bool:
        """Whether the pattern spells out `word`; `--option=*` spells out the option with any value."""
        return any(
            part == word or (part.endswith("=*") and word.startswith(part[:-1])) for part in self.words
        )


@cache
def _glob(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", text)), re.DOTALL)


def _match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Word-wise match. `*` alone stands for any number of words; the last word may end in `*` and then stands
    for more."""
    reachable = {0}  # positions in `words` that the pattern read so far can end at
    for number, part in enumerate(pattern):
        last = number == len(pattern) - 1
        if part.strip("*") == "":
            # `*` as the command's name stands for one word at least; elsewhere for none or more
            least = min(reachable) + (1 if number == 0 else 0)
            reachable = set(range(least, len(words) + 1))
        else:
            following = {at + 1 for at in reachable if at < len(words) and _glob(part).fullmatch(words[at])}
            if last and part.endswith("*"):
                return bool(following)
            reachable = following
        if not reachable:
            return False
    return len(words) in reachable
