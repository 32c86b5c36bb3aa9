"""The host as a harness sees it: an HTTP server on `agent.sock` that speaks the wire models, in memory.

It behaves as the real one must: leases are settled by the end of their turn, an answer that was lost can be
asked for again, a host that comes back knows nobody until hello. `stop` and `start` play its restart; what
it holds survives, as it would in a database.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from harness import wire

Model = TypeVar("Model", bound=wire.Wire)
Handler = Callable[[web.Request], Awaitable[wire.Wire]]

SESSION = "6f1d3f52-3b8e-4f0a-9f54-0d5a8a3f0001"


def welcome(**changes: Any) -> wire.Welcome:
    """An agent `scout` that may run git and use the file tools."""
    return wire.Welcome(
        wire=wire.WIRE_VERSION,
        agent="scout",
        role="agent",
        spec={
            "bash": {"allow": ["git *", "ls *"], "deny": []},
            "tools": {"allow": ["Read", "Edit", "Write"], "server": []},
        },
        prompt="",
        model="claude-sonnet-5",
        session_id=SESSION,
        resume=False,
        generation=1,
        peers=["manager", "operator"],
        directives_after=0,
    ).model_copy(update=changes)


@dataclasses.dataclass(slots=True)
class Turn:
    """A turn as the host saw it."""

    id: int
    lease: int | None
    leases: list[int]
    events: dict[int, wire.TurnEvent] = dataclasses.field(default_factory=dict)
    end: wire.EndTurn | None = None
    purpose: wire.Purpose = "messages"

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of all events of a kind, in order."""
        return [event.data for _seq, event in sorted(self.events.items()) if event.kind == kind]


class Refusal(Exception):  # noqa: N818 - it is an answer
    """What a handler answers instead of a model."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message, "hint": hint}}


class FakeHost:
    """One agent's host. Public attributes are what tests look at; `until` waits for them."""

    def __init__(self, folder: Path, told: wire.Welcome) -> None:
        self.path = folder / "agent.sock"
        self.told = told
        self.hellos: list[wire.Hello] = []
        self.queued: list[wire.Delivered] = []
        self.acked: list[int] = []
        self.leases: dict[int, list[wire.Delivered]] = {}
        self.turns: dict[int, Turn] = {}
        self.sent: list[wire.SendMessage] = []
        self.calls: list[tuple[str, Any]] = []
        self.directives: list[wire.Directive] = []
        self.bundles: dict[str, bytes] = {}
        self.agents: list[wire.PeerAgent] = []
        self.asked: Counter[str] = Counter()
        self.refuse: dict[str, Refusal] = {}
        self.lose_answers_to: set[str] = set()
        self._known: set[str] = set()
        self._keys: dict[str, wire.Wire] = {}
        self._message = 0
        self._lease = 100
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    # ---------------------------------------------------------------------------------- what tests do
    async def start(self) -> None:
        """Listens; like the real host, appears by rename, and knows no harness until it says hello."""
        self._known.clear()
        self._runner = web.AppRunner(
            self._app(), access_log=None, shutdown_timeout=0.01, handler_cancellation=True
        )
        await self._runner.setup()
        listening = socket.socket(socket.AF_UNIX)
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        listening.bind(str(new))
        new.chmod(0o600)
        await web.SockSite(self._runner, listening).start()
        new.rename(self.path)

    async def stop(self) -> None:
        """Goes away with all connections; the socket file stays behind, dead."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    async def deliver(self, body: str, sender: str = "operator", **more: Any) -> int:
        """Queues a message; its id."""
        self._message += 1
        message = wire.Delivered(
            id=self._message, sender=sender, body=body, sent_at="2026-05-01T12:00:00.000Z", **more
        )
        self.queued.append(message)
        await self.tell()
        return message.id

    async def order(self, kind: str, **data: Any) -> None:
        """Puts a directive down."""
        number = len(self.directives) + 1
        self.directives.append(wire.Directive.model_validate({"id": number, "kind": kind, "data": data}))
        await self.tell()

    async def until(self, condition: Callable[[], object], within_s: float = 90.0) -> None:
        """Waits until something holds of this host; fails loudly when it does not in time."""
        async with asyncio.timeout(within_s), self._changed:
            while not condition():
                with contextlib.suppress(TimeoutError):  # a condition may hold of other things than this host
                    await asyncio.wait_for(self._changed.wait(), 0.05)

    async def ended(self, turn: int) -> Turn:
        """The turn, when it is over."""
        await self.until(lambda: turn in self.turns and self.turns[turn].end is not None)
        return self.turns[turn]

    async def tell(self) -> None:
        """Something changed."""
        async with self._changed:
            self._changed.notify_all()

    # ---------------------------------------------------------------------------------- what it answers
    def _app(self) -> web.Application:
        app = web.Application(client_max_size=wire.BUNDLE_MAX_BYTES + wire.STATE_TAR_MAX_BYTES)
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "hello", self._hello),
            ("GET", "inbox", self._inbox),
            ("POST", "leases/{id}/return", self._return),
            ("POST", "messages", self._messages),
            ("POST", "turns", self._begin),
            ("POST", "turns/{id}/events", self._events),
            ("POST", "turns/{id}/end", self._end),
            ("GET", "directives", self._directives),
            ("POST", "questions", self._noted("questions", wire.AskOperator, lambda: wire.Asked(id=7))),
            ("POST", "nap", self._noted("nap", wire.Nap, lambda: wire.Napping(until="2026-01-01T00:00:00Z"))),
            ("POST", "status", self._noted("status", wire.Status, wire.Done)),
            ("GET", "status", self._own_status),
            ("POST", "parked", self._parked),
            ("POST", "drafts", self._draft),
            ("POST", "spawns", self._noted("spawns", wire.Spawn, self._proposed)),
            ("POST", "proposals", self._proposal),
            ("POST", "drafts/{name}/commit", self._draft_commit),
            ("POST", "agents/{name}/{verb}", self._verb),
            ("GET", "agents", self._agents),
            ("GET", "agents/{name}/logs", self._logs),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, f"/v1/{path}", self._answering(path, handler))
        app.router.add_get("/v1/repos/{name}/bundle", self._bundle)
        return app

    def _answering(self, path: str, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            self.asked[path] += 1
            try:
                if path != "hello":
                    self._check_headers(request)
                if path in self.refuse:
                    raise self.refuse[path]
                model = await handler(request)
            except Refusal as refusal:
                return web.json_response(refusal.body, status=refusal.status)
            except ValidationError as error:
                return web.json_response(Refusal(400, "invalid", str(error)).body, status=400)
            await self.tell()
            if path in self.lose_answers_to and request.transport is not None:
                self.lose_answers_to.discard(path)
                request.transport.abort()
            return web.json_response(text=model.model_dump_json())

        return answer

    def _check_headers(self, request: web.Request) -> None:
        if request.headers.get(wire.WIRE_HEADER) != str(wire.WIRE_VERSION):
            raise Refusal(426, "wire-version", "another release")
        if request.headers.get(wire.BOOT_HEADER) not in self._known:
            raise Refusal(409, "hello-first", "who are you")

    async def _hello(self, request: web.Request) -> wire.Wire:
        hello = wire.Hello.model_validate_json(await request.read())
        self.hellos.append(hello)
        self._known = {hello.boot}
        for turn in self.turns.values():
            if turn.end is None and turn.id != hello.turn:
                self._settle(turn, wire.EndTurn(outcome="crashed", error="gone"))
        return self.told

    async def _inbox(self, request: web.Request) -> wire.Wire:
        wait_s, limit = int(request.query["wait"]), int(request.query["max"])
        within = self.turns.get(int(request.query.get("turn", 0)))
        held = {lease for turn in self.turns.values() for lease in [turn.lease, *turn.leases]}
        for lease, messages in self.leases.items():
            if lease not in held:  # its answer was lost
                return wire.Inbox(lease=lease, messages=messages, waiting=len(self.queued))
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: self.queued, wait_s)
        taken, self.queued = self.queued[:limit], self.queued[limit:]
        if not taken:
            return wire.Inbox(lease=None, messages=[], waiting=0)
        self._lease += 1
        self.leases[self._lease] = taken
        if within is not None:
            within.leases.append(self._lease)
        return wire.Inbox(lease=self._lease, messages=taken, waiting=len(self.queued))

    async def _return(self, request: web.Request) -> wire.Wire:
        self._give_back(int(request.match_info["id"]))
        return wire.Done()

    async def _messages(self, request: web.Request) -> wire.Wire:
        message = wire.SendMessage.model_validate_json(await request.read())
        if message.key not in self._keys:
            if message.to not in self.told.peers:
                raise Refusal(403, "forbidden", f"scout may not send to {message.to}", "see send.allow")
            self.sent.append(message)
            self._keys[message.key] = wire.Sent(ids=[len(self.sent)])
        return self._keys[message.key]

    async def _begin(self, request: web.Request) -> wire.Wire:
        begin = wire.BeginTurn.model_validate_json(await request.read())
        if begin.key not in self._keys:
            if begin.lease is not None and begin.lease not in self.leases:
                raise Refusal(404, "not-found", "no such lease")
            number = len(self.turns) + 1
            self.turns[number] = Turn(number, begin.lease, [], purpose=begin.purpose)
            self._keys[begin.key] = wire.TurnBegun(turn=number, model=self.told.model)
        begun = self._keys[begin.key]
        if isinstance(begun, wire.TurnBegun) and self.turns[begun.turn].end is not None:
            raise Refusal(409, "conflict", "that turn is over")
        return begun

    async def _events(self, request: web.Request) -> wire.Wire:
        turn = self._turn(request)
        for event in wire.TurnEvents.model_validate_json(await request.read()).events:
            turn.events.setdefault(event.seq, event)
        return wire.EventsTaken(seq=max(turn.events))

    async def _end(self, request: web.Request) -> wire.Wire:
        turn = self._turn(request)
        if turn.end is None:
            self._settle(turn, wire.EndTurn.model_validate_json(await request.read()))
        return wire.Done()

    async def _directives(self, request: web.Request) -> wire.Wire:
        after = int(request.query["after"])
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: len(self.directives) > after, int(request.query["wait"]))
        return wire.Directives(directives=[order for order in self.directives if order.id > after])

    async def _draft(self, request: web.Request) -> wire.Wire:
        draft = wire.SpawnDraft.model_validate_json(await request.read())
        self.calls.append(("drafts", draft))
        return wire.DraftMade(name=draft.name, commit="0" * 40)

    async def _proposal(self, request: web.Request) -> wire.Wire:
        self.calls.append(("proposals", (dict(request.query), await request.read())))
        return self._proposed()

    async def _draft_commit(self, request: web.Request) -> wire.Wire:
        parts: dict[str, bytes] = {}
        async for part in await request.multipart():
            name = getattr(part, "name", None) or ""
            parts[name] = await part.read()  # type: ignore[union-attr] # no nested parts here
        self.calls.append(("draft-commit", (request.match_info["name"], dict(request.query), parts)))
        return self._proposed()

    async def _parked(self, _request: web.Request) -> wire.Wire:
        self.calls.append(("parked", None))
        return wire.Done()

    async def _verb(self, request: web.Request) -> wire.Wire:
        self.calls.append((request.match_info["verb"], request.match_info["name"]))
        return wire.Done()

    async def _agents(self, _request: web.Request) -> wire.Wire:
        return wire.Agents(agents=self.agents)

    async def _own_status(self, _request: web.Request) -> wire.Wire:
        return wire.OwnStatus(
            state="thinking",
            model="haiku",
            generation=3,
            commit="c" * 40,
            nap_until="2026-01-01T00:01:00Z",
            waiting=2,
            held=1,
            questions=[wire.OpenQuestion(id=7, question="why?", expires_at=None)],
            peers=["manager", "operator"],
            settings={"bash.allow": ["git *"], "network.allow": []},
            budget_limit_usd=5.0,
            budget_left_usd=1.25,
            budget_resets_at="2026-01-02T00:00:00Z",
            queued=["nap"],
        )

    async def _logs(self, request: web.Request) -> wire.Wire:
        return wire.Logs(lines=[f"log of {request.match_info['name']}"])

    async def _bundle(self, request: web.Request) -> web.Response:
        data = self.bundles.get(request.match_info["name"])
        if data is None:
            refusal = Refusal(404, "not-found", "no such repository")
            return web.json_response(refusal.body, status=404)
        return web.Response(body=data)

    def _noted(self, name: str, body: type[Model], answer: Callable[[], wire.Wire]) -> Handler:
        async def handle(request: web.Request) -> wire.Wire:
            self.calls.append((name, body.model_validate_json(await request.read())))
            return answer()

        return handle

    def _proposed(self) -> wire.Wire:
        return wire.Proposed(proposal=11, state="examining")

    def _turn(self, request: web.Request) -> Turn:
        turn = self.turns.get(int(request.match_info["id"]))
        if turn is None:
            raise Refusal(404, "not-found", "no such turn")
        return turn

    def _settle(self, turn: Turn, end: wire.EndTurn) -> None:
        turn.end = end
        arrived = {turn.lease, *(turn.leases if end.leases is None else end.leases)}
        for lease in [turn.lease, *turn.leases]:
            if lease is None or lease not in self.leases:
                continue
            if end.outcome in {"ok", "cancelled"} and lease in arrived:
                self.acked += [message.id for message in self.leases.pop(lease)]
            else:
                self._give_back(lease)

    def _give_back(self, lease: int) -> None:
        messages = self.leases.pop(lease, [])
        self.queued[:0] = [message.model_copy(update={"redelivered": True}) for message in messages]


def error_of(body: bytes) -> dict[str, str]:
    """The error envelope of an answer."""
    found: dict[str, str] = json.loads(body)["error"]
    return found
