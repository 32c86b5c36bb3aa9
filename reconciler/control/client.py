"""A typed client of the control API over a unix socket: one method per route of `reconciler.control.models`.

Used by the command line (`control.sock`) and the web server (`ui.sock`, where every call carries the
browser's session). It decides nothing and retries nothing: a failed call raises one of `reconciler.errors`
with the code, message and hint that hived gave, and callers show exactly that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError
from yarl import URL

from reconciler.control import models as api
from reconciler.control.sse import FrameTooLargeError, Parser, encode
from reconciler.errors import HiveError, OperatorError, PermanentError, TemporaryError

SESSION_HEADER = "X-Hive-Session"
ANSWER_MAX_BYTES = 32 << 20
STREAM_SILENCE_S = 45.0  # hived pings every 15 s: three missed pings are a dead stream

_Answer = TypeVar("_Answer", bound=api.Model)
_Query = dict[str, str | int | None]


class ControlClient:
    """One hived. `as_session` gives a view of it that acts for a browser's session over the same connections.

    Every call ends within `deadline_s` seconds. Errors: `OperatorError` (4xx; `code` says which),
    `TemporaryError` code `unavailable` (no hived behind the socket, or it says so) or `timeout`,
    `PermanentError` (5xx, or an answer that is none). Close it once, by the owner.
    """

    def __init__(self, socket: Path | str, *, session: str | None = None, deadline_s: float = 15.0) -> None:
        self.socket = str(socket)
        self._session = session
        self._deadline_s = deadline_s
        self._http: list[aiohttp.ClientSession] = []  # shared with every view, made inside the running loop

    def as_session(self, secret: str | None) -> ControlClient:
        """The same hived, acting for the browser session `secret` (None: nobody)."""
        view = ControlClient(self.socket, session=secret, deadline_s=self._deadline_s)
        view._http = self._http
        return view

    async def close(self) -> None:
        """Close all connections. Whoever reads a stream ends it first: aiohttp does not wake its readers
        here."""
        while self._http:
            await self._http.pop().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---------------------------------------------------------------------------------------------- reads
    async def status(self) -> api.HiveStatus:
        return await self._get(api.HiveStatus, "/status")

    async def agents(self) -> api.AgentList:
        return await self._get(api.AgentList, "/agents")

    async def agent(self, name: str) -> api.Agent:
        return await self._get(api.Agent, f"/agents/{_segment(name)}")

    async def plans(self) -> api.PlanList:
        return await self._get(api.PlanList, "/plans")

    async def spec(self, name: str) -> api.SpecView:
        return await self._get(api.SpecView, f"/agents/{_segment(name)}/spec")

    async def policy(self, name: str, command: str, folder: str = "/state") -> api.PolicyAnswer:
        path = f"/agents/{_segment(name)}/policy"
        return await self._get(api.PolicyAnswer, path, {"command": command, "folder": folder})

    async def generations(self, name: str) -> api.GenerationList:
        return await self._get(api.GenerationList, f"/agents/{_segment(name)}/generations")

    async def plan(self, name: str) -> api.Plan:
        return await self._get(api.Plan, f"/agents/{_segment(name)}/plan")

    async def why(self, name: str) -> api.Why:
        return await self._get(api.Why, f"/agents/{_segment(name)}/why")

    async def transcript(
        self,
        name: str,
        *,
        before: int | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> api.Transcript:
        query: _Query = {"before": before, "after": after, "limit": limit}
        return await self._get(api.Transcript, f"/agents/{_segment(name)}/transcript", query)

    async def logs(self, name: str, *, lines: int | None = None) -> api.LogLines:
        return await self._get(api.LogLines, f"/agents/{_segment(name)}/logs", {"lines": lines})

    async def messages(
        self,
        *,
        agent: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> api.MessageList:
        query: _Query = {"agent": agent, "before": before, "limit": limit}
        return await self._get(api.MessageList, "/messages", query)

    async def proposals(
        self,
        *,
        state: str | None = None,
        agent: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> api.ProposalList:
        query: _Query = {"state": state, "agent": agent, "before": before, "limit": limit}
        return await self._get(api.ProposalList, "/proposals", query)

    async def proposal(self, number: int) -> api.Proposal:
        return await self._get(api.Proposal, f"/proposals/{number}")

    async def diff(self, number: int, *, base: str | None = None) -> api.Diff:
        return await self._get(api.Diff, f"/proposals/{number}/diff", {"base": base})

    async def build_log(self, number: int, *, after: int | None = None) -> api.BuildLog:
        return await self._get(api.BuildLog, f"/proposals/{number}/log", {"after": after})

    async def proposal_why(self, number: int) -> api.Why:
        return await self._get(api.Why, f"/proposals/{number}/why")

    async def questions(
        self,
        *,
        agent: str | None = None,
        state: str | None = None,
        words: str = "",
        before: int | None = None,
        limit: int | None = None,
    ) -> api.QuestionList:
        query: _Query = {"agent": agent, "state": state, "q": words or None, "before": before, "limit": limit}
        return await self._get(api.QuestionList, "/questions", query)

    async def loops(self) -> api.LoopList:
        return await self._get(api.LoopList, "/loops")

    async def drafts(self) -> api.DraftList:
        return await self._get(api.DraftList, "/drafts")

    async def events(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        agent: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
    ) -> api.EventList:
        query: _Query = {"after": after, "before": before, "agent": agent, "kind": kind, "limit": limit}
        return await self._get(api.EventList, "/events", query)

    async def audit(self, *, before: int | None = None, limit: int | None = None) -> api.AuditList:
        return await self._get(api.AuditList, "/audit", {"before": before, "limit": limit})

    async def session(self) -> api.Session:
        return await self._get(api.Session, "/session")

    async def users(self) -> api.UserList:
        return await self._get(api.UserList, "/users")

    async def sessions(self) -> api.SessionList:
        return await self._get(api.SessionList, "/sessions")

    async def spending(self) -> api.SpendingList:
        return await self._get(api.SpendingList, "/spending")

    async def budgets(self) -> api.BudgetList:
        return await self._get(api.BudgetList, "/budgets")

    async def budget(self, name: str | None) -> api.Budget:
        """One agent's; None: the hive's."""
        return await self._get(api.Budget, _scope(name, "budget"))

    async def stats(self, **query: str | int | None) -> api.Stats:
        """Parameters as the route has them: agent, since, until, keys, points, by."""
        return await self._get(api.Stats, "/stats", query)

    async def metrics(self) -> api.MetricList:
        return await self._get(api.MetricList, "/metrics")

    async def scrape(self, request: api.Scrape) -> api.MetricList:
        """`metrics` by the token of the host's configuration instead of a session."""
        return await self._post(api.MetricList, "/scrape", request)

    async def holds(self) -> api.HoldList:
        return await self._get(api.HoldList, "/holds")

    async def kept(self) -> api.KeptList:
        return await self._get(api.KeptList, "/kept")

    # --------------------------------------------------------------------------------------------- writes
    async def new_agent(self, request: api.NewAgent) -> api.Proposal:
        return await self._post(api.Proposal, "/agents", request)

    async def act(self, name: str, verb: str, request: api.Act | None = None) -> api.Agent:
        """`verb`: start, stop, restart, destroy, cancel, wake, compact, new-session or
        revive."""
        return await self._post(api.Agent, f"/agents/{_segment(name)}/{_segment(verb)}", request or api.Act())

    async def hold(self, name: str | None, request: api.Act) -> api.HoldList:
        """One agent; None: the whole hive."""
        return await self._post(api.HoldList, _scope(name, "hold"), request)

    async def release(self, name: str | None, request: api.Act) -> api.HoldList:
        """One agent; None: the whole hive and every agent."""
        return await self._post(api.HoldList, _scope(name, "release"), request)

    async def raise_budget(self, name: str | None, request: api.RaiseBudget) -> api.Budget:
        """One agent's; None: the hive's."""
        return await self._post(api.Budget, f"{_scope(name, 'budget')}/raise", request)

    async def rollback(self, name: str, request: api.Rollback) -> api.Proposal:
        return await self._post(api.Proposal, f"/agents/{_segment(name)}/rollback", request)

    async def purge(self, name: str, request: api.Purge) -> api.Done:
        return await self._post(api.Done, f"/agents/{_segment(name)}/purge", request)

    async def set_model(self, name: str, request: api.SetModel) -> api.Agent:
        return await self._post(api.Agent, f"/agents/{_segment(name)}/model", request)

    async def send(self, request: api.NewMessage) -> api.Message:
        return await self._post(api.Message, "/messages", request)

    async def mark_read(self, message: int) -> api.Message:
        return await self._post(api.Message, f"/messages/{message}/read")

    async def redeliver(self, message: int) -> api.Message:
        return await self._post(api.Message, f"/messages/{message}/redeliver")

    async def propose(self, request: api.Propose) -> api.Proposal:
        return await self._post(api.Proposal, "/proposals", request)

    async def approve(self, number: int, request: api.Approve) -> api.Proposal:
        """Errors: code `conflict` when `request.digest` is not what stands now or the state has moved on."""
        return await self._post(api.Proposal, f"/proposals/{number}/approve", request)

    async def deny(self, number: int, request: api.Decide) -> api.Proposal:
        return await self._post(api.Proposal, f"/proposals/{number}/deny", request)

    async def cancel_proposal(self, number: int, request: api.Decide) -> api.Proposal:
        return await self._post(api.Proposal, f"/proposals/{number}/cancel", request)

    async def answer(self, question: int, request: api.Answer) -> api.Question:
        return await self._post(api.Question, f"/questions/{question}/answer", request)

    async def decide_loop(self, a: str, b: str, request: api.DecideLoop) -> api.LoopList:
        return await self._post(api.LoopList, f"/loops/{_segment(a)}/{_segment(b)}", request)

    async def nap(self, name: str, request: api.NapAgent) -> api.Agent:
        return await self._post(api.Agent, f"/agents/{_segment(name)}/nap", request)

    async def discard_draft(self, name: str, request: api.Act) -> api.DraftList:
        return await self._post(api.DraftList, f"/drafts/{_segment(name)}/discard", request)

    async def cancel_question(self, question: int) -> api.Question:
        return await self._post(api.Question, f"/questions/{question}/cancel")

    async def login_link(self, request: api.NewLoginLink) -> api.LoginLink:
        return await self._post(api.LoginLink, "/login-links", request)

    async def login(self, request: api.Login) -> api.Session:
        return await self._post(api.Session, "/login", request)

    async def logout(self) -> api.Done:
        return await self._post(api.Done, "/logout")

    # -------------------------------------------------------------------------------------------- streaming
    async def stream(
        self,
        after: int | None = None,
        *,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[api.Event, None]:
        """Events after the id `after` (replayed), then live ones; without `after` only live ones.

        Ends when hived ends it (an event of kind `resync` before the end means: read everything anew).
        `on_open` is called once hived has accepted. Errors as for calls; `TemporaryError` also when nothing,
        not even a ping, came for `STREAM_SILENCE_S`. Close the iterator (`aclosing`) to end it early.
        """
        headers = self._headers() | {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline_s, sock_read=STREAM_SILENCE_S)
        parser = Parser()
        try:
            async with self._connections().get(_url("/stream"), headers=headers, timeout=limits) as answer:
                if answer.status != 200:
                    raise _error(answer, await _bounded(answer))
                if on_open is not None:
                    on_open()
                async for chunk in answer.content.iter_any():
                    for frame in parser.feed(chunk):
                        yield _parse(api.Event, frame.data, "/stream")
        except FrameTooLargeError as error:
            raise PermanentError(f"GET /v1/stream: {error}", code="protocol") from error
        except TimeoutError as error:
            raise TemporaryError("the event stream of hived went silent", code="timeout") from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    # -------------------------------------------------------------------------------------------- plumbing
    async def _get(self, kind: type[_Answer], path: str, query: _Query | None = None) -> _Answer:
        return _parse(kind, await self._call("GET", path, query=query), path)

    async def _post(self, kind: type[_Answer], path: str, body: api.Model | None = None) -> _Answer:
        return _parse(kind, await self._call("POST", path, body=body), path)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: _Query | None = None,
        body: api.Model | None = None,
    ) -> bytes:
        headers = self._headers() | {"Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = body.model_dump_json(by_alias=True).encode()
        try:
            async with asyncio.timeout(self._deadline_s):
                request = self._connections().request(method, _url(path, query), headers=headers, data=data)
                async with request as answer:
                    content = await _bounded(answer)
                    if not 200 <= answer.status < 300:
                        raise _error(answer, content)
                    return content
        except TimeoutError as error:
            raise TemporaryError(
                f"hived did not answer {method} /v1{path} within {self._deadline_s:g} s",
                code="timeout",
                hint="it may be busy; try again, or see `hive doctor`",
            ) from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    def _connections(self) -> aiohttp.ClientSession:
        if not self._http:
            # A fresh connection for each call (50 µs on a unix socket): a pooled one that hived's restart has
            # cut would fail a POST in a way that leaves open whether it took effect.
            connector = aiohttp.UnixConnector(self.socket, force_close=True, limit=0)
            self._http.append(
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=aiohttp.ClientTimeout(total=None),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                )
            )
        return self._http[0]

    def _headers(self) -> dict[str, str]:
        return {SESSION_HEADER: self._session} if self._session else {}

    def _unreachable(self, error: aiohttp.ClientError) -> TemporaryError:
        reason = getattr(error, "os_error", None)
        what = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(error).__name__
        return TemporaryError(
            f"hived is not reachable at {self.socket}: {what}",
            hint="is it running? `systemctl status hived`, or the terminal of `make demo`",
        )


def _scope(name: str | None, verb: str) -> str:
    return f"/{verb}" if name is None else f"/agents/{_segment(name)}/{verb}"


def _segment(text: str) -> str:
    """A path segment that stays one, whatever it holds."""
    if text in {"", ".", ".."}:
        raise OperatorError(f"there is nothing of the name {text!r}", code="not-found")
    return quote(text, safe="")


def _url(path: str, query: _Query | None = None) -> URL:
    url = URL(f"http://hive/v1{path}", encoded=True)
    given = {key: str(value) for key, value in (query or {}).items() if value is not None}
    return url.with_query(given) if given else url


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > ANSWER_MAX_BYTES:
            limit = ANSWER_MAX_BYTES >> 20
            raise PermanentError(f"hived's answer is larger than {limit} MiB", code="protocol")
    return bytes(content)


def _parse(kind: type[_Answer], content: bytes | str, path: str) -> _Answer:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise PermanentError(
            f"hived's answer to /v1{path} is not a {kind.__name__}: {where}: {first['msg']}",
            code="protocol",
            hint="hived and this program are of different versions; restart both",
        ) from error


def _error(answer: aiohttp.ClientResponse, content: bytes) -> HiveError:
    """The error that hived's envelope tells of, or one that says that there was no envelope."""
    try:
        envelope = json.loads(content)["error"]
        code, message, hint = str(envelope["code"]), str(envelope["message"]), str(envelope.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        code, message, hint = "protocol", f"hived answered {answer.status} without saying why", ""
    if answer.status in {429, 503}:
        after_s = _seconds(answer.headers.get("Retry-After"))
        return TemporaryError(message, code=code, hint=hint, after_s=after_s)
    if 400 <= answer.status < 500:
        refused = OperatorError(message, code=code, hint=hint)
        refused.status = answer.status
        return refused
    return PermanentError(message, code=code, hint=hint)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdecimal() else 1.0


__all__ = ["ControlClient", "HiveError", "OperatorError", "PermanentError", "TemporaryError", "encode"]
