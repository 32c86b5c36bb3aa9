"""Settings before → after as people read them: JSON text becomes words, lists become what was added and
removed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from reconciler.control.models import Change

Mark = Literal["same", "added", "removed", "changed"]
ITEMS_MAX = 60
ITEM_CHARS_MAX = 400


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a cell: its text and whether this change brought or took it."""

    text: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of settings. Empty cells mean that the setting was or will be absent."""

    option: str
    before: tuple[Item, ...]
    after: tuple[Item, ...]
    risk: str
    reason: str


def row(change: Change) -> Row:
    """The line for one change."""
    before, after = _decoded(change.before), _decoded(change.after)
    if isinstance(before, list) or isinstance(after, list):
        old, new = _texts(before), _texts(after)
        left = _items(before, old, new, "removed")
        right = _items(after, new, old, "added")
    else:
        left = tuple(Item(text, "removed") for text in _texts(before))
        right = tuple(Item(text, "added") for text in _texts(after))
    return Row(option_name(change.option), left, right, str(change.risk), change.reason)


def _items(value: Any, mine: list[str], other: list[str], mark: Mark) -> tuple[Item, ...]:
    if value == []:
        return (Item("[ ]", "same"),)
    return tuple(Item(text, "same" if text in other else mark) for text in mine)


def option_name(option: str) -> str:
    """Without the prefix that all of them share."""
    return option.removeprefix("hyperhive.")


def added(change: Change) -> list[str]:
    """Items of a list that the change adds."""
    old = _texts(_decoded(change.before))
    return [text for text in _texts(_decoded(change.after)) if text not in old]


def removed(change: Change) -> list[str]:
    """Items of a list that the change takes away."""
    new = _texts(_decoded(change.after))
    return [text for text in _texts(_decoded(change.before)) if text not in new]


def single(text: str | None) -> str | None:
    """The one value of a setting that is no list; None when absent."""
    values = _texts(_decoded(text))
    return ", ".join(values) if values else None


def is_list(change: Change) -> bool:
    return isinstance(_decoded(change.before), list) or isinstance(_decoded(change.after), list)


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # not JSON: shown as it is


def _texts(value: Any) -> list[str]:
    match value:
        case None:
            return []
        case list():
            shown = [_text(item) for item in value[:ITEMS_MAX]]
            more = len(value) - ITEMS_MAX
            return [*shown, f"… and {more} more"] if more > 0 else shown
        case _:
            return [_text(value)]


def _text(value: Any) -> str:
    match value:
        case str():
            text = value or '""'
        case bool():
            text = "true" if value else "false"
        case dict() | list():
            text = json.dumps(value, indent=2, ensure_ascii=False)
        case _:
            text = str(value)
    return text if len(text) <= ITEM_CHARS_MAX else f"{text[:ITEM_CHARS_MAX]}…"
