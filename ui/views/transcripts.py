"""A transcript as rows: one per tool call with its outcome, rules between turns, messages to people apart.

Told by the container: every field may be missing, of another type, or hostile, so each is read through
`_text` and friends. Rows carry the id of their first line as key; a call that waits for its result is `open`,
and the page asks for the lines from the first open row again, so that the result joins its call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from reconciler.control.models import TranscriptLine
from ui.filters import first_line

Kind = Literal[
    "begin", "end", "prompt", "text", "thinking", "tool", "speech", "refusal", "note", "stderr", "rule"
]
Outcome = Literal["", "open", "ok", "failed", "refused", "none"]

TEXT_MAX = 6000
ARGUMENT_MAX = 240
NUMBER_MAX = 1e12
OWN = "mcp__hyperhive__"
PROMPT = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


@dataclass(frozen=True, slots=True)
class Part:
    """A folded piece of a row: `kind` is plain, add or del."""

    kind: str
    label: str
    text: str


@dataclass(slots=True)
class Row:
    """One row. `glyph`, `title` and `argument` stand in its line, `parts` open below it."""

    key: int
    turn: int
    at: str
    kind: Kind
    glyph: str = ""
    title: str = ""
    argument: str = ""
    text: str = ""
    outcome: Outcome = ""
    duration_ms: float | None = None
    reason: str = ""
    to: str = ""
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class View:
    """Rows in order, and `cursor`: the line after which the next ones are to be asked for."""

    rows: list[Row]
    cursor: int


def view(lines: Sequence[TranscriptLine], *, after: int = 0) -> View:
    """Rows of `lines`; `after` is the cursor when there are none."""
    builder = _Builder()
    for line in lines:
        builder.take(line)
    rows = builder.rows
    first_open = next((row.key for row in rows if row.outcome == "open"), None)
    if first_open is not None:
        return View(rows, first_open - 1)
    return View(rows, max((line.id for line in lines), default=after))


class _Builder:
    """Rows in the making: calls wait here for their results."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._calls: dict[str, Row] = {}

    def take(self, line: TranscriptLine) -> None:
        """Add the line to the rows. `context` feeds the bar of the head; unknown kinds are of a newer
        harness."""
        take = self._TAKE.get(line.kind)
        if take is not None:
            take(self, line)

    def _begin(self, line: TranscriptLine) -> None:
        self._close()
        what = _PURPOSES.get(_text(line.data, "purpose")) or _messages(line.data)
        self._add(line, "begin", title=_text(line.data, "model"), argument=what)

    def _end(self, line: TranscriptLine) -> None:
        self._close()
        outcome = _text(line.data, "outcome") or "ended"
        row = self._add(line, "end", title=outcome, text=_text(line.data, "error"))
        row.duration_ms = _number(line.data, "duration_ms")
        row.outcome = "ok" if outcome == "ok" else "none" if outcome == "cancelled" else "failed"
        row.reason, row.argument = _text(line.data, "hint"), _text(line.data, "until")
        aside = line.data.get("set_aside")
        row.to = ", ".join(str(one) for one in aside[:20]) if isinstance(aside, list) else ""

    def _servers(self, line: TranscriptLine) -> None:
        told = line.data.get("servers")
        for one in told if isinstance(told, list) else []:
            if isinstance(one, dict) and _text(one, "status") not in {"connected", "pending"}:
                text = f"the MCP server {_text(one, 'name')} is {_text(one, 'status')}: {_text(one, 'error')}"
                self._add(line, "note", text=first_line(text.removesuffix(": "), 400))

    def _prompt(self, line: TranscriptLine) -> None:
        self._add(line, "prompt", glyph=PROMPT, title="woken", parts=[_part("", _text(line.data, "text"))])

    def _prose(self, line: TranscriptLine) -> None:
        text = _text(line.data, "text")
        row = self._add(line, _PROSE.get(line.kind, "text"), text=text[:TEXT_MAX])
        row.reason = f"{len(text) - TEXT_MAX:,} more characters" if len(text) > TEXT_MAX else ""

    def _rule(self, line: TranscriptLine) -> None:
        error = _text(line.data, "error")
        if line.kind == "model":
            self._add(line, "rule", title=f"model {_text(line.data, 'model')}")
        elif error:
            self._add(line, "stderr", text=first_line(f"{_RULES[line.kind]}: not done: {error}", 400))
        elif not line.data.keys() & {"after_tokens", "after_bytes"}:
            self._add(line, "rule", title="being compacted", argument=_change(line.data))
        else:
            self._add(line, "rule", title=_RULES[line.kind], argument=_change(line.data))

    def _failure(self, line: TranscriptLine) -> None:
        if line.data.get("is_error") is True:
            reason = _text(line.data, "terminal_reason") or _text(line.data, "subtype") or "the turn failed"
            self._add(line, "stderr", text=first_line(f"{reason}: {_text(line.data, 'text')}", 400))

    def _add(self, line: TranscriptLine, kind: Kind, **values: Any) -> Row:
        row = Row(key=line.id, turn=line.turn, at=line.at, kind=kind, **values)
        self.rows.append(row)
        return row

    def _call(self, line: TranscriptLine) -> None:
        name, given = _text(line.data, "name"), line.data.get("input")
        arguments = given if isinstance(given, dict) else {}
        if name in _SPEECH:
            row = self._add(line, "speech", glyph="→", title=name.removeprefix(OWN))
            row.to = _text(arguments, "to") or ("operator" if name.endswith("ask_operator") else "")
            row.text = (_text(arguments, "body") or _text(arguments, "question"))[:TEXT_MAX]
        else:
            row = self._add(line, "tool", glyph=_glyph(name), title=_title(name))
            row.argument = first_line(_argument(name, arguments), ARGUMENT_MAX)
            row.parts = _details(name, arguments, row.argument)
        row.outcome = "open"
        self._calls[_text(line.data, "id")] = row

    def _result(self, line: TranscriptLine) -> None:
        row = self._calls.pop(_text(line.data, "id"), None)
        text, failed = _text(line.data, "text"), line.data.get("is_error") is True
        if row is None:  # its call is on an older page, or was never told
            row = self._add(line, "tool", glyph="·", title="result", argument=first_line(text, ARGUMENT_MAX))
        row.duration_ms = _number(line.data, "duration_ms")
        if row.outcome != "refused":
            row.outcome = "failed" if failed else "ok"
            row.reason = first_line(text, ARGUMENT_MAX) if failed else ""
        if text and (row.kind == "tool" or failed):
            row.parts = [*row.parts, _part("result", text)]

    def _refusal(self, line: TranscriptLine) -> None:
        tool, reason = _text(line.data, "tool"), _text(line.data, "reason")
        command = _text(line.data, "command")
        waiting = [row for row in self._calls.values() if row.kind == "tool" and row.title == _title(tool)]
        same = [row for row in waiting if not command or row.argument == first_line(command, ARGUMENT_MAX)]
        if same:
            same[-1].outcome, same[-1].reason, same[-1].glyph = "refused", reason, "▲"
            return
        self._add(
            line,
            "refusal",
            glyph="▲",
            title=_title(tool),
            argument=first_line(command, ARGUMENT_MAX),
            reason=reason,
        )

    def _close(self) -> None:
        """A turn's edge: calls without a result will not get one any more."""
        for row in self._calls.values():
            row.outcome = "none" if row.outcome == "open" else row.outcome
        self._calls.clear()

    _TAKE: ClassVar[dict[str, Callable[[_Builder, TranscriptLine], None]]] = {
        "turn_begin": _begin,
        "turn_end": _end,
        "mcp": _servers,
        "prompt": _prompt,
        "text": _prose,
        "thinking": _prose,
        "note": _prose,
        "stderr": _prose,
        "model": _rule,
        "compaction": _rule,
        "notes": _rule,
        "result": _failure,
        "tool_call": _call,
        "tool_result": _result,
        "policy_refusal": _refusal,
    }


_PURPOSES = {"compaction": "to sum the conversation up", "notes": "to rewrite the notes"}
_RULES = {"compaction": "compacted", "notes": "notes rewritten"}
_PROSE: dict[str, Kind] = {"thinking": "thinking", "note": "note", "stderr": "stderr"}
_SPEECH = frozenset({f"{OWN}send", f"{OWN}ask_operator"})
_GLYPHS = {"Bash": "$", "Read": "▤", "Edit": "✎", "Write": "✎", "NotebookEdit": "✎", "Glob": "⌕", "Grep": "⌕"}
_KEY_ARGUMENT = {
    "Bash": "command",
    "Read": "file_path",
    "Edit": "file_path",
    "Write": "file_path",
    "NotebookEdit": "notebook_path",
    "Glob": "pattern",
    "Grep": "pattern",
}
_OWN_ARGUMENT = ("name", "agent", "reason", "text", "seconds", "wait_seconds")


def _glyph(name: str) -> str:
    return _GLYPHS.get(name, "⬡" if name.startswith(OWN) else "⚙")


def _title(name: str) -> str:
    return name.removeprefix(OWN).removeprefix("mcp__").replace("__", " · ") or "tool"


def _argument(name: str, arguments: dict[str, Any]) -> str:
    key = _KEY_ARGUMENT.get(name)
    if key is not None:
        return _text(arguments, key)
    for candidate in _OWN_ARGUMENT:
        if candidate in arguments:
            return _text(arguments, candidate)
    return _json(arguments) if arguments else ""


def _details(name: str, arguments: dict[str, Any], shown: str) -> list[Part]:
    if name == "Edit":
        pairs = (("del", "old_string"), ("add", "new_string"))
        return [Part(kind, "", _text(arguments, key)[:TEXT_MAX]) for kind, key in pairs if key in arguments]
    if name == "Write":
        return [Part("add", "", _text(arguments, "content")[:TEXT_MAX])]
    whole = _argument(name, arguments)
    rest = {key: value for key, value in arguments.items() if key != _KEY_ARGUMENT.get(name)}
    parts = [_part("", whole)] if whole != shown and name in _KEY_ARGUMENT else []
    return (
        [*parts, _part("arguments", _json(rest))]
        if rest and len(_json(rest)) > 2 and whole != _json(rest)
        else parts
    )


def _part(label: str, text: str) -> Part:
    more = len(text) - TEXT_MAX
    return Part("plain", label, f"{text[:TEXT_MAX]}\n… {more:,} more characters" if more > 0 else text)


def _json(value: Any) -> str:
    try:
        return json.dumps(
            value, ensure_ascii=False, indent=2 if isinstance(value, dict) and len(value) > 1 else None
        )
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < NUMBER_MAX else None


def _messages(data: dict[str, Any]) -> str:
    value = data.get("messages")
    number = len(value) if isinstance(value, list) else value if isinstance(value, int) else None
    if number is None:
        return ""
    return f"{number} message{'s' * (number != 1)}" if number else "no message"


def _change(data: dict[str, Any]) -> str:
    """Tokens of a compaction, bytes of notes: before → after."""
    unit = "KiB" if "before_bytes" in data else "k"
    by = 1024 if unit == "KiB" else 1000
    keys = ("before_bytes", "after_bytes") if unit == "KiB" else ("before_tokens", "after_tokens")
    numbers: Iterable[float | None] = (_number(data, key) for key in keys)
    space = " " if unit == "KiB" else ""
    return " → ".join(f"{number / by:.0f}{space}{unit}" for number in numbers if number is not None)
