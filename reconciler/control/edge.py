"""What the control server and the agent server share: HTTP to checked values, errors to envelopes.

Everything that comes in is hostile here: bodies are bounded while they are read, parsed by pydantic only, and
query parameters are closed sets. Knows nothing of routes, roles or services.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog
from aiohttp import http_exceptions, web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ValidationError

from reconciler.control.running import LINGER_S, Heard
from reconciler.errors import HiveError, OperatorError, PermanentError, TemporaryError, disk_full

log = structlog.get_logger("http")

ID_MAX = 2**63 - 1  # what SQLite can hold
JSON_MAX_BYTES = 1024 * 1024
BODY_READ_S = 10.0
# The stream of a request that has begun: no envelope can be sent any more.
BEGUN = web.RequestKey("hive.begun", web.StreamResponse)
KEEPALIVE_S = 30.0  # also how long the head of a request may take

Value = str | int | float | None
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_M = TypeVar("_M", bound=BaseModel)

# Arguments of aiohttp's connections. Bodies are not decompressed: a small one could grow without bound.
CONNECTION: Mapping[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "handler_cancellation": True,  # `Running` shields what must not be cancelled
    "keepalive_timeout": KEEPALIVE_S,
    "lingering_time": LINGER_S,
    "max_field_size": 8190,
    "max_line_size": 32768,  # descriptions travel in the query of bundle uploads
    "tcp_keepalive": False,
}


class _NotHttp(logging.Filter):
    """Drops aiohttp's tracebacks of malformed requests: anybody inside a container can make any number."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(error, http_exceptions.HttpProcessingError)


def connection_logger() -> logging.Logger:
    """The logger for aiohttp's connections: its own bugs are logged, hostile bytes are not."""
    logger = logging.getLogger("hived.http")
    if not logger.filters:
        logger.addFilter(_NotHttp())
    return logger


def refusal(status: int, code: str, message: str, hint: str = "") -> OperatorError:
    """An error of the caller with exactly this HTTP status."""
    error = OperatorError(message, code=code, hint=hint)
    error.status = status
    return error


# ---------------------------------------------------------------------------------------------- parameters
@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter: its type, bounds (inclusive) or choices, and what it means."""

    name: str
    kind: Literal["integer", "number", "string"]
    description: str
    default: Value = None
    low: int = 0
    high: int = ID_MAX
    choices: tuple[str, ...] = ()
    pattern: str = r"[^\0]{0,2000}"

    def parse(self, text: str) -> Value:
        """The value, else `OperatorError` that names the parameter and what is allowed."""
        if self.kind == "string":
            if self.choices and text not in self.choices:
                raise OperatorError(
                    f"{self.name}: {text[:60]!r} is none of its values",
                    hint=f"one of: {', '.join(self.choices)}",
                )
            if not re.fullmatch(self.pattern, text, re.DOTALL):
                raise OperatorError(f"{self.name}: {text[:60]!r} is not allowed", hint=self.description)
            return text
        whole = self.kind == "integer"
        if re.fullmatch(r"[0-9]{1,19}" if whole else r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
            number = int(text) if whole else float(text)
            if self.low <= number <= self.high:
                return number
        what = "a whole number" if whole else "a number"
        raise OperatorError(f"{self.name}: {text[:60]!r} is not {what} from {self.low} to {self.high}")


def parse_query(request: web.Request, params: tuple[Param, ...]) -> dict[str, Value]:
    """Every parameter with its value or default. Unknown and repeated ones are refused."""
    known = {param.name: param for param in params}
    values: dict[str, Value] = {param.name: param.default for param in params}
    given = request.query
    for name in given:
        if name not in known:
            hint = f"known here: {', '.join(known)}" if known else "this call has no parameters"
            raise OperatorError(f"there is no parameter {name[:60]!r}", hint=hint)
        texts = given.getall(name)
        if len(texts) > 1:
            raise OperatorError(f"{name} is given {len(texts)} times")
        _check_text(name, texts[0])
        values[name] = known[name].parse(texts[0])
    return values


def parse_id(text: str) -> int:
    """A row's id from a path, else 404: there is nothing of another form."""
    if re.fullmatch(r"[0-9]{1,19}", text) and 1 <= int(text) <= ID_MAX:
        return int(text)
    raise OperatorError(
        f"{text[:60]!r} is not the number of anything", code="not-found", hint="ids are numbers from 1"
    )


# -------------------------------------------------------------------------------------------------- bodies
async def chunks(request: web.Request, limit: int, *, within_s: float | None = None) -> AsyncIterator[bytes]:
    """The body in pieces: at most `limit` bytes (else 413), all within `within_s` (else 408)."""
    within_s = within_s or BODY_READ_S
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)
    size = 0
    end = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            async with asyncio.timeout_at(end):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise refusal(408, "timeout", f"the body did not arrive within {within_s:g} s") from error
        except (ConnectionError, web.RequestPayloadError) as error:
            raise refusal(400, "cut", "the request was cut off") from error
        if not chunk:
            return
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        yield chunk


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body; bounds as for `chunks`."""
    return b"".join([chunk async for chunk in chunks(request, limit)])


def too_large(limit: int) -> OperatorError:
    """413 with the limit in words."""
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
    return OperatorError(f"the body is larger than {size}", code="too-large", hint="send less, or in parts")


async def read_model(request: web.Request, model: type[_M], limit: int) -> _M:
    """The body as `model`. 400 "not-json" or "invalid" with the path of the first field that is wrong."""
    return parse_model(await read_body(request, limit), model)


def parse_model(body: bytes, model: type[_M]) -> _M:
    """`body` as `model`; see `read_model`. An empty body stands for an empty object."""
    try:
        value = model.model_validate_json(body if body.strip() else b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        if first["type"] == "json_invalid":
            raise OperatorError(f"the body is not JSON: {first['msg']}", code="not-json") from error
        where = ".".join(str(part)[:60] for part in first["loc"]) or "the body"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        hint = f"the body is a {model.__name__}"
        raise OperatorError(f"{where}: {first['msg']}{more}", hint=hint) from error
    check(value)
    return value


def check(value: object, where: str = "") -> None:
    """Refuse what pydantic lets pass and databases and other languages do not: integers beyond 64 bits, NUL
    in text, and numbers that are no JSON. Open mappings (`dict[str, Any]`) may hold the first two."""
    match value:
        case BaseModel():
            for name in type(value).model_fields:
                check(getattr(value, name), f"{where}.{name}" if where else name)
        case dict():
            _check_finite(value, where)
        case list() | tuple():
            for index, item in enumerate(value):
                check(item, f"{where}.{index}")
        case str():
            _check_text(where, value)
        case float():
            _check_finite(value, where)
        case int() if abs(value) > ID_MAX:
            raise OperatorError(f"{where}: the number is out of range")
        case _:
            pass


def _check_text(where: str, text: str) -> None:
    if "\0" in text:
        raise OperatorError(f"{where}: text must not hold a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OperatorError(f"{where}: text must be Unicode without lone surrogates") from error


def _check_finite(value: object, where: str) -> None:
    match value:
        case dict():
            for item in value.values():
                _check_finite(item, where)
        case list():
            for item in value:
                _check_finite(item, where)
        case float() if not math.isfinite(value):
            raise OperatorError(f"{where}: NaN and Infinity are no JSON", code="not-json")
        case _:
            pass


# ------------------------------------------------------------------------------------------------- answers
def answer(model: BaseModel) -> web.Response:
    """A model as JSON, with the names of its wire format."""
    return web.Response(body=model.model_dump_json(by_alias=True).encode(), content_type="application/json")


def error_answer(error: HiveError) -> web.Response:
    """The envelope of `reconciler.errors`."""
    response = web.json_response(error.as_json(), status=error.status)
    if isinstance(error, TemporaryError):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.after_s)))
    return response


def envelopes(where_to_look: str, heard: Heard) -> Middleware:
    """The middleware that turns every failure of a handler into an envelope. Bugs get an id that stands in
    the log, too. `where_to_look` is the hint of unknown paths; `heard` is told of every request.

    One of the three places where everything is caught (house rule).
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        heard.note(request)
        try:
            return await handler(request)
        except HiveError as error:
            if BEGUN in request:  # a stream that was cut short
                return request[BEGUN]
            if error.status >= 500 and not isinstance(error, TemporaryError):
                log.warning("http.failed", path=request.path, code=error.code, message=error.message)
            return error_answer(error)
        except web.HTTPException as error:
            return error_answer(_of_http(request, error, where_to_look))
        except Exception as error:
            if full := disk_full(error):
                return error_answer(full)
            bug = secrets.token_hex(4)
            log.exception("http.bug", path=request.path, method=request.method, bug=bug)
            if BEGUN in request:
                return request[BEGUN]
            hint = f"hived's log tells more: look for {bug}"
            return error_answer(PermanentError(f"a bug in hived (number {bug})", code="bug", hint=hint))

    return middleware


def _of_http(request: web.Request, error: web.HTTPException, where_to_look: str) -> HiveError:
    what = f"{request.method} {request.path[:200]}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return refusal(405, "wrong-method", f"there is no {what}", hint=f"this path takes: {allowed}")
    if error.status == 404:
        return refusal(404, "not-found", f"there is no {what}", hint=where_to_look)
    return refusal(error.status, "http", error.reason)
