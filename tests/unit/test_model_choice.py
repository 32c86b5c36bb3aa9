"""Which model an agent gets, from its spec, the operator's override, and what this host serves."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.gateway.catalog import known
from reconciler.modelchoice import Choice, choose

OFFERED = ("haiku", "opus")
SERVED = known().names(OFFERED)


def test_the_host_serves_aliases_and_the_ids_they_mean_and_nothing_it_has_no_price_for() -> None:
    assert SERVED == ("haiku", "opus", "claude-haiku-5-5", "claude-opus-5-5")
    assert known().names(["haiku", "gpt-5", "claude-opus-4-1"]) == ("haiku", "claude-haiku-5-5")


@pytest.mark.parametrize(("spec", "override", "choice"), [
    ({"model": "haiku"}, None, Choice("haiku", "haiku", ("haiku", "opus"), "")),
    ({"model": "haiku"}, "opus", Choice("haiku", "opus", ("haiku", "opus"), "")),
    ({"model": "claude-opus-5-5"}, None,
     Choice("claude-opus-5-5", "claude-opus-5-5", ("haiku", "opus", "claude-opus-5-5"), "")),
    ({"model": "haiku", "models": ["haiku"]}, "opus", Choice("haiku", "haiku", ("haiku",), "")),
    ({"model": "haiku", "models": ["haiku", "opus", "sonnet"]}, "opus",
     Choice("haiku", "opus", ("haiku", "opus"), "")),
    ({}, None, Choice("haiku", "haiku", ("haiku", "opus"), "")),
])  # fmt: skip
def test_the_override_counts_where_the_spec_allows_it(
    spec: dict[str, Any], override: str | None, choice: Choice
) -> None:
    assert choose(spec, override, OFFERED, SERVED) == choice


@pytest.mark.parametrize("model", ["claude-opus-4-1", "sonnet", "claude-opus-5"])
def test_a_model_that_the_gateway_would_refuse_is_a_problem_in_words(model: str) -> None:
    assert choose({"model": model}, None, OFFERED, SERVED).problem.startswith(f"{model} is not served")
