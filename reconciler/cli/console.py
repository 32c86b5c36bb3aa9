"""What a person sees: aligned tables, relative times, colours on a terminal only, hostile text made visible.

Every text that goes through a `Console` is neutralised there, so that no caller can forget it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TextIO

from reconciler.cli.failure import Failure
from reconciler.model.text import is_hidden, visible

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}
_GAP = "  "
_BLOCK = "\t\n"  # kept where several lines are wanted
RISK_COLOURS = {"low": "dim", "elevated": "yellow", "dangerous": "red"}
# Shape, word and colour of each state, as on the web pages: never colour alone.
STATES = {
    "thinking": ("●", "blue"),
    "compacting": ("●", "blue"),
    "idle": ("○", ""),
    "napping": ("◐", ""),
    "starting": ("◌", ""),
    "parked": ("▲", "yellow"),
    "held": ("▲", "yellow"),
    "stopped": ("■", "dim"),
    "crashed": ("✕", "red"),
}


class Cell(NamedTuple):
    """A text of a table with a colour of `_COLOURS` (empty: none)."""

    text: str
    colour: str = ""


def cell(value: object, colour: str = "") -> Cell:
    """A cell of one line: line breaks become a sign, None a dash."""
    if value is None or value == "":
        return Cell("-", "dim")
    text = str(value).replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    return Cell(visible(text), colour)


def state_cell(state: str) -> Cell:
    """A state with its sign."""
    sign, colour = STATES.get(state, ("?", ""))
    return cell(f"{sign} {state}", colour)


def width_of(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in {"W", "F"} for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


def cut(text: str, width: int) -> str:
    """The beginning of `text`, at most `width` columns."""
    if width_of(text) <= width:
        return text
    kept = ""
    for char in text:
        if width_of(kept + char) >= width:
            break
        kept += char
    return f"{kept}…"


class Console:
    """Standard output and error of one command. `json`: only JSON goes to standard output."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        for stream in (self.out, self.err):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:  # a terminal that cannot show a character still gets the rest
                reconfigure(errors="backslashreplace")
        self.is_tty = self.out.isatty()
        self._status = ""
        self._colours = self.is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    # ------------------------------------------------------------------------------------------- output
    def document(self, value: object) -> None:
        """One JSON document, exactly the API's value; characters that do not show travel escaped."""
        self.out.write(f"{_safe_json(value, indent=2)}\n")
        self.out.flush()

    def json_line(self, value: object) -> None:
        """One JSON document on one line."""
        self.out.write(f"{_safe_json(value, indent=None)}\n")
        self.out.flush()

    def say(self, text: str = "", colour: str = "") -> None:
        """Lines for a person: on standard output, or on standard error when that is JSON."""
        self.status("")
        stream = self.err if self.as_json else self.out
        stream.write(f"{self.paint(visible(text, keep=_BLOCK), colour)}\n")
        stream.flush()

    def status(self, text: str) -> None:
        """One line that the next output replaces (empty: nothing); on a terminal only."""
        if text == self._status or not self.is_tty or self.as_json or os.environ.get("TERM") == "dumb":
            return
        self._status = text
        shown = cut(visible(text), max(self._terminal_width() - 1, 10)) if text else ""
        self.out.write("\r\033[K" + (self.paint(shown, "dim") if shown else ""))
        self.out.flush()

    def line(self, text: str, colour: str = "") -> None:
        """One line whatever it holds: where a line break of hostile text could pass for the next line."""
        self.say(visible(text), colour)

    def indented(self, text: str) -> None:
        """Hostile text of several lines, which cannot pass for lines of ours."""
        self.say("\n".join(f"  {line}" for line in text.split("\n")))

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Cell]], empty: str) -> None:
        """Aligned columns; the last one is cut at a terminal's width. `empty` is said when there are none."""
        lines = [list(row) for row in rows]
        if not lines:
            self.say(empty, "dim")
            return
        count = len(headers)
        widths = [max(width_of(text) for text in column) for column in self._columns(headers, lines)]
        limit = self._terminal_width() - sum(widths[:-1]) - len(_GAP) * (count - 1)
        for line in [[Cell(header, "dim") for header in headers], *lines]:
            texts = []
            for place, (text, colour) in enumerate(line):
                last = place == count - 1
                shown = cut(text, max(limit, 10)) if last else text
                padding = "" if last else " " * (widths[place] - width_of(shown))
                texts.append(self.paint(shown, colour) + padding)
            stream = self.err if self.as_json else self.out
            stream.write(_GAP.join(texts).rstrip() + "\n")

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values below each other; absent values are left out."""
        shown = [(name, str(value)) for name, value in pairs if value not in {None, ""}]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            lines = value.replace("\n", "\n" + " " * (width + len(_GAP)))
            self.say(f"{name.ljust(width)}{_GAP}{lines}")

    def fail(self, failure: Failure) -> None:
        """An error: its envelope on standard output for programs, words on standard error for people."""
        if self.as_json:
            self.document(failure.envelope())
        for prefix, text in (("hive: ", failure.message), ("      ", failure.hint)):
            if text:
                shown = visible(text, keep=_BLOCK).replace("\n", "\n      ")
                self.err.write(f"{prefix}{shown}\n")
        self.err.flush()

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, where colours are wanted."""
        if not colour or not self._colours:
            return text
        return f"\033[{_COLOURS[colour]}m{text}\033[0m"

    # -------------------------------------------------------------------------------------------- input
    def ask(self, question: str) -> bool:
        """Whether the person says yes. Without a terminal nobody is asked: the verb was explicit enough."""
        if not (sys.stdin.isatty() and self.err.isatty()):
            return True
        self.err.write(f"{visible(question)} [y/N] ")
        self.err.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def ask_for(self, question: str) -> str | None:
        """What the person types; None without a terminal."""
        if not (sys.stdin.isatty() and self.err.isatty()):
            return None
        self.err.write(visible(question))
        self.err.flush()
        return sys.stdin.readline().strip()

    # ------------------------------------------------------------------------------------------ helpers
    @staticmethod
    def _columns(headers: Sequence[str], lines: list[list[Cell]]) -> list[list[str]]:
        return [[header, *(line[place].text for line in lines)] for place, header in enumerate(headers)]

    def _terminal_width(self) -> int:
        if self.is_tty:
            with contextlib.suppress(OSError):
                return os.get_terminal_size(self.out.fileno()).columns
        return 100_000


def _safe_json(value: object, indent: int | None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isascii() and "\x7f" not in text:
        return text
    # Whatever does not show can stand inside strings only: the same value, escaped.
    return "".join(_escaped(char) if char != "\n" and is_hidden(char) else char for char in text)


def _escaped(char: str) -> str:
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]


def ago(instant: str | None, now: float | None = None) -> str:
    """An RFC 3339 instant as a distance from now: `12 s ago`, `in 5 min`; far ones as a date."""
    if not instant:
        return ""
    try:
        then = dt.datetime.fromisoformat(instant).timestamp()
    except ValueError:
        return instant
    distance = (time.time() if now is None else now) - then
    size = abs(distance)
    if size >= 30 * 86400:
        return instant[:10]
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if size >= seconds:
            count = int(size // seconds)
            return f"{count} {unit} ago" if distance > 0 else f"in {count} {unit}"
    return "now"


def clock(instant: str) -> str:
    """The local time of day of an instant."""
    try:
        return dt.datetime.fromisoformat(instant).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return instant


def span(seconds: float) -> str:
    """A length of time as a clock shows it: `0:07`, `1:02:03`."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def thousands(count: int | None) -> str:
    """A number of tokens, short: `1.2k`, `3.4M`."""
    if count is None:
        return ""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"


def usd(amount: float) -> str:
    """Dollars; small amounts with more digits."""
    return f"${amount:.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.4f}"
