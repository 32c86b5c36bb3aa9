"""Whatever lines a Nix client is made to print, reading them never fails and counts stay sane."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.effects.nix.output import BuildOutput
from reconciler.effects.protocols import BuildProgress

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["start", "stop", "result", "msg", "else"]) | json_values,
        "id": st.integers(0, 5) | json_values,
        "type": st.sampled_from([101, 104, 105, 106, 107, 108]) | json_values,
        "level": st.integers(-1, 9) | json_values,
        "fields": st.lists(json_values, max_size=4) | json_values,
        "text": json_values,
        "msg": json_values,
    },
)


@pytest.mark.asyncio
@given(st.lists(entries.map(lambda entry: "@nix " + json.dumps(entry)) | st.text(max_size=50), max_size=30))
async def test_no_line_whatever_breaks_it(lines: list[str]) -> None:
    shown: list[str] = []
    progress: list[BuildProgress] = []

    async def log(line: str) -> None:
        shown.append(line)

    output = BuildOutput(log, progress.append)
    for line in lines:
        await output.take(line)
    await output.end()
    for told in progress:
        assert 0 <= told.built <= told.expected
        assert len(told.running) <= 8
    assert all("\n" not in line for line in shown)
