"""What every tool is made of: name, description, JSON Schema of its arguments, and a call that never
raises."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.link import Link, LinkError
from harness.programs import ProgramError
from harness.trees import TreeError, Trees

TOOL_S = 20.0
_UNSENDABLE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Status:
    """What an agent may know of itself. `context` is (tokens used, tokens of the window) of the last
    answer."""

    agent: str
    role: str
    model: str
    generation: int
    session_id: str
    peers: tuple[str, ...]
    context: tuple[int, int] | None
    bash_allow: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What the tools work on."""

    link: Link
    trees: Trees
    status: Callable[[], Status]


Arguments = Mapping[str, Any]
Handler = Callable[[Arguments], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `handler` gives the text of the answer, or raises; nothing takes longer than `limit_s`."""

    name: str
    description: str
    schema: Mapping[str, Any]
    handler: Handler
    limit_s: float = TOOL_S

    async def call(self, arguments: Arguments) -> dict[str, Any]:
        """The answer in MCP's form; an error carries the host's message and hint."""
        try:
            async with asyncio.timeout(self.limit_s):
                return _answer(await self.handler(_sendable(arguments)))
        except TimeoutError:
            return _answer(
                f"{self.name} took longer than {self.limit_s:.0f} s and was given up", is_error=True
            )
        except (LinkError, TreeError, ProgramError, ValueError) as error:
            return _answer(f"{self.name} failed: {error}", is_error=True)


def arguments_schema(
    required: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """JSON Schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def text(description: str, longest: int, shortest: int = 1) -> dict[str, Any]:
    return {"type": "string", "description": description, "minLength": shortest, "maxLength": longest}


def number(description: str, least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "description": description, "minimum": least, "maximum": most}


def key() -> str:
    """A fresh idempotency key: the call can be repeated until its answer arrives."""
    return uuid.uuid4().hex


def _answer(words: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], "is_error": is_error}


def _sendable(value: Any) -> Any:
    """Arguments without lone surrogates, which JSON may carry and UTF-8 may not."""
    match value:
        case str():
            return _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        case dict():
            return {_sendable(name): _sendable(item) for name, item in value.items()}
        case list():
            return [_sendable(item) for item in value]
        case _:
            return value
