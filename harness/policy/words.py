"""The words of a command as the policy decides on them: text that is known, and how much of it is not.
Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Rest(Enum):
    """What follows the known text of a word."""

    NOTHING = "nothing"
    DIGITS = "digits"  # one or more, then whatever: never an option
    SOMETHING = "something"  # the same word goes on
    WORDS = "words"  # one or more words, each of which begins with the known text


@dataclass(frozen=True, slots=True)
class Word:
    """One word. `form`: how a pattern must name what makes it, `$(*)` or `<(*)`; empty for the rest. `shape`:
    as it was written, for a path that is a file-name pattern."""

    text: str
    rest: Rest = Rest.NOTHING
    form: str = ""
    shape: str = ""

    @property
    def is_known(self) -> bool:
        return self.rest is Rest.NOTHING

    @property
    def shown(self) -> str:
        """For people."""
        return self.text if self.is_known else f"{self.text}…"

    def may_begin(self, text: str) -> bool:
        """Whether the word can begin with this text."""
        if self.is_known:
            return self.text.startswith(text)
        if self.rest is Rest.DIGITS and not self.text:
            return text[:1].isdigit()
        return self.text.startswith(text) or text.startswith(self.text)

    def may_be(self, text: str) -> bool:
        """Whether the word can be this text."""
        return self.text == text if self.is_known else self.may_begin(text) and text.startswith(self.text)


def known(*texts: str) -> tuple[Word, ...]:
    """Words that are known."""
    return tuple(Word(text) for text in texts)
