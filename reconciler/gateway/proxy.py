"""The way of one request: screened, reserved, forwarded, streamed through, settled.
 Called for every request on an agent's `model.sock`, whose peer is proven. Errors go to the agent in the
API's own shape; what the operator should know of them goes to `tell`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
import structlog
from aiohttp import web

from reconciler.gateway.catalog import Catalog
from reconciler.gateway.charges import Cashier
from reconciler.gateway.credential import CredentialError
from reconciler.gateway.deadlines import Bounds, Deadlines
from reconciler.gateway.messages import (
    AgentPolicy,
    ClosureRow,
    LimitEvent,
    ModelEvent,
    RefusalEvent,
    TroubleEvent,
)
from reconciler.gateway.notices import notice
from reconciler.gateway.places import Allowance
from reconciler.gateway.screening import BODY_LIMIT_BYTES, Refusal, Rules, Screened, forwarded_headers, screen
from reconciler.gateway.upstream import Unreachable, Upstream
from reconciler.gateway.usage import Meter

log = structlog.get_logger("gateway")

_MESSAGES = frozenset({"/v1/messages", "/v1/messages?beta=true"})
_COUNT = frozenset({"/v1/messages/count_tokens", "/v1/messages/count_tokens?beta=true"})
_PASSED_BACK = re.compile(r"content-type|request-id|retry-after|x-should-retry|anthropic-ratelimit-[a-z-]+")
# A body that takes long to check keeps the others waiting; its agent then waits this many times as long.
_SLOW_CHECK_S = 0.05
_SLOW_CHECK_FACTOR = 4
_DATE = re.compile(r"-[0-9]{8}$")
_MODELS_TOLD = 8


@dataclass(slots=True)
class Client:
    """One agent as the data path knows it; `policy` and `rules` are replaced while requests are under way."""

    policy: AgentPolicy
    rules: Rules
    bounds: Bounds
    told_models: tuple[int | None, set[tuple[str, str]]] = field(default_factory=lambda: (None, set()))
    places: Allowance = field(init=False)
    memory: Allowance = field(init=False)

    def __post_init__(self) -> None:
        self.places = Allowance(self.bounds.requests)
        self.memory = Allowance(self.bounds.body_bytes)


@dataclass(slots=True)
class _Fate:
    """What becomes of a request: what it used as far as known, and whether it costs anything."""

    meter: Meter = field(default_factory=Meter)
    costs: bool = True


class Proxy:
    """Forwards the requests of all agents to one upstream."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        cashier: Cashier,
        catalog: Catalog,
        deadlines: Deadlines,
        now: Callable[[], float],
        tell: Callable[[LimitEvent | TroubleEvent | RefusalEvent | ModelEvent], None],
    ) -> None:
        self._upstream = upstream
        self._cashier = cashier
        self._catalog = catalog
        self._deadlines = deadlines
        self._drain_s = deadlines.drain_s
        self._now = now
        self._tell = tell

    def hurry(self) -> None:
        """The process is about to end: nothing more is read for its price."""
        self._drain_s = 0.0

    async def handle(self, client: Client, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for cancellation (the agent hung up)."""
        try:
            if request.method == "HEAD" and request.raw_path == "/":
                return web.Response()
            _check_endpoint(request)
            return await self._post(client, request)
        except Refusal as refusal:
            return self._refuse(client, refusal)
        except CredentialError as error:
            log.warning("credential.unusable", error=str(error))
            told = "the host has no usable credential for the API"
            return self._refuse(client, Refusal(401, "authentication_error", told, reason="credential"))
        except Unreachable as error:
            return self._refuse(client, Refusal(502, "api_error", error.message, reason="upstream"))
        except ConnectionError:
            return web.Response(status=400)  # the agent hung up: nobody reads this
        except Exception:  # the request loop of this socket: a bug must not take the gateway down
            log.exception("request.bug", agent=client.policy.agent)
            return _error(Refusal(500, "api_error", "the gateway failed"))

    async def _post(self, client: Client, request: web.BaseRequest) -> web.StreamResponse:
        headers = forwarded_headers(request.headers.items(), client.rules)
        length = request.content_length
        if length is not None and length > BODY_LIMIT_BYTES:
            raise _too_large()
        counting = request.raw_path in _COUNT
        async with contextlib.AsyncExitStack() as held:
            await self._enter(held, client.places, 1)
            await self._enter(held, client.memory, BODY_LIMIT_BYTES if length is None else length)
            raw = await self._body(request)
            begun = time.monotonic()
            try:
                screened = screen(raw, client.rules, counting=counting)
            except Refusal as refusal:
                if refusal.model and self._compare(client, refusal.model):
                    refusal.message += f"; this turn was given {client.policy.asked_model!r}"
                raise
            if (taken := time.monotonic() - begun) > _SLOW_CHECK_S:
                await asyncio.sleep(taken * _SLOW_CHECK_FACTOR)
            if counting:
                return await self._count(client, raw, request.raw_path, headers)
            return await self._message(client, request, screened, raw, headers)

    async def _enter(self, held: contextlib.AsyncExitStack, allowance: Allowance, amount: int) -> None:
        """Take from the agent's allowance, waiting for its own earlier requests."""
        try:
            async with asyncio.timeout(self._deadlines.place_s):
                await held.enter_async_context(allowance.taking(amount))
        except TimeoutError:
            told = "too many requests of this agent at once"
            raise Refusal(529, "overloaded_error", told, reason="busy") from None

    async def _body(self, request: web.BaseRequest) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._deadlines.body_s):
                async for piece in request.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > BODY_LIMIT_BYTES:
                        raise _too_large()
        except TimeoutError:
            raise Refusal(408, "timeout_error", "the body did not come in time") from None
        return b"".join(pieces)

    async def _count(
        self, client: Client, raw: bytes, path_and_query: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        answer = await self._upstream.post(
            path_and_query, raw, headers, deadline_s=self._deadlines.first_byte_s
        )
        async with answer:
            return await self._whole(client, answer, "")

    async def _message(
        self,
        client: Client,
        request: web.BaseRequest,
        screened: Screened,
        raw: bytes,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        self._compare(client, screened.model)
        charge, body = await self._cashier.reserve(client.policy, screened, raw, headers)
        deadline = self._deadlines.first_byte_s if screened.stream else self._deadlines.whole_s
        fate = _Fate()
        sending = asyncio.ensure_future(
            self._upstream.post(request.raw_path, body, headers, deadline_s=deadline)
        )
        try:
            return await self._pass_back(client, request, screened.model, sending, fate)
        except (Unreachable, CredentialError) as error:
            fate.costs = isinstance(error, Unreachable) and error.sent
            raise
        except (asyncio.CancelledError, ConnectionError):
            await self._drain(sending, fate)
            raise
        finally:
            _let_go(sending)
            self._compare(client, screened.model, fate.meter.model)
            if not fate.costs:
                await self._cashier.release(charge)
            elif fate.meter.finished:
                await self._cashier.settle(charge, fate.meter.usage)
            else:
                await self._cashier.forfeit(charge, fate.meter)

    async def _pass_back(
        self,
        client: Client,
        request: web.BaseRequest,
        model: str,
        sending: asyncio.Future[aiohttp.ClientResponse],
        fate: _Fate,
    ) -> web.StreamResponse:
        answer = await asyncio.shield(sending)
        fate.costs = answer.status == 200
        if fate.costs and answer.content_type == "text/event-stream":
            return await self._stream(client, request, answer, fate.meter)
        response = await self._whole(client, answer, model)
        fate.meter.read_whole(response.body)
        return response

    async def _whole(self, client: Client, answer: aiohttp.ClientResponse, model: str) -> web.Response:
        """An answer in one piece, passed on; a limit and what may concern everybody is told to the host."""
        text = await self._upstream.read(answer)
        policy = client.policy
        told = notice(answer.status, text, answer.headers.get("retry-after", ""), self._now())
        if told is not None:
            self._tell(told.event(agent=policy.agent, turn=policy.turn, model=model))
        return web.Response(status=answer.status, body=text, headers=_passed_back(answer))

    async def _stream(
        self, client: Client, request: web.BaseRequest, answer: aiohttp.ClientResponse, meter: Meter
    ) -> web.StreamResponse:
        """Pass the events on as they come; neither side may stand still for longer than `idle_s`."""
        response = web.StreamResponse(headers={**_passed_back(answer), "cache-control": "no-cache"})
        await response.prepare(request)
        try:
            while True:
                async with asyncio.timeout(self._deadlines.idle_s):
                    piece = await answer.content.readany()
                    if not piece:
                        break
                    meter.feed(piece)
                    await response.write(piece)
        except ConnectionError:
            raise  # the agent hung up; the API's own faults are of the next kind
        except (TimeoutError, aiohttp.ClientError) as error:
            log.warning("stream.broke_off", agent=client.policy.agent, error=type(error).__name__)
        if not meter.finished and request.transport is not None:
            request.transport.abort()  # an answer that was cut must not look like one that ended
        return response

    async def _drain(self, sending: asyncio.Future[aiohttp.ClientResponse], fate: _Fate) -> None:
        """The agent hung up: read on for a moment to learn what its request costs."""
        with contextlib.suppress(Unreachable, CredentialError, TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(self._drain_s):
                answer = await sending
                fate.costs = answer.status == 200
                if answer.content_type != "text/event-stream":
                    fate.meter.read_whole(await self._upstream.read(answer))
                while piece := await answer.content.readany():
                    fate.meter.feed(piece)

    def _compare(self, client: Client, requested: str, answered: str = "") -> bool:
        """Tell, once a turn, that a request names another model than the turn was given, or that another one
        answered than was requested (a date behind its name apart); whether the first is so."""
        policy = client.policy
        asked = policy.asked_model or ""
        other = bool(asked) and requested != self._catalog.id(asked)
        replaced = bool(answered) and _DATE.sub("", answered) != _DATE.sub("", requested)
        if client.told_models[0] != policy.turn:
            client.told_models = (policy.turn, set())
        known, pair = client.told_models[1], (requested, answered if replaced else "")
        if (replaced or (other and not answered)) and pair not in known and len(known) < _MODELS_TOLD:
            known.add(pair)
            self._tell(
                ModelEvent(
                    agent=policy.agent,
                    turn=policy.turn,
                    asked=asked or requested,
                    requested=requested,
                    answered=answered if replaced else None,
                )
            )
        return other

    def _refuse(self, client: Client, refusal: Refusal) -> web.Response:
        policy = client.policy
        self._tell(
            RefusalEvent(
                agent=policy.agent,
                turn=policy.turn,
                reason=refusal.reason,
                message=refusal.message,
                closure=None if refusal.closure is None else ClosureRow.of(refusal.closure),
            )
        )
        return _error(refusal)


def _let_go(sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """Give the connection back, or close it if the answer is not at its end."""
    if not sending.done():
        sending.cancel()
    elif not sending.cancelled() and sending.exception() is None:
        sending.result().release()


def _check_endpoint(request: web.BaseRequest) -> None:
    if request.raw_path not in _MESSAGES | _COUNT:
        told = "only /v1/messages and /v1/messages/count_tokens are served"
        raise Refusal(404, "not_found_error", told)
    if request.method != "POST":
        raise Refusal(405, "invalid_request_error", "only POST is served here")


def _error(refusal: Refusal) -> web.Response:
    body = {"type": "error", "error": {"type": refusal.kind, "message": f"hyperhive: {refusal.message}"}}
    return web.json_response(body, status=refusal.status)


def _too_large() -> Refusal:
    return Refusal(413, "request_too_large", f"a request has {BODY_LIMIT_BYTES} bytes at most")


def _passed_back(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers that the agent may see: nothing of cookies, organisations or servers."""
    return {
        name.lower(): value for name, value in answer.headers.items() if _PASSED_BACK.fullmatch(name.lower())
    }
