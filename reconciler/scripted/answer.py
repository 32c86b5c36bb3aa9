"""A reply as the Messages API sends it: one message object, or the events of a stream. Pure; ids come from
the conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.scripted.conversation import Conversation, tokens
from reconciler.scripted.play import Reply

CHUNK_CHARS = 48
_SIGNATURE = "c2NyaXB0ZWQ="  # thinking blocks are signed by the real API; here any base64 will do


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: id, content blocks, stop reason and usage (token numbers as the API names them)."""

    id: str
    model: str
    blocks: tuple[dict[str, Any], ...]
    stop_reason: str
    usage: dict[str, Any]


def answer_of(reply: Reply, conversation: Conversation) -> Answer:
    """Blocks with ids that are the same for the same conversation and step, and usage that grows with the
    conversation."""
    blocks: list[dict[str, Any]] = []
    if reply.thinking:
        blocks.append({"type": "thinking", "thinking": reply.thinking, "signature": _SIGNATURE})
    blocks += [{"type": "text", "text": text} for text in reply.texts]
    for number, (name, given) in enumerate(reply.tools):
        blocks.append(
            {
                "type": "tool_use",
                "id": _id("toolu", reply, conversation, number),
                "name": name,
                "input": given,
            }
        )
    stop = reply.step.stop_reason or ("tool_use" if reply.tools else "end_turn")
    return Answer(
        _id("msg", reply, conversation, 0),
        conversation.model,
        tuple(blocks),
        stop,
        _usage(reply, conversation, blocks),
    )


def message_of(answer: Answer) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": list(answer.blocks),
        "stop_reason": answer.stop_reason,
        "stop_sequence": None,
        "usage": answer.usage,
    }


def events_of(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of the stream: (name, data without its type)."""
    opening = {
        **message_of(answer),
        "content": [],
        "stop_reason": None,
        "usage": {**answer.usage, "output_tokens": 1},
    }
    yield "message_start", {"message": opening}
    yield "ping", {}
    for index, block in enumerate(answer.blocks):
        start, deltas = _deltas(block)
        yield "content_block_start", {"index": index, "content_block": start}
        for delta in deltas:
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    yield (
        "message_delta",
        {"delta": {"stop_reason": answer.stop_reason, "stop_sequence": None}, "usage": answer.usage},
    )
    yield "message_stop", {}


def sse(name: str, data: dict[str, Any]) -> bytes:
    """One event of the stream in bytes."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, separators=(',', ':'))}\n\n".encode()


def error_body(kind: str, message: str, request_id: str) -> dict[str, Any]:
    """The API's error object."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def request_id(conversation_key: str) -> str:
    """The id of a request, the same for a repeated one."""
    return f"req_scripted_{conversation_key[:20]}"


def _deltas(block: dict[str, Any]) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    if block["type"] == "text":
        return {"type": "text", "text": ""}, [
            {"type": "text_delta", "text": part} for part in _parts(block["text"])
        ]
    if block["type"] == "thinking":
        said = [{"type": "thinking_delta", "thinking": part} for part in _parts(block["thinking"])]
        start = {"type": "thinking", "thinking": "", "signature": ""}
        return start, [*said, {"type": "signature_delta", "signature": block["signature"]}]
    given = [
        {"type": "input_json_delta", "partial_json": part} for part in _parts(json.dumps(block["input"]))
    ]
    return {**block, "input": {}}, given


def _parts(text: str) -> list[str]:
    return [text[at : at + CHUNK_CHARS] for at in range(0, len(text), CHUNK_CHARS)]


def _usage(reply: Reply, conversation: Conversation, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What an API with prompt caching would report: the known part is read from the cache, the new part is
    written to it."""
    fresh = max(conversation.prompt_tokens - conversation.known_tokens, 1)
    usage: dict[str, Any] = {
        "input_tokens": min(4, fresh),
        "cache_creation_input_tokens": max(fresh - 4, 0),
        "cache_read_input_tokens": conversation.known_tokens,
        "output_tokens": tokens(sum(len(json.dumps(block)) for block in blocks)),
    }
    usage.update({name: value for name, value in reply.step.usage.model_dump().items() if value is not None})
    written = usage["cache_creation_input_tokens"]
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0}
    usage["service_tier"] = "standard"
    return usage


def _id(kind: str, reply: Reply, conversation: Conversation, number: int) -> str:
    text = f"{conversation.key} {reply.scenario} {reply.branch} {kind} {number}"
    return f"{kind}_scripted{hashlib.sha256(text.encode()).hexdigest()[:20]}"
