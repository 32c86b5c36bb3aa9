"""The one way out: requests to the Messages API (or to what stands in for it), with the operator's
credential."""

from __future__ import annotations

import io
import ipaddress
import json
import urllib.request
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from reconciler.errors import OperatorError
from reconciler.gateway.credential import Credential
from reconciler.gateway.deadlines import Deadlines

ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
# aiohttp's buffer between the sockets; beyond it, reading from the API pauses until the agent has read.
_BUFFER_BYTES = 256 * 1024
_LARGE_BYTES = 1024 * 1024


class Unreachable(Exception):  # noqa: N818 - it says what it is
    """No answer came. `sent`: the request may have reached the API, so it may cost."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.message = message
        self.sent = sent


class Upstream:
    """A pool of connections to one upstream."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        proxy: str | None,
        credential: Credential,
        deadlines: Deadlines,
    ) -> None:
        self._session = session
        self._base = base
        self._proxy = proxy
        self._credential = credential
        self._deadlines = deadlines

    @classmethod
    def open(cls, address: str, credential: Credential, deadlines: Deadlines) -> Self:
        """From `https://…`, `http://` on this machine, or `unix:/path`. Call within the running loop."""
        base, socket_path = _parsed(address)
        connector: aiohttp.BaseConnector
        if socket_path:
            connector = aiohttp.UnixConnector(socket_path, limit=0)
        else:
            connector = aiohttp.TCPConnector(limit=0)
        session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BUFFER_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=deadlines.connect_s),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        return cls(session, base, None if socket_path else _proxy(base), credential, deadlines)

    async def post(
        self, path_and_query: str, body: bytes, headers: Mapping[str, str], *, deadline_s: float
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer; the caller closes it.

        Raises `Unreachable`, and `CredentialError` before anything is sent.
        """
        # The beta that goes with a credential is known only after the credential was read.
        added = self._credential.headers()
        sent = {**headers, **added, "accept-encoding": "identity"}
        if betas := self._credential.betas():
            sent["anthropic-beta"] = ",".join([*filter(None, [headers.get("anthropic-beta")]), *betas])
        try:
            return await self._session.post(
                self._base + path_and_query,
                # aiohttp writes bytes in one go, which for large ones would hold up every other agent
                data=body if len(body) < _LARGE_BYTES else io.BytesIO(body),
                headers=sent,
                proxy=self._proxy,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._deadlines.connect_s, sock_read=deadline_s
                ),
            )
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"the API cannot be reached: {error.strerror or error}", sent=False) from None
        except aiohttp.ConnectionTimeoutError:
            raise Unreachable("the API cannot be reached in time", sent=False) from None
        except TimeoutError:
            raise Unreachable(f"the API gave no answer for {deadline_s:.0f} s", sent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"the API broke the connection ({type(error).__name__})", sent=True) from None

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, without the credential should the upstream repeat it. Raises `Unreachable`."""
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > ANSWER_LIMIT_BYTES:
                    raise Unreachable(f"an answer of more than {ANSWER_LIMIT_BYTES} bytes", sent=True)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"the answer broke off ({type(error).__name__})", sent=True) from None
        return self._credential.redacted(b"".join(pieces))

    async def count(self, body: bytes, headers: Mapping[str, str]) -> int | None:
        """How many tokens of input a request has, as the API counts; None if it does not say."""
        try:
            response = await self.post(
                "/v1/messages/count_tokens?beta=true", body, headers, deadline_s=self._deadlines.count_s
            )
            async with response:
                answer = json.loads(await self.read(response)) if response.status == 200 else None
        except (Unreachable, ValueError):
            return None
        counted = answer.get("input_tokens") if isinstance(answer, dict) else None
        return counted if isinstance(counted, int) and counted >= 0 else None

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def _parsed(address: str) -> tuple[str, str]:
    """Base URL and, for a unix socket, its path. A credential never travels in the clear."""
    if address.startswith("unix:/"):
        return "http://localhost", address.removeprefix("unix:")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise OperatorError(
            f"gateway.upstream: {address!r} is no upstream",
            hint="https://HOST[/PREFIX], http:// on this machine, or unix:/PATH",
        )
    if parts.scheme == "http" and not _is_local(parts.hostname):
        raise OperatorError(
            f"gateway.upstream: {address!r} would send the credential unencrypted", hint="use https"
        )
    return address.rstrip("/"), ""


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _proxy(base: str) -> str | None:
    """The proxy that the environment names for it; read here once, so that no other part of it (.netrc)
    counts."""
    parts = urlsplit(base)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)
