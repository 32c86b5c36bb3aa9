"""The OpenAPI 3.1 document of the control API, made from the table of routes and the pydantic models.

`python -m reconciler.control.openapi` writes docs/openapi.json; a test compares it, so that a change of the
API is visible in the diff.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from reconciler import __version__
from reconciler.control.auth import BOTH
from reconciler.control.call import Route
from reconciler.control.client import SESSION_HEADER
from reconciler.control.edge import JSON_MAX_BYTES, Param
from reconciler.control.routes import ROUTES

_REF = "#/components/schemas/{model}"
_JSON = "application/json"
_ABOUT = (
    "HTTP/JSON on two unix sockets. On `control.sock` the peer's uid is the operator (root or the operators' "
    f"group). On `ui.sock` the peer is the web server, and `{SESSION_HEADER}` carries a browser's session. "
    'Errors are `{"error": {"code", "message", "hint"}}`; `code` is a stable word for programs.'
)

_ERROR_SCHEMA: dict[str, Any] = {
    "title": "Error",
    "description": "Why a call was refused or failed.",
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "hint"],
            "additionalProperties": False,
            "properties": {
                "code": {"type": "string", "description": "A stable word for programs."},
                "message": {"type": "string", "description": "What was attempted and found."},
                "hint": {"type": "string", "description": "What to do; may be empty."},
            },
        }
    },
}

_ERRORS = {
    "400": "The request is wrong; nothing was changed.",
    "401": "Nobody is logged in, or the session has ended.",
    "403": "The caller may not do this, or not on this socket.",
    "404": "There is nothing of that name or number.",
    "409": "The world has moved on since the caller looked.",
    "413": "The body is too large.",
    "500": "A failure that repeating does not mend, or a bug with its number.",
    "503": "Not now; `Retry-After` says when.",
}


@functools.cache
def document() -> dict[str, Any]:
    """The document as a mapping; do not change it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "hyperhive control API", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/", "description": "control.sock or ui.sock"}],
        "security": [{"peer": []}, {"session": []}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "responses": {
                name: {
                    "description": text,
                    "content": {_JSON: {"schema": {"$ref": _REF.format(model="Error")}}},
                }
                for name, text in _ERRORS.items()
            },
            "securitySchemes": {
                "peer": {
                    "type": "http",
                    "scheme": "peer-credentials",
                    "description": "control.sock: the kernel says who the peer is.",
                },
                "session": {
                    "type": "apiKey",
                    "in": "header",
                    "name": SESSION_HEADER,
                    "description": "ui.sock.",
                },
            },
        },
    }


@functools.cache
def text() -> str:
    """The document as JSON text, the same on every host."""
    return json.dumps(document(), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def _paths() -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> dict[str, Any]:
    doors = "" if route.doors == BOTH else f" Only on {', '.join(sorted(route.doors))}."
    role = "nobody" if route.role is None else str(route.role)
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "description": f"Role: {role}.{doors}",
        "x-role": role,
        "x-sockets": sorted(route.doors),
        "parameters": [*_path_parameters(route), *(_query_parameter(param) for param in route.query)],
        "responses": {"200": _success(route)}
        | {status: {"$ref": f"#/components/responses/{status}"} for status in _ERRORS},
    }
    if route.role is None:
        operation["security"] = []
    if route.special == "stream":
        operation["parameters"].append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "schema": {"type": "integer"},
                "description": "Replay from after this id; goes before `after`.",
            }
        )
    if route.request is not None:
        fields = route.request.model_fields.values()
        operation["requestBody"] = {
            "required": any(field.is_required() for field in fields),
            "description": f"At most {JSON_MAX_BYTES >> 20} MiB.",
            "content": {_JSON: {"schema": {"$ref": _REF.format(model=route.request.__name__)}}},
        }
    return operation


def _operation_id(route: Route) -> str:
    """`post_agents_name_start` from POST /v1/agents/{name}/start."""
    words = re.findall(r"[a-z]+", route.path.removeprefix("/v1"))
    return "_".join([route.method.lower(), *words])


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schemas: dict[str, dict[str, Any]] = {
        "name": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,30}$"},
        "peer": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,30}$"},
        "id": {"type": "integer", "minimum": 1},
        "attachment": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    }
    about = {
        "name": "An agent's name.",
        "peer": "The other agent's name.",
        "id": "The number of the row.",
        "attachment": "As `POST …/attachments` answered it.",
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schemas[name], "description": about[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameter(param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": param.kind}
    if param.kind != "string":
        schema |= {"minimum": param.low} | ({"maximum": param.high} if param.high < 2**53 else {})
    elif param.choices:
        schema["enum"] = list(param.choices)
    else:
        schema["pattern"] = f"^{param.pattern}$"
    if param.default is not None:
        schema["default"] = param.default
    return {
        "name": param.name,
        "in": "query",
        "required": False,
        "description": param.description,
        "schema": schema,
    }


def _success(route: Route) -> dict[str, Any]:
    if route.special == "archive":
        return {
            "description": route.summary,
            "content": {"application/x-tar": {"schema": {"type": "string"}}},
        }
    if route.answer is None:
        return {"description": route.summary, "content": {_JSON: {"schema": {"type": "object"}}}}
    reference = {"$ref": _REF.format(model=route.answer.__name__)}
    if route.special == "stream":
        about = "Frames with `id`, `event` (the kind) and `data`: the JSON of an Event. A comment every 15 s."
        content = {"text/event-stream": {"schema": {"type": "string"}, "x-event-schema": reference}}
        return {"description": about, "content": content}
    return {"description": route.summary, "content": {_JSON: {"schema": reference}}}


def _schemas() -> dict[str, Any]:
    models: dict[type[BaseModel], None] = {}
    for route in ROUTES:
        models |= {model: None for model in (route.request, route.answer) if model is not None}
    names = [model.__name__ for model in models]
    assert len(set(names)) == len(names), "two models of one name would overwrite each other"
    requests = {route.request for route in ROUTES}
    inputs = [(model, "validation" if model in requests else "serialization") for model in models]
    _, definitions = models_json_schema(inputs, ref_template=_REF)  # type: ignore[arg-type] # the literals' type is lost
    return {**dict(sorted(definitions["$defs"].items())), "Error": _ERROR_SCHEMA}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reconciler.control.openapi")
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/openapi.json"), help="what to write")
    target = parser.parse_args().file
    target.write_text(text(), encoding="utf-8")
