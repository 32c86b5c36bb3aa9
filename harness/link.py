"""The harness's side of `agent.sock`: one call per request of `harness.wire`, over HTTP on the unix socket.

The host may go away at any time and come back under the same path. A call then waits and is repeated, if
repeating it is harmless: it carries a key, names a state, or only reads. After every gap the first thing said
is `hello`, with the turn that is still going on. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from pydantic import ValidationError

from harness.hello import backoff
from harness.outcomes import Verdict
from harness.wire import (
    BOOT_HEADER,
    BUNDLE_MAX_BYTES,
    WIRE_HEADER,
    WIRE_VERSION,
    BeginTurn,
    Directives,
    Done,
    EndTurn,
    EventsTaken,
    Hello,
    Inbox,
    Purpose,
    TurnBegun,
    TurnEvent,
    TurnEvents,
    Welcome,
    Wire,
)

ANSWER_MAX_BYTES = 4 * 1024 * 1024
ATTEMPT_S = 20.0
POLL_S = 25
LEASES_MAX = 1000
_PAUSE_S = 2.0
_GREET_AGAIN = "hello-first"
_AWAY = frozenset({502, 503, 504})
_TOO_MANY = 429

Answer = TypeVar("Answer", bound=Wire)
Content = Callable[[], tuple[Any, Mapping[str, str]]]  # makes body and headers, anew for each attempt

log = logging.getLogger(__name__)


class LinkError(Exception):
    """A call did not succeed. `message` and `hint` are in words for the model."""

    def __init__(self, message: str, hint: str = "", *, code: str = "error", status: int = 0) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint
        self.code = code
        self.status = status


class Refused(LinkError):  # noqa: N818 - it says what it is
    """The host answered, and said no."""


class HostAway(LinkError):  # noqa: N818 - it says what it is
    """No answer within the deadline; whether the request took effect is unknown unless it is one that may be
    repeated."""


class Link:
    """All calls to the host. `turn` and `is_resident` are what `hello` tells after a gap: the turn that is
    going on, and whether a CLI is running; the turn loop sets them."""

    def __init__(
        self,
        socket: Path,
        boot: str,
        welcome: Welcome,
        *,
        on_welcome: Callable[[Welcome], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        # A fresh connection for each call: one that is kept and cut by the host's restart would leave open
        # whether the call on it took effect. A host that stops answers what it has accepted.
        self._connector = aiohttp.UnixConnector(path=str(socket), limit=32, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            base_url="http://hive/",
            headers={WIRE_HEADER: str(WIRE_VERSION), BOOT_HEADER: boot},
        )
        self._boot = boot
        self._on_welcome = on_welcome
        self._sleep = sleep
        self._greeting = asyncio.Lock()
        self._greeted = True
        self._epoch = 0
        self._received: list[int] = []
        self.welcome = welcome
        self.turn: int | None = None
        self.is_resident: Callable[[], bool] = lambda: False

    async def close(self) -> None:
        """Closes all connections; calls that still wait fail."""
        await self._session.close()

    def enter_turn(self, turn: int) -> None:
        """From now on `hello` names this turn, and leases of further messages belong to it."""
        self.turn = turn
        self._received = []

    def leave_turn(self) -> None:
        """The turn is over."""
        self.turn = None

    # the turn loop's calls: they wait for the host without end, unless a deadline is given

    async def hello(self) -> Welcome:
        """Asks what is approved now."""
        self._greeted = False
        await self._greet()
        return self.welcome

    async def inbox(self, wait_s: int, limit: int) -> Inbox:
        """Messages under a lease, after at most `wait_s` seconds."""
        query = {"wait": str(wait_s), "max": str(limit)}
        return await self.get("inbox", Inbox, query, patience_s=wait_s + ATTEMPT_S, deadline_s=None)

    async def more(self, wait_s: int, limit: int) -> Inbox:
        """Further messages within the open turn, which settles their lease. `Refused` when no turn is
        open."""
        turn = self.turn
        if turn is None:
            raise Refused("there is no turn that messages could belong to", code="no-turn")
        query = {"wait": str(wait_s), "max": str(limit), "turn": str(turn)}
        patience_s = wait_s + ATTEMPT_S
        inbox = await self.get("inbox", Inbox, query, patience_s=patience_s, deadline_s=patience_s)
        if inbox.lease is not None and self.turn == turn:
            self._received.append(inbox.lease)
        return inbox

    async def return_lease(self, lease: int) -> None:
        """Gives messages back unread; they come again."""
        await self.post(f"leases/{lease}/return", None, Done, deadline_s=ATTEMPT_S)

    async def begin_turn(self, lease: int | None, key: str, purpose: Purpose = "messages") -> TurnBegun:
        """Opens a turn over the messages of a lease, or one for another purpose, which waits for a seat."""
        body = BeginTurn(lease=lease, key=key, purpose=purpose)
        return await self.post("turns", body, TurnBegun, deadline_s=None)

    async def parked(self) -> None:
        """Tells that no CLI is running; should the host be away, the next hello does."""
        await self.post("parked", None, Done)

    async def send_events(self, turn: int, events: Sequence[TurnEvent]) -> int:
        """Hands over a batch; the number up to which the host has them."""
        body = TurnEvents(events=list(events))
        return (await self.post(f"turns/{turn}/events", body, EventsTaken, deadline_s=None)).seq

    async def end_turn(self, turn: int, verdict: Verdict, deadline_s: float | None = None) -> None:
        """Closes a turn, which settles its leases: those whose messages arrived are named."""
        end = EndTurn(
            outcome=verdict.outcome,
            error=verdict.error,
            retry_after_s=verdict.retry_after_s,
            leases=self._received[:LEASES_MAX],
        )
        await self.post(f"turns/{turn}/end", end, Done, deadline_s=deadline_s)

    async def directives(self, after: int, wait_s: int = POLL_S) -> Directives:
        """Orders after the one numbered `after`."""
        query = {"wait": str(wait_s), "after": str(after)}
        return await self.get("directives", Directives, query, patience_s=wait_s + ATTEMPT_S, deadline_s=None)

    # what the tools call, too

    async def get(
        self,
        path: str,
        answer: type[Answer],
        query: Mapping[str, str] | None = None,
        *,
        patience_s: float = ATTEMPT_S,
        deadline_s: float | None = ATTEMPT_S,
    ) -> Answer:
        """A reading call. `patience_s` bounds one attempt, `deadline_s` all of them (None: wait for the
        host)."""
        raw = await self._call("GET", path, query=query, patience_s=patience_s, deadline_s=deadline_s)
        return _parsed(answer, raw)

    async def post(
        self,
        path: str,
        body: Wire | None,
        answer: type[Answer],
        query: Mapping[str, str] | None = None,
        *,
        repeatable: bool = True,
        deadline_s: float | None = ATTEMPT_S,
    ) -> Answer:
        """A changing call with a JSON body. Not `repeatable`: it is sent at most once."""
        raw = await self._call(
            "POST", path, query=query, content=_json(body), repeatable=repeatable, deadline_s=deadline_s
        )
        return _parsed(answer, raw)

    async def upload(
        self, path: str, parts: Mapping[str, bytes], answer: type[Answer], query: Mapping[str, str]
    ) -> Answer:
        """A changing call with bytes: one part is the plain body, more are a multipart form. The commit makes
        it repeatable."""

        def content() -> tuple[Any, Mapping[str, str]]:
            if len(parts) == 1:
                return next(iter(parts.values())), {"Content-Type": "application/octet-stream"}
            form = aiohttp.FormData()
            for name, data in parts.items():
                form.add_field(name, data, filename=name, content_type="application/octet-stream")
            return form, {}

        return _parsed(
            answer, await self._call("POST", path, query=query, content=content, deadline_s=ATTEMPT_S)
        )

    async def bundle(self, name: str) -> bytes:
        """The host's bundle of an agent's `main`."""
        return await self._call("GET", f"repos/{name}/bundle", limit=BUNDLE_MAX_BYTES, deadline_s=ATTEMPT_S)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content: Content | None = None,
        repeatable: bool = True,
        patience_s: float = ATTEMPT_S,
        deadline_s: float | None,
        limit: int = ANSWER_MAX_BYTES,
    ) -> bytes:
        """Sends until there is an answer or the deadline is over. Raises `Refused` or `HostAway`."""
        try:
            async with asyncio.timeout(deadline_s):
                for pause in backoff():
                    if not self._greeted:
                        await self._greet()
                    epoch = self._epoch
                    try:
                        return await self._once(method, path, query, content, patience_s, limit)
                    except Refused as refusal:
                        if refusal.code == _GREET_AGAIN:
                            self._lost(epoch)
                        elif refusal.status == _TOO_MANY and deadline_s is None:
                            await self._sleep(_PAUSE_S)  # nobody waits for this answer: less often, then
                        elif refusal.status not in _AWAY:
                            raise
                    except aiohttp.ClientConnectorError:
                        self._lost(epoch)
                    except (aiohttp.ClientError, TimeoutError, OSError) as error:
                        self._lost(epoch)
                        if not repeatable:
                            raise HostAway(
                                "the host went away before it answered: whether this took effect is unknown",
                                "look first (get_status, list_agents), then repeat it if it did not",
                                code="away",
                            ) from error
                    await self._sleep(pause)
        except TimeoutError:
            raise HostAway("the host does not answer", "try again in a minute", code="away") from None
        raise AssertionError  # backoff() does not end

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        content: Content | None,
        patience_s: float,
        limit: int,
    ) -> bytes:
        data, headers = content() if content is not None else (None, {})
        timeout = aiohttp.ClientTimeout(total=patience_s)
        async with self._session.request(
            method, f"v1/{path}", params=query, data=data, headers=headers, timeout=timeout
        ) as answer:
            raw = await _read(answer, limit if answer.status == 200 else ANSWER_MAX_BYTES)
            if answer.status == 200:
                return raw
            raise _refused(answer.status, raw)

    async def _greet(self) -> None:
        """Says hello until it is answered; only one at a time."""
        async with self._greeting:
            told = ""
            for pause in backoff():
                if self._greeted:
                    return
                hello = Hello(wire=WIRE_VERSION, boot=self._boot, turn=self.turn, resident=self.is_resident())
                try:
                    raw = await self._once("POST", "hello", None, _json(hello), ATTEMPT_S, ANSWER_MAX_BYTES)
                    self.welcome = _parsed(Welcome, raw)
                except (LinkError, aiohttp.ClientError, TimeoutError, OSError) as error:
                    if str(error) != told and not isinstance(error, aiohttp.ClientConnectorError):
                        told = str(error)
                        log.warning("hello failed: %s", told[:500])
                    await self._sleep(pause)
                    continue
                self._greeted = True
                self._epoch += 1
                self._on_welcome(self.welcome)
                return

    def _lost(self, epoch: int) -> None:
        """A call of `epoch` failed; if nobody has said hello since, the next one must."""
        if epoch == self._epoch:
            self._greeted = False


def _json(body: Wire | None) -> Content:
    """A JSON body, the same for every attempt."""
    data = body.model_dump_json().encode() if body is not None else b""
    return lambda: (data, {"Content-Type": "application/json"})


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for block in answer.content.iter_any():
        size += len(block)
        if size > limit:
            raise LinkError(f"the host's answer is longer than {limit} bytes", code="too-large")
        parts.append(block)
    return b"".join(parts)


def _parsed(model: type[Answer], raw: bytes) -> Answer:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LinkError(
            f"the host's answer is no {model.__name__}: {where}: {first['msg']}", code="wire"
        ) from None


def _refused(status: int, raw: bytes) -> Refused:
    """The error envelope as an exception; an answer without one still tells its status."""
    message, hint, code = f"the host answered {status}", "", f"http-{status}"
    with suppress(ValueError, TypeError, KeyError):
        error = json.loads(raw)["error"]
        message, hint, code = (
            str(error["message"])[:2000],
            str(error.get("hint", ""))[:1000],
            str(error["code"])[:80],
        )
    return Refused(message, hint, code=code, status=status)
