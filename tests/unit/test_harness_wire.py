"""The wire models and their checked-in schemas say the same."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from harness.wire import models, schemas


def test_the_checked_in_schemas_are_those_of_the_models() -> None:
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in schemas.FOLDER.iterdir()}
    assert on_disk == schemas.rendered(), "run: python -m harness.wire.schemas"


def test_every_wire_model_is_in_the_list_that_schemas_are_made_from() -> None:
    declared = {
        value
        for value in vars(models).values()
        if inspect.isclass(value) and issubclass(value, models.Wire) and value is not models.Wire
    }
    assert declared == set(models.MODELS)


def test_an_unknown_field_is_refused_and_so_is_a_number_sent_as_text() -> None:
    with pytest.raises(ValidationError, match="extra"):
        models.Nap.model_validate_json('{"seconds": 5, "urgent": true}')
    with pytest.raises(ValidationError, match="seconds"):
        models.Nap.model_validate_json('{"seconds": "5"}')
