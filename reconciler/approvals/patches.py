"""Git's text diff as the objects of the API: hunks and numbered lines, made visible, bounded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from reconciler.control import models as api
from reconciler.effects.protocols import RawFileDiff
from reconciler.model.text import visible

LINES_MAX = 5000
FILE_LINES_MAX = 2000
LINE_CHARACTERS = 2000

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
_SIGNS: dict[str, Literal["context", "add", "del"]] = {" ": "context", "+": "add", "-": "del"}


def file_diffs(raw: Sequence[RawFileDiff]) -> tuple[list[api.FileDiff], bool]:
    """All files, and whether something was left out for its size."""
    found, left, truncated = [], LINES_MAX, False
    for one in raw:
        diff, used, cut = _file(one, min(left, FILE_LINES_MAX))
        found.append(diff)
        left -= used
        truncated = truncated or cut
    return found, truncated


def _file(raw: RawFileDiff, budget: int) -> tuple[api.FileDiff, int, bool]:
    lines = raw.patch.split("\n")
    hunks, used, cut = _hunks(lines, budget)
    body = [line for line in lines[_first_hunk(lines) :] if line]
    notes = [
        *(["binary: not shown"] if raw.binary else []),
        *(["too large to be shown"] if raw.too_large else []),
        *(["cut: too many lines"] if cut else []),
        *_mode_notes(lines[: _first_hunk(lines)]),
    ]
    if raw.status == "renamed":
        notes.append("moved, its content is the same")
    diff = api.FileDiff(
        path=visible(raw.path),
        old_path=None if raw.old_path is None else visible(raw.old_path),
        status=raw.status,
        added=sum(line.startswith("+") for line in body),
        deleted=sum(line.startswith("-") for line in body),
        note="; ".join(notes),
        hunks=hunks,
    )
    return diff, used, cut or raw.too_large


def _first_hunk(lines: Sequence[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.startswith("@@ ")), len(lines))


def _mode_notes(header: Sequence[str]) -> Iterator[str]:
    modes = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in header if " mode " in line}
    if "old mode" in modes:
        yield f"mode {modes['old mode']} → {modes.get('new mode', '?')}"
    if "120000" in modes.values():
        yield "a symbolic link"
    elif modes.get("new file mode") == "100755":
        yield "executable"


def _hunks(lines: Sequence[str], budget: int) -> tuple[list[api.Hunk], int, bool]:
    hunks: list[tuple[str, list[api.DiffLine]]] = []
    old = new = used = 0
    cut = False
    for line in lines[_first_hunk(lines) :]:
        match = _HUNK.match(line)
        kind = _SIGNS.get(line[:1])
        cut = used >= budget and (match is not None or kind is not None)
        if cut:
            break
        if match is not None:
            hunks.append((visible(line)[:LINE_CHARACTERS], []))
            old, new = int(match[1]), int(match[2])
        elif line.startswith("\\") and hunks and hunks[-1][1]:
            last = hunks[-1][1]
            last[-1] = last[-1].model_copy(update={"text": f"{last[-1].text} (no newline at the end)"})
        elif kind is not None and hunks:
            hunks[-1][1].append(_line(kind, old, new, line[1:]))
            used += 1
            old += kind != "add"
            new += kind != "del"
    return [api.Hunk(header=header, lines=body) for header, body in hunks], used, cut


def _line(kind: Literal["context", "add", "del"], old: int, new: int, text: str) -> api.DiffLine:
    shown = visible(text)
    if len(shown) > LINE_CHARACTERS:
        shown = f"{shown[:LINE_CHARACTERS]}… ({len(text)} characters)"
    return api.DiffLine(
        kind=kind, old=None if kind == "add" else old, new=None if kind == "del" else new, text=shown
    )
