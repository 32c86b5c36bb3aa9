"""What of a request may pass: endpoint, headers, and every part of the body that makes the API do more
than talk.
 Pure. Everything is an allow-list, because the inside of a container is hostile and the operator's
credential is added to what passes: no tool that runs on the API's side, no address or file that the API
would fetch, no model of another price, no unknown field. The spec's `tools.server` opens such things one
by one, by the very name that the refusal tells (`web_search` stands for every `web_search_YYYYMMDD`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reconciler.gateway.usage import NAME_LIMIT
from reconciler.store.ledger import Closure

BODY_LIMIT_BYTES = 32 * 1024 * 1024
# Each of these characters may become a Python object of some hundred bytes.
OBJECTS_LIMIT = 1_000_000
HEADER_LIMIT = 4096
# The API puts a text of its own before a request with tools: between 159 and 530 tokens for the models that
# its documentation has figures of. Twice that, for those that it has none of.
ADDED_TOKENS = 1024
# The documented most of one picture is (width * height) / 750 after scaling to 1568 pixels; models of high
# resolution take up to three times as much.
PICTURE_TOKENS = 5000

# What Claude Code 2.1.330 sends of its own accord, with every model and setting that the hive offers.
CLI_BETAS = frozenset({
    "advanced-tool-use-2025-11-20",
    "claude-code-20250219",
    "context-1m-2025-08-07",
    "context-management-2025-06-27",
    "effort-2025-11-24",
    "interleaved-thinking-2025-05-14",
    "mid-conversation-tool-changes-2026-07-01",
    "per-turn-control-2026-07-01",
    "thinking-display-updates-2026-08-18",
    "thinking-token-count-2026-05-13",
    "token-counting-2024-11-01",
})  # fmt: skip
_FIELDS = frozenset({
    "context_management", "max_tokens", "messages", "metadata", "model", "output_config", "stop_sequences",
    "stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
})  # fmt: skip
_BLOCKS = frozenset({
    "document", "image", "redacted_thinking", "search_result", "text", "thinking", "tool_addition",
    "tool_reference", "tool_removal", "tool_result", "tool_use",
})  # fmt: skip
_SOURCES = frozenset({"base64", "content", "text"})
_HEADERS = ("accept", "anthropic-version", "content-type", "user-agent", "x-app", "x-claude-code-session-id")
_HEADER_PREFIXES = ("x-stainless-",)
_VERSIONED = re.compile(r"_[0-9]{8}$")


Reason = Literal["budget", "model", "request", "credential", "busy", "upstream"]


class Refusal(Exception):  # noqa: N818 - it says what it is
    """The request is answered by the gateway itself: HTTP status, the API's error type, and words.

    `reason` is for the host, and so are `closure` (no more is served today) and `model`, the one that was
    named and is not allowed. The CLI gives up at once on 403; on 400 it tries again without its newest
    features.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        reason: Reason = "request",
        closure: Closure | None = None,
        model: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.reason = reason
        self.closure = closure
        self.model = model


@dataclass(frozen=True, slots=True)
class Rules:
    """What one agent may use: ids of models, and names of server-side things."""

    models: frozenset[str]
    server: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Screened:
    """What of a body matters further on. `max_tokens` is 0 where the endpoint has none; `thinking_tokens`
    is what the API wants to be less than it. `input_tokens` is no less than what the API will count, None
    where only the API knows."""

    model: str
    max_tokens: int
    stream: bool
    thinking_tokens: int
    long_cache: bool
    input_tokens: int | None


def screen(raw: bytes, rules: Rules, *, counting: bool) -> Screened:
    """Check a body; `counting` is the endpoint count_tokens. Raises `Refusal`."""
    body = _parsed(raw)
    model = body.get("model")
    if not isinstance(model, str) or model not in rules.models:
        allowed = ", ".join(sorted(rules.models)) or "none"
        told = f"the model {_short(model)} is not allowed here; allowed: {allowed}"
        named = model[:NAME_LIMIT] if isinstance(model, str) else ""
        raise Refusal(403, "permission_error", told, reason="model", model=named)
    _only("the field", body, _FIELDS, rules.server)
    _check_tools(body.get("tools"), rules.server)
    _check_edits(body.get("context_management"), rules.server)
    _check_blocks(body.get("system"), rules.server)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise _malformed("messages: a list is required")
    for message in messages:
        if not isinstance(message, dict):
            raise _malformed("messages: each is an object")
        _check_blocks(message.get("content"), rules.server)
    return Screened(
        model=model,
        max_tokens=0 if counting else _limit(body.get("max_tokens")),
        stream=body.get("stream") is True,
        thinking_tokens=_thinking(body.get("thinking")),
        long_cache=_is_long_cached(raw, body),
        input_tokens=_input_bound(raw, body, rules.server),
    )


def _is_long_cached(raw: bytes, body: Mapping[str, Any]) -> bool:
    """Whether anything may be written to the cache for an hour, which costs more. The text is looked at, and
    where escapes may hide the word in it, the text without them."""
    return b'"1h"' in raw or (b"\\u" in raw and '"1h"' in json.dumps(body))


def _input_bound(raw: bytes, body: Mapping[str, Any], server: frozenset[str]) -> int | None:
    """No token is shorter than a byte, and what the API adds to each message is less than its JSON. Beside
    that it adds a text of its own for tools and for thinking, and pictures are worth more than their bytes.
    What a document or a tool on the API's side comes to is the API's own guess: None."""
    pictures = 0
    waiting = [message.get("content") for message in body["messages"]]
    while waiting:
        content = waiting.pop()
        for block in content if isinstance(content, list) else ():
            if block.get("type") == "document" and _word((block.get("source") or {}).get("type")) != "text":
                return None
            pictures += block.get("type") == "image"
            waiting.append(block.get("content"))
    tools = body.get("tools") or ()
    if server and any(tool.get("type", "custom") != "custom" for tool in tools):
        return None
    added = ADDED_TOKENS if tools or body.get("thinking") is not None else 0
    return len(raw) + added + pictures * PICTURE_TOKENS


def forwarded_headers(headers: Iterable[tuple[str, str]], rules: Rules) -> dict[str, str]:
    """The headers that go on, credentials never among them. Raises `Refusal` for a beta that is not
    allowed."""
    passed: dict[str, str] = {}
    betas: list[str] = []
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == "anthropic-beta":
            betas += [beta.strip() for beta in value.split(",") if beta.strip()]
        elif name == "content-encoding":
            raise Refusal(415, "invalid_request_error", "a compressed request is not taken")
        elif (name in _HEADERS or name.startswith(_HEADER_PREFIXES)) and len(value) <= HEADER_LIMIT:
            passed[name] = value
    for beta in betas:
        if beta not in CLI_BETAS and beta not in rules.server:
            raise _closed(f"the beta {_short(beta)}", beta)
    if betas:
        passed["anthropic-beta"] = ",".join(dict.fromkeys(betas))
    return passed


def with_max_tokens(raw: bytes, max_tokens: int) -> bytes:
    """The same body with a smaller `max_tokens`."""
    return json.dumps({**json.loads(raw), "max_tokens": max_tokens}, separators=(",", ":")).encode()


def for_counting(raw: bytes) -> bytes:
    """The body of a request to count_tokens that asks how large this one is."""
    counted = ("messages", "model", "system", "thinking", "tool_choice", "tools")
    return json.dumps({key: value for key, value in json.loads(raw).items() if key in counted}).encode()


def _parsed(raw: bytes) -> dict[str, Any]:
    if raw.count(b"{") + raw.count(b"[") > OBJECTS_LIMIT:
        raise Refusal(413, "request_too_large", "the body has too many parts")
    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the body is no JSON that can be taken: {_short(str(error))}") from None
    if not isinstance(body, dict):
        raise _malformed("the body is no JSON object")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key is given twice: the API might read the other one than we checked."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_tools(tools: Any, server: frozenset[str]) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _malformed("tools: a list is required")
    for tool in tools:
        if not isinstance(tool, dict):
            raise _malformed("tools: each is an object")
        kind = tool.get("type", "custom")
        if kind != "custom" and not _named(kind, server):
            raise _closed(f"the tool type {_short(kind)}", kind)


def _check_edits(management: Any, server: frozenset[str]) -> None:
    """Context management may drop old parts; a compaction on the API's side is another request that costs."""
    if management is None:
        return
    edits = management.get("edits", []) if isinstance(management, dict) else None
    if not isinstance(edits, list):
        raise _malformed("context_management.edits: a list is required")
    for edit in edits:
        kind = edit.get("type") if isinstance(edit, dict) else None
        if not (isinstance(kind, str) and kind.startswith("clear_")) and not _named(kind, server):
            raise _closed(f"the context edit {_short(kind)}", kind)


def _check_blocks(content: Any, server: frozenset[str]) -> None:
    """Content is a text or a list of blocks; results and documents hold blocks again."""
    waiting = [content]
    while waiting:
        blocks = waiting.pop()
        if blocks is None or isinstance(blocks, str):
            continue
        if not isinstance(blocks, list):
            raise _malformed("content: a text or a list of blocks is required")
        for block in blocks:
            if not isinstance(block, dict):
                raise _malformed("content: each block is an object")
            kind = _word(block.get("type"))
            if kind not in _BLOCKS and not _named(kind, server):
                raise _closed(f"the content block {_short(kind)}", kind)
            _check_source(kind, block, server)
            if kind == "tool_result":
                waiting.append(block.get("content"))
            elif kind == "document" and isinstance(block.get("source"), dict):
                waiting.append(block["source"].get("content"))


def _check_source(kind: str, block: Mapping[str, Any], server: frozenset[str]) -> None:
    """Nothing that the API would fetch, from the internet or from the operator's own files there."""
    if kind in {"image", "document"}:
        source = block.get("source")
        origin = _word(source.get("type")) if isinstance(source, dict) else ""
        if origin not in _SOURCES and not _named(origin, server):
            raise _closed(f"the {kind} source {_short(origin)}", origin)
    elif kind in {"tool_addition", "tool_removal"}:
        tool = block.get("tool")
        if not isinstance(tool, dict) or tool.get("type") != "tool_reference":
            raise _malformed(f"{kind}: only a reference to a tool of the request is taken")


def _only(what: str, found: Mapping[str, Any], known: frozenset[str], server: frozenset[str]) -> None:
    for name in found:
        if name not in known and not _named(name, server):
            raise _closed(f"{what} {_short(name)}", name)


def _named(kind: Any, server: frozenset[str]) -> bool:
    """Whether the spec names it, as it is or without its date."""
    return isinstance(kind, str) and (kind in server or _VERSIONED.sub("", kind) in server)


def _word(value: Any) -> str:
    """A type's name; anything but a text is none."""
    return value if isinstance(value, str) else ""


def _limit(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _malformed("max_tokens: a number is required")
    return value


def _thinking(value: Any) -> int:
    tokens = value.get("budget_tokens", 0) if isinstance(value, dict) else 0
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0 else 0


def _malformed(why: str) -> Refusal:
    return Refusal(400, "invalid_request_error", why)


def _closed(what: str, name: Any) -> Refusal:
    hint = f"; the agent's tools.server does not name {_short(name)}" if isinstance(name, str) else ""
    return Refusal(400, "invalid_request_error", f"{what} is closed by the gateway{hint}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return ascii(text if len(text) <= 80 else text[:79] + "…")
