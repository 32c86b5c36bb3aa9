"""What a Messages API request says: who speaks, what was asked last, and what has been done about it since.
Pure.
 The *exchange* is what a scenario plays: the last real prompt and the assistant's turns after it. The CLI
mixes texts of its own into the conversation (reminders, resume requests, `role: system` messages); they are
told apart here, so that scenarios match on what the user wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROMPT_LIMIT = 65_536
RESULT_LIMIT = 262_144

_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
# Texts that Claude Code 2.1.330 itself puts into user messages: they continue an exchange, they do not
# start one.
_OWN_TEXTS = re.compile(
    r"\[Request interrupted by user|\[Tool call interrupted|\[Your previous response had no visible output"
    r"|Output token limit hit\. Resume directly|Your response above was (?:cut off mid-stream|stopped by)"
    r"|<local-command-|<command-(?:name|message|args)>"
)
# "You are `scout`, an agent of …", "You are scout."; not "You are a Claude agent" or "You are powered by".
_AGENT = re.compile(r"^You are (?!an? |the |powered )[`\"']?([a-z][a-z0-9-]{0,30})\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to one tool call, its text bounded to `RESULT_LIMIT` characters."""

    tool: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the assistant within the exchange, and the results of its tool calls in the order of
    the calls."""

    text: str
    results: tuple[ToolResult, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request, read.

    `agent` is the name that the system prompt gives ("You are scout"), empty if it gives none. `prompt` is
    the text that started the exchange. `turns` are the assistant's answers since. `tools` are the names
    offered. `prompt_tokens` and `known_tokens` are estimates: of the whole request, and of the part that an
    earlier request of this conversation held already. `key` names the conversation up to here: equal for a
    repeated request, different for any other.
    """

    model: str
    agent: str
    system: str
    prompt: str
    turns: tuple[Turn, ...]
    tools: frozenset[str]
    prompt_tokens: int
    known_tokens: int
    key: str

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """All tool results of the exchange, oldest first."""
        return tuple(result for turn in self.turns for result in turn.results)


def read(body: Mapping[str, Any]) -> Conversation:
    """Read a request body that has passed `problem_of`."""
    messages: Sequence[Mapping[str, Any]] = body["messages"]
    system = "\n".join(_texts(body.get("system") or ""))
    start, prompt = _exchange(messages)
    last_answer = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    fixed = _size(body.get("system")) + _size(body.get("tools"))
    return Conversation(
        model=body["model"],
        agent=_agent(system),
        system=system,
        prompt=prompt[:PROMPT_LIMIT],
        turns=_turns(messages[start + 1 :]),
        tools=frozenset(str(tool.get("name", "")) for tool in body.get("tools") or ()),
        prompt_tokens=tokens(fixed + sum(_size(message["content"]) for message in messages)),
        known_tokens=tokens(fixed + sum(_size(m["content"]) for m in messages[:last_answer]))
        if last_answer >= 0
        else 0,
        key=_key(body, system),
    )


def problem_of(body: Any) -> str:
    """Why the body is no request of the Messages API, as the real one would say it; empty if it is one."""
    if not isinstance(body, dict):
        return "the body is no JSON object"
    if not isinstance(body.get("model"), str):
        return "model: Field required"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            return f"messages.{at}.role: Input should be 'user', 'assistant' or 'system'"
        content = message.get("content")
        if not isinstance(content, str) and not (
            isinstance(content, list) and all(isinstance(b, dict) for b in content)
        ):
            return f"messages.{at}.content: Input should be a string or a list of blocks"
    if not isinstance(body.get("system", ""), (str, list)) or not isinstance(body.get("tools") or [], list):
        return "system or tools: of a wrong type"
    return ""


def tokens(characters: int) -> int:
    """A plausible number of tokens for so many characters."""
    return characters // 4 + 1


def plain(text: str) -> str:
    """The text without the reminders that the CLI adds, and without blanks around."""
    return _REMINDER.sub("", text).strip()


def _exchange(messages: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Place and text of the last user message that a user really wrote; (-1, "") if there is none."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] != "user":
            continue
        own = [
            text
            for raw in _texts(messages[at]["content"])
            if (text := plain(raw)) and not _OWN_TEXTS.match(text)
        ]
        if own:
            return at, own[-1]
    return -1, ""


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Group what follows the prompt: each run of assistant messages, with the results that came after it."""
    texts: list[list[str]] = []
    calls: list[dict[str, str]] = []
    results: list[dict[str, ToolResult]] = []
    speaker = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            if speaker != "assistant":
                texts.append([])
                calls.append({})
                results.append({})
            texts[-1] += _texts(content)
            calls[-1].update(
                {str(block.get("id")): str(block.get("name")) for block in _blocks(content, "tool_use")}
            )
        elif role == "user" and results:
            for block in _blocks(content, "tool_result"):
                call = str(block.get("tool_use_id"))
                results[-1][call] = _result(calls[-1].get(call, ""), block)
        speaker = role if role != "system" else speaker
    return tuple(
        Turn("\n".join(said), tuple(found[call] for call in made if call in found))
        for said, made, found in zip(texts, calls, results, strict=True)
    )


def _result(tool: str, block: Mapping[str, Any]) -> ToolResult:
    text = "\n".join(plain(text) for text in _texts(block.get("content") or ""))
    return ToolResult(tool, text.strip()[:RESULT_LIMIT], bool(block.get("is_error")))


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [
        str(block.get("text", ""))
        for block in content
        if isinstance(block, dict) and block.get("type") == "text"
    ]


def _blocks(content: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, list):
        yield from (block for block in content if block.get("type") == kind)


def _agent(system: str) -> str:
    found = _AGENT.search(system)
    return found[1] if found else ""


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(json.dumps(value)) if value else 0


def _key(body: Mapping[str, Any], system: str) -> str:
    """A digest of the conversation; cache marks and the streaming flag may differ between a request and its
    repetition."""
    metadata = body.get("metadata")
    said = [(message["role"], _unmarked(message["content"])) for message in body["messages"]]
    text = json.dumps([system, body["model"], metadata, said], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _unmarked(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{name: value for name, value in block.items() if name != "cache_control"} for block in content]
