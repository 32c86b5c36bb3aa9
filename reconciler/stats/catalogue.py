"""Every figure: its key, unit, how it is put together over time and over agents, and what it means. Data
only.

Docs, answers of the API, the words of pages and checks of parameters are made from this table. Rows of the
database have `of` as their key: some keys are made from the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reconciler.errors import OperatorError

HIVE = "hive"
"""Stands for the agent in rows of the whole hive."""

TOOL_PREFIX = "tool_"
TOOL_OTHER = "other"
TOOLS_MAX = 64
"""Tools per agent that have a key of their own; what further ones are called, counts as `tool_other`."""

TOOL_NAME_MAX = 48
ALL_TOOLS = "tool_*"


class Aggregate(StrEnum):
    """How a bucket's value is made of the rows in it."""

    SUM = "sum"
    PER_MINUTE = "per minute"
    PER_TURN = "per turn"
    P50 = "p50"
    P95 = "p95"
    LAST = "last"
    MAX = "max"
    SINCE = "since"


class Across(StrEnum):
    """How the hive's value is made of its agents'."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    TOGETHER = "together"  # as if all rows were one agent's


class Teller(StrEnum):
    """Who knows it: how far a figure can be trusted."""

    HOST = "host"
    GATEWAY = "gateway"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Key:
    """One figure. `of`: the key of its rows. `hive_only`: of no single agent."""

    name: str
    unit: str
    aggregate: Aggregate
    across: Across
    teller: Teller
    meaning: str
    of: str = ""
    hive_only: bool = False

    @property
    def rows(self) -> str:
        """The key that its rows have."""
        return self.of or self.name


PARTIES = ("peer", "operator", "manager", "system")
_WHO = {
    "peer": "agents other than the manager",
    "operator": "the operator",
    "manager": "the manager",
    "system": "the hive itself",
}
_A, _X, _T = Aggregate, Across, Teller


def _messages(way: str, words: str) -> list[Key]:
    return [
        Key(
            f"{way}_per_turn_{party}",
            "messages/turn",
            _A.PER_TURN,
            _X.TOGETHER,
            _T.HOST,
            f"messages {words} {_WHO[party]}, by turn"
            + (" (nobody writes to it: always 0)" if (way, party) == ("sent", "system") else ""),
            of=f"{way}_{party}",
        )
        for party in PARTIES
    ]


KEYS: tuple[Key, ...] = (
    Key(
        "turns_per_min", "turns/min", _A.PER_MINUTE, _X.TOGETHER, _T.HOST,
        "turns that ended", of="turn_duration",
    ),
    Key(
        "turn_duration_p50", "s", _A.P50, _X.TOGETHER, _T.HOST,
        "half of the turns that ended took this long or less, from begin to end as the host saw them",
        of="turn_duration",
    ),
    Key(
        "turn_duration_p95", "s", _A.P95, _X.TOGETHER, _T.HOST,
        "95 of 100 turns that ended took this long or less", of="turn_duration",
    ),
    Key("exit_ok", "turns", _A.SUM, _X.SUM, _T.HOST, "turns that ended well at once"),
    Key(
        "exit_compact_retry", "turns", _A.SUM, _X.SUM, _T.CONTAINER,
        "turns that ended well after the conversation was too long, was compacted, and was tried once more",
    ),
    Key("exit_cancelled", "turns", _A.SUM, _X.SUM, _T.HOST, "turns that somebody cancelled"),
    Key("exit_failure", "turns", _A.SUM, _X.SUM, _T.HOST, "turns that ended in any other way"),
    Key(
        "since_last_turn", "s", _A.SINCE, _X.MIN, _T.HOST,
        "from the end of the last turn that ended to the end of the bucket", of="turn_duration",
    ),
    Key(
        "tool_calls_per_turn", "calls/turn", _A.PER_TURN, _X.TOGETHER, _T.CONTAINER,
        "tool calls that the harness told of, by turn", of="tool_calls",
    ),
    Key("inbox_depth", "messages", _A.LAST, _X.SUM, _T.HOST, "messages that waited, those in turns left out"),
    Key(
        "inbox_depth_max", "messages", _A.MAX, _X.MAX, _T.HOST,
        "the most that waited at any instant", of="inbox_depth",
    ),
    *_messages("received", "given to turns that were from"),
    *_messages("sent", "sent to"),
    Key(
        "approvals_pending", "proposals", _A.LAST, _X.SUM, _T.HOST,
        "proposals that waited for the operator's decision", hive_only=True,
    ),
    Key("tokens_in", "tokens", _A.SUM, _X.SUM, _T.GATEWAY, "input that no cache had or took"),
    Key("tokens_out", "tokens", _A.SUM, _X.SUM, _T.GATEWAY, "output, thinking included"),
    Key("tokens_cache_read", "tokens", _A.SUM, _X.SUM, _T.GATEWAY, "input read from the cache"),
    Key("tokens_cache_write", "tokens", _A.SUM, _X.SUM, _T.GATEWAY, "input written to the cache"),
    Key("usd", "USD", _A.SUM, _X.SUM, _T.GATEWAY, "what the model cost, by the gateway's prices"),
    Key(
        "context_used", "tokens", _A.LAST, _X.MAX, _T.GATEWAY,
        "prompt and answer of the largest request of the last turn",
    ),
    Key("notes_bytes", "B", _A.LAST, _X.SUM, _T.HOST, "size of /state/notes.md"),
    Key("restarts", "starts", _A.SUM, _X.SUM, _T.HOST, "starts of the container after its first one"),
    Key("rss", "B", _A.LAST, _X.SUM, _T.HOST, "memory of the container's processes, cached files left out"),
)  # fmt: skip

_TOOL = Key(
    ALL_TOOLS, "calls", _A.SUM, _X.SUM, _T.CONTAINER, "calls of that tool that the harness told of"
)  # fmt: skip
BY_NAME = {key.name: key for key in KEYS}
GAUGES = tuple(key.name for key in KEYS if key.aggregate is _A.LAST)

# Keys of rows that a tool's name must not be taken for.
_TAKEN = frozenset({"calls", "calls_per_turn"})
_ODD = re.compile(r"[^A-Za-z0-9_]+")
_TOOL_KEY = re.compile(r"tool_[A-Za-z0-9_]{1,48}")


def tool_word(told: str) -> str:
    """The part of a key for a tool, of what a container calls it: letters, digits and `_`, not too long."""
    word = _ODD.sub("_", told)[:TOOL_NAME_MAX].strip("_")
    return TOOL_OTHER if not word or word in _TAKEN else word


def tool_key(name: str) -> Key:
    """The key of one tool's calls."""
    return Key(
        TOOL_PREFIX + name, _TOOL.unit, _TOOL.aggregate, _TOOL.across, _TOOL.teller,
        "calls of tools without a key of their own" if name == TOOL_OTHER else f"calls of {name}",
    )  # fmt: skip


def chosen(text: str | None, tools: Sequence[str], *, of_agent: bool) -> list[Key]:
    """The keys that `text` (separated by commas) names, in its order; without it all of them, those of
    `tools` (names) at the end. `OperatorError` names what is no key."""
    everything = [key for key in KEYS if not (of_agent and key.hive_only)]
    known_tools = [tool_key(name) for name in tools]
    if text is None or not text.strip(", "):
        return everything + known_tools
    found: dict[str, Key] = {}
    for word in (part.strip() for part in text.split(",")):
        if word == ALL_TOOLS:
            found |= {key.name: key for key in known_tools}
        elif word in BY_NAME:
            if of_agent and BY_NAME[word].hive_only:
                raise OperatorError(
                    f"keys: {word} is of the whole hive, not of an agent", hint="leave `agent` out"
                )
            found[word] = BY_NAME[word]
        elif _TOOL_KEY.fullmatch(word) and word not in {"tool_calls", "tool_calls_per_turn"}:
            found[word] = tool_key(word.removeprefix(TOOL_PREFIX))
        elif word:
            raise OperatorError(
                f"keys: there is no key {word[:60]!r}",
                hint=f"one of: {', '.join(BY_NAME)}, tool_NAME, tool_*",
            )
    return list(found.values())
