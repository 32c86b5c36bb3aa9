"""The template of a new agent: values stay values, whatever they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.effects.validation import evaluation
from reconciler.model.states import Role
from reconciler.model.template import nix_string, template_files
from tests.fakes.nixlang import parse

FOLDER = Path(__file__).parents[2] / "modules/templates/agent"


def test_the_flake_template_is_what_hived_seeds_agents_with() -> None:
    files = template_files(Role.AGENT, None, [])
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == files


@pytest.mark.parametrize("role", Role)
def test_the_template_is_a_valid_spec(role: Role) -> None:
    value = parse(template_files(role, "opus", ["git *"])["agent.nix"])
    found = evaluation(value["hyperhive"]).spec
    assert (found.model, found.role, found.bash.allow) == ("opus", role.value, ["git *"])
    assert found.prompt == "prompt.md"


def test_no_pattern_means_no_shell() -> None:
    assert parse(template_files(Role.AGENT, None, [])["agent.nix"])["hyperhive"]["bash"]["allow"] == []


TEXT = st.text(
    st.sampled_from("\"\\$'{}@BASHMODEL;[] \n\t") | st.characters(codec="utf-8", exclude_characters="\0\r"),
    max_size=40,
)


@given(model=TEXT, patterns=st.lists(TEXT, max_size=3))
def test_values_come_back_exactly_and_add_nothing(model: str, patterns: list[str]) -> None:
    value = parse(template_files(Role.AGENT, model or None, patterns)["agent.nix"])
    assert set(value) == {"hyperhive"}
    assert set(value["hyperhive"]) == {"model", "role", "bash", "send", "prompt"}
    assert value["hyperhive"]["model"] == (model or "haiku")
    assert value["hyperhive"]["bash"]["allow"] == patterns


@given(text=TEXT)
def test_a_literal_never_holds_an_open_interpolation_or_quote(text: str) -> None:
    inner = nix_string(text)[1:-1]
    assert not re.search(r'(?<!\\)(?:\\\\)*(?:"|\$\{)', inner)
