"""The HTTP side of the scripted model: the routes of the Messages API, and a log of every request for
people and tests.

| call | answer |
|---|---|
| POST /v1/messages | the reply of the scenario, as a stream of events or as one message |
| POST /v1/messages/count_tokens | `{"input_tokens": N}` |
| HEAD / · GET /healthz | alive; the number of scenarios |
| GET /__log?after=N | the newest entries of the log, as `{"items": [...]}` |

It holds no state between requests except the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from reconciler.scripted.answer import Answer, answer_of, error_body, events_of, message_of, request_id, sse
from reconciler.scripted.conversation import Conversation, problem_of, read
from reconciler.scripted.play import Reply, reply_to
from reconciler.scripted.scenario import ApiError, Scenario

BODY_LIMIT_BYTES = 64 * 1024 * 1024
LOG_KEPT = 2000


class Log:
    """Every request in order, in memory (the newest `LOG_KEPT`) and, if asked, as JSON lines in a file.

    An entry is `{n, at, path, agent, session, model, beta, credential, scenario, step, prompt, messages,
    tools, answer}`, with `body` when bodies are kept. The credential is told by kind and the start of its
    digest only.
    """

    def __init__(self, path: Path | None = None, *, bodies: bool = False) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=LOG_KEPT)
        self._file = path.open("a", encoding="utf-8", buffering=1) if path else None
        self._bodies = bodies
        self._count = 0

    def add(self, request: web.Request, body: Any, **more: Any) -> None:
        """Note one request."""
        self._count += 1
        entry = {
            "n": self._count,
            "at": round(time.time(), 3),
            "path": request.path,
            "session": request.headers.get("x-claude-code-session-id", ""),
            "beta": request.headers.get("anthropic-beta", ""),
            "credential": _credential(request),
            **more,
        }
        if self._bodies:
            entry["body"] = body
        self._entries.append(entry)
        if self._file:
            self._file.write(json.dumps(entry) + "\n")

    def after(self, number: int) -> list[dict[str, Any]]:
        """Entries with a greater number, oldest first."""
        return [entry for entry in self._entries if entry["n"] > number]

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class ScriptedModel:
    """The server's handlers over a set of scenarios."""

    def __init__(self, scenarios: Sequence[Scenario], log: Log) -> None:
        self._scenarios = scenarios
        self.log = log

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=BODY_LIMIT_BYTES)
        app.add_routes(
            [
                web.post("/v1/messages", self._messages),
                web.post("/v1/messages/count_tokens", self._count_tokens),
                web.route("HEAD", "/", self._alive),
                web.get("/healthz", self._health),
                web.get("/__log", self._log),
            ]
        )
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        return app

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        problem = problem_of(body) or (
            "" if isinstance(body.get("max_tokens"), int) else "max_tokens: Field required"
        )
        if problem:
            self.log.add(request, body, error=problem)
            return _error(ApiError(status=400, type="invalid_request_error", message=problem), "")
        conversation = read(body)
        reply = reply_to(self._scenarios, conversation)
        answer = answer_of(reply, conversation)
        self.log.add(request, body, **_noted(conversation, reply, answer, streaming=bool(body.get("stream"))))
        await asyncio.sleep(reply.step.delay)
        stall = reply.step.stall
        if stall and stall.after_events is None:
            await asyncio.sleep(stall.seconds)
        if reply.error and reply.error.after_events is None:
            return _error(reply.error, conversation.key)
        headers = {"request-id": request_id(conversation.key)}
        if not body.get("stream"):
            return web.json_response(message_of(answer), headers=headers)
        return await _stream(request, reply, answer, headers)

    async def _count_tokens(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        problem = problem_of(body)
        self.log.add(request, body, error=problem)
        if problem:
            return _error(ApiError(status=400, type="invalid_request_error", message=problem), "")
        return web.json_response({"input_tokens": read(body).prompt_tokens})

    async def _alive(self, _request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True, "scenarios": len(self._scenarios)})

    async def _log(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after", "0")
        return web.json_response({"items": self.log.after(int(after) if after.isdigit() else 0)})

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        self.log.add(request, None, error="no such route")
        return _error(
            ApiError(status=404, type="not_found_error", message=f"no route {request.method} {request.path}"),
            "",
        )


async def _stream(
    request: web.Request, reply: Reply, answer: Answer, headers: dict[str, str]
) -> web.StreamResponse:
    """Send the events with the faults that the step asks for."""
    step, stall = reply.step, reply.step.stall
    response = web.StreamResponse(
        headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
    )
    await response.prepare(request)
    with contextlib.suppress(
        ConnectionError
    ):  # the client may go away at any moment; nothing is left to do then
        for number, (name, data) in enumerate(events_of(answer)):
            if step.cut is not None and number >= step.cut:
                return _cut(request, response)
            if stall and stall.after_events == number:
                await asyncio.sleep(stall.seconds)
            if reply.error and reply.error.after_events == number:
                told = {"error": {"type": reply.error.type, "message": reply.error.message}}
                await response.write(sse("error", told))
                break
            await response.write(sse(name, data))
            if step.chunk_delay:
                await asyncio.sleep(step.chunk_delay)
        await response.write_eof()
    return response


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection in the middle, as a broken network does."""
    if request.transport is not None:
        request.transport.abort()
    return response


def _error(error: ApiError, key: str) -> web.Response:
    body = error_body(error.type, error.message, request_id(key or "0" * 20))
    return web.json_response(body, status=error.status, headers=error.headers)


def _noted(conversation: Conversation, reply: Reply, answer: Answer, *, streaming: bool) -> dict[str, Any]:
    said = (
        {"error": reply.error.model_dump()}
        if reply.error
        else {
            "text": " ".join(reply.texts)[:400],
            "tools": [{"name": name, "input": given} for name, given in reply.tools],
            "stop_reason": answer.stop_reason,
            "usage": answer.usage,
        }
    )
    return {
        "agent": conversation.agent,
        "model": conversation.model,
        "scenario": reply.scenario,
        "step": reply.branch,
        "prompt": conversation.prompt[:1000],
        "messages": len(conversation.turns),
        "tools": sorted(conversation.tools),
        "streaming": streaming,
        "key": conversation.key,
        "answer": said,
    }


def _credential(request: web.Request) -> str:
    for header, kind in (("x-api-key", "api-key"), ("authorization", "bearer")):
        value = request.headers.get(header, "").removeprefix("Bearer ")
        if value:
            return f"{kind}:{hashlib.sha256(value.encode()).hexdigest()[:12]}"
    return ""


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        return None
