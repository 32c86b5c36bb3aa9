"""Whatever JSON an agent sends is passed or refused with a reason; nothing else comes of the screening."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reconciler.gateway.screening import Refusal, Rules, for_counting, screen, with_max_tokens

MODEL = "claude-haiku-5-5"
WORDS = st.sampled_from([
    "text", "image", "document", "tool_result", "url", "base64", "file", "content", "custom",
    "web_search_20250305", "tool_addition", "tool_reference", "type", "source", "role", "user", "clear_x",
    "compact_x", "edits",
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)
FIELDS = [
    "messages",
    "system",
    "tools",
    "context_management",
    "thinking",
    "max_tokens",
    "mcp_servers",
    "stream",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sets(WORDS))
def test_any_body_is_passed_or_refused(fields: dict[str, Any], named: set[str]) -> None:
    raw = json.dumps({"model": MODEL, "max_tokens": 5, "messages": [], **fields}).encode()
    refusal = None
    try:
        screened = screen(raw, Rules(frozenset({MODEL}), frozenset(named)), counting=False)
    except Refusal as found:
        refusal = found
    else:
        assert screened.model == MODEL
        assert json.loads(with_max_tokens(raw, 1))["max_tokens"] == 1
        assert json.loads(for_counting(raw))["model"] == MODEL
    if refusal is not None:
        assert refusal.status in {400, 403, 413}
        assert refusal.message.isprintable()


@given(JSON)
def test_no_url_or_file_source_passes_however_it_is_wrapped(inside: Any) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://192.0.2.1/"}, "extra": inside}
    wrapped = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, image]}
    deeper = {"type": "document", "source": {"type": "content", "content": [wrapped]}}
    for blocks in ([image], [wrapped], [deeper]):
        raw = json.dumps({"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": blocks}]})
        try:
            screen(raw.encode(), Rules(frozenset({MODEL})), counting=False)
        except Refusal:
            continue
        raise AssertionError(raw)
