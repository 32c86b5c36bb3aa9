"""Make what does not show show: hostile text as it is put before a person. Pure."""

from __future__ import annotations

import unicodedata

# Letters, marks and blanks that print as nothing, outside of the categories below.
_BLANKS = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}).union(
    range(0xFE00, 0xFE0F), range(0xE0100, 0xE01F0)
)
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def is_hidden(char: str) -> bool:
    """Whether a character prints as nothing, moves the text around it, or looks like a plain blank."""
    category = unicodedata.category(char)
    return category in _HIDDEN_CATEGORIES or ord(char) in _BLANKS or (category == "Zs" and char != " ")


def visible(text: str, keep: str = "\t") -> str:
    """The text with control, bidirectional and invisible characters shown: `␀`, `⟨U+202E⟩`; those in `keep`
    stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not is_hidden(char) else _shown(char) for char in text)


def _shown(char: str) -> str:
    point = ord(char)
    if point < 0x20:
        return chr(0x2400 + point)
    return "␡" if point == 0x7F else f"⟨U+{point:04X}⟩"
