"""What of a request passes the gateway and what does not; the reasons are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.gateway.screening import CLI_BETAS, Refusal, Rules, forwarded_headers, screen, with_max_tokens

MODEL = "claude-haiku-5-5"
RULES = Rules(frozenset({MODEL}))
TEXT = {"type": "text", "text": "hi"}


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}], **more}


def with_blocks(*blocks: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": list(blocks)}])


def refused(payload: Any, rules: Rules = RULES) -> Refusal:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(Refusal) as found:
        screen(raw, rules, counting=False)
    return found.value


def test_what_the_cli_sends_passes() -> None:
    said = [
        {"role": "user", "content": [TEXT, {"type": "image", "source": {"type": "base64", "data": ""}}]},
        {"role": "system", "content": "9 tokens left", "output_config": {"effort": "high"}},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "", "signature": "x"}, {"type": "redacted_thinking"},
            {"type": "tool_use", "id": "t", "name": "Bash", "input": {"source": {"type": "url"}}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [
            TEXT, {"type": "document", "source": {"type": "content", "content": [TEXT]}}]}]},
        {"role": "system", "content": [
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "Bash"}}]},
    ]  # fmt: skip
    screened = screen(json.dumps(body(
        messages=said, stream=True, system=[TEXT], metadata={"user_id": "x"},
        tools=[{"name": "Bash", "input_schema": {}, "defer_loading": True}, {"type": "custom", "name": "b"}],
        thinking={"type": "enabled", "budget_tokens": 5}, output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )).encode(), RULES, counting=False)  # fmt: skip
    assert (screened.model, screened.max_tokens, screened.stream, screened.thinking_tokens) == (
        MODEL,
        10,
        True,
        5,
    )
    assert screened.long_cache is False


@pytest.mark.parametrize(("payload", "told"), [
    (body(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tool type 'web_search_20250305'"),
    (body(tools=[{"type": "code_execution_20250825", "name": "c"}]), "code_execution"),
    (body(tools=[{"type": "bash_20250124", "name": "bash"}]), "bash_20250124"),
    (body(tools=[{"type": 7}]), "tool type '7'"),
    (body(mcp_servers=[]), "field 'mcp_servers'"),
    (body(container="c"), "field 'container'"),
    (body(service_tier="auto"), "service_tier"),
    (body(inference_geo="us"), "inference_geo"),
    (body(speed="fast"), "speed"),
    (body(fallbacks=["claude-opus-5-5"]), "fallbacks"),
    (body(betas=["x"]), "betas"),
    (with_blocks({"type": "image", "source": {"type": "url", "url": "x"}}), "image source 'url'"),
    (with_blocks({"type": "image", "source": {"type": ["base64"]}}), "image source ''"),
    (with_blocks({"type": "document", "source": {"type": "file", "file_id": "f"}}), "document source 'file'"),
    (with_blocks({"type": "document"}), "document source ''"),
    (with_blocks({"type": "container_upload", "file_id": "f"}), "container_upload"),
    (with_blocks({"type": "server_tool_use"}), "server_tool_use"),
    (with_blocks({}), "content block ''"),
    (with_blocks({"type": ["text"]}), "content block"),
    (body(system=[{"type": "image", "source": {"type": "url"}}]), "image source 'url'"),
    (with_blocks({"type": "tool_result", "content": [
        {"type": "image", "source": {"type": "url"}}]}), "'url'"),
    (with_blocks({"type": "document", "source": {"type": "content", "content": [
        {"type": "image", "source": {"type": "url"}}]}}), "'url'"),
    (with_blocks({"type": "tool_addition", "tool": {"type": "custom", "name": "x"}}), "reference"),
    (body(context_management={"edits": [{"type": "compact_20260112"}]}), "compact_20260112"),
])  # fmt: skip
def test_what_would_make_the_api_do_more_than_talk_is_closed_by_name(
    payload: dict[str, Any], told: str
) -> None:
    refusal = refused(payload)
    assert (refusal.status, refusal.kind) == (400, "invalid_request_error")
    assert told in refusal.message


@pytest.mark.parametrize(("payload", "name"), [
    (body(tools=[{"type": "web_search_20250305", "name": "w"}]), "web_search"),
    (body(tools=[{"type": "web_search_20250305", "name": "w"}]), "web_search_20250305"),
    (body(mcp_servers=[]), "mcp_servers"),
    (with_blocks({"type": "image", "source": {"type": "url", "url": "x"}}), "url"),
    (with_blocks({"type": "server_tool_use"}), "server_tool_use"),
    (body(context_management={"edits": [{"type": "compact_20260112"}]}), "compact"),
])  # fmt: skip
def test_the_spec_opens_what_it_names_and_nothing_else(payload: dict[str, Any], name: str) -> None:
    raw = json.dumps(payload).encode()
    screen(raw, Rules(frozenset({MODEL}), frozenset({name})), counting=False)
    refused(payload, Rules(frozenset({MODEL}), frozenset({"web_fetch", "file", "clear", "server"})))


@pytest.mark.parametrize(
    "model", ["claude-opus-5-5", "haiku", "", None, 7, ["claude-haiku-5-5"], MODEL + " "]
)
def test_any_other_model_is_refused(model: Any) -> None:
    refusal = refused(body(model=model))
    assert (refusal.status, refusal.reason) == (403, "model")
    assert MODEL in refusal.message


@pytest.mark.parametrize("raw", [
    b"", b"[]", b"\xff{}", b"{", b'{"model": NaN}', b"[" * 100_000, b'{"a": 1e999, "model": Infinity}',
    b'{"model": "claude-opus-5-5", "model": "claude-haiku-5-5", "max_tokens": 1, "messages": []}',
    b'{"model": "claude-haiku-5-5", "max_tokens": 1, "messages": [{"content": "", "content": []}]}',
    b'\xef\xbb\xbf{"model": "claude-haiku-5-5", "max_tokens": 1, "messages": []}',
])  # fmt: skip
def test_what_two_readers_could_read_differently_is_no_json_here(raw: bytes) -> None:
    assert refused(raw).status == 400


@pytest.mark.parametrize("payload", [
    body(messages=None), body(messages={}), body(messages=[7]), body(messages=[{"content": 7}]),
    body(tools={}),
    body(messages=[{"content": [7]}]), body(tools=[7]), body(context_management={"edits": 7}),
    body(context_management=[]), body(max_tokens="many"), body(max_tokens=-1), body(max_tokens=True),
])  # fmt: skip
def test_a_body_of_the_wrong_shape_is_refused_and_never_an_exception(payload: dict[str, Any]) -> None:
    assert refused(payload).status == 400


def test_a_body_of_too_many_parts_is_refused_before_it_is_read() -> None:
    assert refused(b"[" + b"{}," * 1_000_001 + b"{}]").status == 413


def test_an_hour_in_the_cache_is_seen() -> None:
    marked = with_blocks({**TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}})
    assert screen(json.dumps(marked).encode(), RULES, counting=True).long_cache is True


def test_only_known_headers_go_on_and_betas_are_asked_one_by_one() -> None:
    given = [
        ("X-Api-Key", "k"), ("Authorization", "b"), ("Cookie", "c"), ("Host", "h"), ("Connection", "close"),
        ("Content-Length", "7"), ("X-Stainless-Lang", "js"),
        ("Anthropic-Beta", "effort-2025-11-24, mine-2026-01-01"),
        ("anthropic-beta", "effort-2025-11-24"), ("User-Agent", "u" * 5000), ("X-Anthropic-Secret", "s"),
    ]  # fmt: skip
    rules = Rules(frozenset(), frozenset({"mine-2026-01-01"}))
    assert forwarded_headers(given, rules) == {
        "x-stainless-lang": "js", "anthropic-beta": "effort-2025-11-24,mine-2026-01-01",
    }  # fmt: skip
    with pytest.raises(Refusal, match="mine-2026-01-01"):
        forwarded_headers(given, RULES)


def test_no_beta_of_the_cli_opens_a_tool_of_the_api() -> None:
    assert not [
        beta for beta in CLI_BETAS if any(word in beta for word in ("mcp", "code-exec", "files", "web"))
    ]


def test_a_shorter_answer_changes_nothing_but_its_length() -> None:
    raw = json.dumps(body(metadata={"user_id": "ü\ud800"})).encode()
    assert json.loads(with_max_tokens(raw, 3)) == {**json.loads(raw), "max_tokens": 3}


@pytest.mark.parametrize("ttl", [b'"1h"', b'"\\u0031h"', b'"1\\u0068"'])
def test_a_cache_of_an_hour_is_reserved_for_however_it_is_written(ttl: bytes) -> None:
    raw = json.dumps(with_blocks({**TEXT, "cache_control": {"type": "ephemeral", "ttl": "TTL"}})).encode()
    assert screen(raw.replace(b'"TTL"', ttl), RULES, counting=False).long_cache is True
    assert screen(raw.replace(b'"TTL"', b'"5m \\u0031h"'), RULES, counting=False).long_cache is False
