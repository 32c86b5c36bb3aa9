"""What the SDK tells during a turn, as events of the transcript and as the facts that the outcome is made of.

One `Listener` per turn. This module imports the SDK, which takes half a second: import it late. Unknown kinds
of messages are ignored, for there are many and they change; nothing in here may raise on odd content, because
the content is the model's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    ResultMessage,
    ServerToolUseBlock,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from harness.buffer import Emit
from harness.outcomes import Facts, Result
from harness.watchdog import Waiting

_SYNTHETIC = "<synthetic>"
_STDERR_LINES_MAX = 50


class Listener:
    """Collects one turn. `last_sign` is the monotonic time of the last sign of life, `tools_running` how many
    calls of tools have no result yet, `used_tokens` and `window_tokens` the context in use as of the last
    answer. `context` is what they were before, if that is known."""

    def __init__(
        self,
        emit: Emit,
        prompt_id: str,
        clock: Callable[[], float] = time.monotonic,
        context: tuple[int, int] | None = None,
    ) -> None:
        self.emit = emit
        self._prompt_id = prompt_id
        self._clock = clock
        self._calls: dict[str, tuple[str, float]] = {}
        self._answering = False
        self._model = ""
        self._api_error: str | None = None
        self._stderr_lines = 0
        self.result: Result | None = None
        self.last_sign = clock()
        self.used_tokens = 0
        self.window_tokens = 0
        self._before_tokens, self._window_before = context or (0, 0)

    @property
    def tools_running(self) -> int:
        return len(self._calls)

    def facts(self, *, gone: str, cancelled: bool, stalled: str) -> Facts:
        """What the outcome is told from."""
        return Facts(self.result, self._api_error, gone=gone, cancelled=cancelled, stalled=stalled)

    @property
    def waiting(self) -> Waiting:
        """What the turn waits for."""
        return "tool" if self._calls else "next byte" if self._answering else "first byte"

    @property
    def calls(self) -> tuple[str, ...]:
        """Names of the tools whose calls have no result yet."""
        return tuple(name for name, _ in self._calls.values())

    def sign(self) -> None:
        """Something lives: a hook was called, the CLI said something."""
        self.last_sign = self._clock()

    def moved(self) -> None:
        """Bytes came from the model."""
        self._answering = True
        self.sign()

    def stderr(self, line: str) -> None:
        """A line of the CLI's own standard error; the first few are kept."""
        self._stderr_lines += 1
        if self._stderr_lines <= _STDERR_LINES_MAX:
            self.emit("stderr", {"text": line[:2000]})

    def take(self, message: Message) -> bool:
        """Reads one message; True when it is the result that ends this turn."""
        self.sign()
        match message:
            case AssistantMessage():
                self._assistant(message)
            case UserMessage():
                self._user(message)
            case SystemMessage():
                self._system(message)
            case ResultMessage():
                return self._result(message)
            case _:
                pass
        return False

    def _assistant(self, message: AssistantMessage) -> None:
        if message.error is not None:
            self._api_error = message.error
        if message.model != _SYNTHETIC:
            self._api_error = message.error
            self._uses_model(message.model)
            self._count(message.usage or {})
        for block in message.content:
            match block:
                case TextBlock():
                    self.emit("note" if message.model == _SYNTHETIC else "text", {"text": block.text})
                case ThinkingBlock():
                    self.emit("thinking", {"text": block.thinking})
                case ToolUseBlock() | ServerToolUseBlock():
                    self._calls[block.id] = (block.name, self._clock())
                    self.emit("tool_call", {"id": block.id, "name": block.name, "input": block.input})
                case _:
                    pass

    def _user(self, message: UserMessage) -> None:
        if isinstance(message.content, str):
            return
        for block in message.content:
            if not isinstance(block, ToolResultBlock):
                continue
            _, started = self._calls.pop(block.tool_use_id, ("", None))
            self._answering = False
            data: dict[str, Any] = {
                "id": block.tool_use_id,
                "text": _text_of(block.content),
                "is_error": bool(block.is_error),
            }
            if started is not None:
                data["duration_ms"] = round((self._clock() - started) * 1000)
            self.emit("tool_result", data)

    def _system(self, message: SystemMessage) -> None:
        data = message.data
        match message.subtype:
            case "init":
                self._uses_model(str(data.get("model", "")))
                for server in data.get("mcp_servers") or []:
                    if isinstance(server, dict) and server.get("status") == "failed":
                        name = str(server.get("name"))[:80]
                        self.emit(
                            "note", {"text": f"the MCP server {name} did not start; its tools are missing"}
                        )
            case "status" if data.get("status") == "compacting":
                self.emit("compaction", {"before_tokens": self.used_tokens or self._before_tokens})
            case "status" if data.get("compact_result") not in {None, "success"}:
                reason = data.get("compact_error") or data["compact_result"]
                used = self.used_tokens or self._before_tokens
                self.emit("compaction", {"before_tokens": used, "error": str(reason)[:200]})
            case "compact_boundary":
                self._compacted(data.get("compact_metadata") or {})
            case "api_retry":
                again = f"attempt {data.get('attempt')} of {data.get('max_retries')}"
                status = data.get("error_status")
                self.emit("note", {"text": f"the model did not answer (status {status}); {again}"})
            case "model_fallback":
                models = f"{data.get('original_model')} is unavailable, {data.get('fallback_model')} answers"
                self.emit("note", {"text": models})
            case _:
                pass

    def _compacted(self, told: Mapping[str, Any]) -> None:
        """The conversation is a summary from here on; what it holds now is the context in use."""
        before, after = told.get("pre_tokens"), told.get("post_tokens")
        event = {"before_tokens": before if isinstance(before, int) else self._before_tokens}
        event["after_tokens"] = after if isinstance(after, int) else 0
        self.emit("compaction", event)
        self.used_tokens = event["after_tokens"]

    def _result(self, message: ResultMessage) -> bool:
        answered = message.user_message_uuids or (
            [message.user_message_uuid] if message.user_message_uuid else []
        )
        if answered and self._prompt_id not in answered:
            return False  # the late end of a turn that was given up
        text = message.result or "; ".join(str(error) for error in message.errors or [])
        self.result = Result(
            is_error=message.is_error,
            subtype=message.subtype,
            terminal_reason=message.terminal_reason,
            api_error_status=message.api_error_status,
            text=text,
        )
        self.window_tokens = self._window(message.model_usage or {})
        data: dict[str, Any] = {
            "is_error": message.is_error,
            "subtype": message.subtype,
            "duration_ms": message.duration_ms,
            "num_turns": message.num_turns,
            "text": text,
        }
        for key in ("terminal_reason", "api_error_status"):
            if getattr(message, key) is not None:
                data[key] = getattr(message, key)
        if self.used_tokens and self.window_tokens:
            self.emit("context", {"used_tokens": self.used_tokens, "window_tokens": self.window_tokens})
        self.emit("result", data)
        return True

    def _window(self, usage: Mapping[str, Any]) -> int:
        """The window of the model that answered. The CLI names all models of the session, those of before a
        switch, too; nothing of its own answered when it compacted."""
        windows = {name: int(one.get("contextWindow") or 0) for name, one in usage.items()}
        own = [size for name, size in windows.items() if _same_model(name, self._model)]
        if own or not self._window_before:
            return max(own or windows.values(), default=0)
        return self._window_before

    def _uses_model(self, model: str) -> None:
        if model and model != self._model:
            self._model = model
            self.emit("model", {"model": model})

    def _count(self, usage: Mapping[str, Any]) -> None:
        """The context in use is that of the last request; the result's own usage is a sum over all of
        them."""
        keys = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        used = sum(value for key in keys if isinstance(value := usage.get(key), int))
        if used:
            self.used_tokens = used


def _same_model(one: str, other: str) -> bool:
    """Whether two ids mean one model: the longer one may add a date, or how long its window is."""
    return bool(one and other) and (one.startswith(other) or other.startswith(one))


def _text_of(content: object) -> str:
    """The text of a tool's result; what is not text is named."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        parts.append(str(block.get("text", "")) if kind == "text" else f"[{kind}]")
    return "\n".join(parts)
