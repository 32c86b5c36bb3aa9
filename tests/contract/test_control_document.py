"""docs/openapi.json, and that answers are what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reconciler.control import openapi
from reconciler.control.auth import Door
from reconciler.control.routes import ROUTES
from tests.contract.control_kit import body_of, path_of
from tests.fakes.unixhttp import Api

pytestmark = pytest.mark.asyncio


async def test_the_document_is_served_and_checked_in() -> None:
    checked_in = (Path(__file__).parents[2] / "docs" / "openapi.json").read_text()
    assert checked_in == openapi.text(), "run: python -m reconciler.control.openapi"


async def test_the_document_covers_every_route_and_refers_to_nothing_missing() -> None:
    document = openapi.document()
    assert document["openapi"] == "3.1.0"
    described = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', openapi.text()):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_answers_are_what_the_document_says(control: Api) -> None:
    document = openapi.document()
    for route in ROUTES:
        if route.special is not None or Door.CONTROL not in route.doors:
            continue
        answer = await control.call(route.method, path_of(route), body_of(route))
        if answer.status != 200:
            continue
        operation = document["paths"][route.path][route.method.lower()]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
            answer.json
        )
