"""Text for templates: foreign characters made visible, times, amounts. Pure; `now` is always given.

`visible` is applied to every printed string by the environment (`render.environment`), so that no template
can forget.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from datetime import UTC, datetime

_KEPT = {"\n", "\t"}
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5"  # letters and marks that show as nothing
_CONTROLS = re.findall(
    r"\w+",
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI "
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US",
)


def _named(code: int) -> str:
    return f"⟪{_CONTROLS[code]}⟫" if code < len(_CONTROLS) else f"⟪U+{code:04X}⟫"


# Control, format (all bidirectional ones among them), separators that break lines, lone surrogates, tags.
_HIDDEN = {
    code: _named(code)
    for code in range(sys.maxunicode + 1)
    if (unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or chr(code) in _FILLERS)
    and chr(code) not in _KEPT
}
_JOINER = "\u200d"
_HAS_HIDDEN = re.compile(f"[{re.escape(''.join(map(chr, _HIDDEN)))}]")
# A joiner between pictographs makes one picture of two; anywhere else it hides.
_PICTOGRAPH = re.compile(
    r"(?<=[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff])\u200d(?=[\u2600-\u27bf\U0001f300-\U0001faff])"
)


def visible(text: str) -> str:
    """`text` with every character that shows as nothing, moves the cursor or turns the direction made
    visible: control characters by their names (⟪ESC⟫), others as ⟪U+202E⟫. Line breaks and tabs stay; CRLF
    becomes LF."""
    if not _HAS_HIDDEN.search(text):
        return text
    parts = _PICTOGRAPH.split(text.replace("\r\n", "\n"))
    return _JOINER.join(part.translate(_HIDDEN) for part in parts)


def first_line(text: str, limit: int = 160) -> str:
    """The first line that is not blank, cut with an ellipsis."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, with how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def instant(text: str) -> datetime:
    """An RFC 3339 time, aware. A time without a zone is taken as UTC. ValueError when it is none."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def absolute(text: str) -> str:
    """`2026-11-22 21:00:12 UTC`, or the text itself when it is no time."""
    try:
        return instant(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return text


def time_of_day(text: str) -> str:
    """`21:00:12`."""
    try:
        return instant(text).astimezone(UTC).strftime("%H:%M:%S")
    except ValueError:
        return text


def span(seconds: float) -> str:
    """A duration in its greatest unit: `now`, `42 s`, `4 min`, `3 h`, `2 d`. The script in time.js says the
    same."""
    s = max(0, int(seconds))
    if s < 5:
        return "now"
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min"
    return f"{s // 3600} h" if s < 172800 else f"{s // 86400} d"


def clock(seconds: float) -> str:
    """A running counter: `0:42`, `12:07`, `3:05:10`."""
    s = max(0, int(seconds))
    hours, minutes, rest = s // 3600, s % 3600 // 60, s % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def relative(text: str, mode: str, now: datetime) -> str:
    """A time against `now`. Modes: `ago` (4 min ago), `age` (4 min), `clock` (0:42, up), `until` (03:10,
    down), `time` (21:00:12)."""
    try:
        past = (now - instant(text)).total_seconds()
    except ValueError:
        return text
    match mode:
        case "ago":
            short = span(past)
            return "just now" if short == "now" else f"{short} ago"
        case "age":
            return span(past)
        case "clock":
            return clock(past)
        case "until":
            return clock(-past).zfill(5)
        case _:
            return time_of_day(text)


def duration(milliseconds: float) -> str:
    """How long something took: `34 ms`, `1.2 s`, `48 s`, `2:05`."""
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else clock(seconds)


def usd(amount: float) -> str:
    """`$1.20`; four digits below a cent, so that small sums are not zero."""
    return f"${amount:.4f}" if 0 < amount < 0.01 else f"${amount:,.2f}"


def tokens(count: int) -> str:
    """`950`, `12.3k`, `1.2M`."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 999_950 else f"{count / 1_000_000:.1f}M"


def percent(used: int | None, window: int | None) -> int | None:
    """Whole percent, 0 to 100; None when either is unknown."""
    if used is None or not window:
        return None
    return max(0, min(100, round(100 * used / window)))


def short(commit: str | None) -> str:
    """The first ten digits of a commit id."""
    return commit[:10] if commit else "none"


def person(actor: str) -> str:
    """Who acted, for people: `operator:alice` is alice; others (`unix:root`, `agent:smith`) as they are."""
    return actor.removeprefix("operator:")


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {one if number == 1 else many or one + 's'}"
