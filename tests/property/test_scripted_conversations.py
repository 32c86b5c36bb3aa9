"""The scripted model answers a conversation: order, repetition and other agents change nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import reconciler.scripted
from reconciler.scripted.answer import answer_of, message_of
from reconciler.scripted.conversation import problem_of, read
from reconciler.scripted.play import reply_to
from reconciler.scripted.scenario import Scenario, load

SHIPPED = load(Path(reconciler.scripted.__file__).parent / "scenarios")
WORDS = st.sampled_from([
    "status", "give smith the model opus and let it run `nix build .*`", "break smith", "work slowly", "",
    "draft a new agent scribe that writes", "try a forbidden command", "give smith a memory limit of 16M",
    "\u202e${x}",
])  # fmt: skip
TEXTS = st.one_of(WORDS, st.text(max_size=40))
TOOLS = ["Bash", "Read", "Edit", "Write", "mcp__hyperhive__send", "mcp__hyperhive__request_apply_commit"]


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """Requests as a session sends them: prompts, answers with calls, results, system messages in between."""
    agent = draw(st.sampled_from(["scout", "smith", "hm1nd"]))
    messages: list[dict[str, Any]] = []
    for exchange in range(draw(st.integers(1, 3))):
        said = draw(TEXTS)
        messages.append({"role": "user", "content": f"[message {exchange} from operator, now]\n| {said}"})
        for turn in range(draw(st.integers(0, 4))):
            call = f"toolu_{exchange}_{turn}"
            block = {"type": "tool_use", "id": call, "name": draw(st.sampled_from(TOOLS)), "input": {}}
            result = {
                "type": "tool_result", "tool_use_id": call, "content": draw(TEXTS),
                "is_error": draw(st.booleans()),
            }  # fmt: skip
            messages.append({"role": "assistant", "content": [block]})
            messages.append({"role": "user", "content": [result]})
            if draw(st.booleans()):
                messages.append({"role": "system", "content": "9 tokens left"})
    return {
        "model": "claude-haiku-5-5", "max_tokens": 10, "messages": messages,
        "system": f"You are `{agent}`, an agent",
        "tools": [{"name": name} for name in draw(st.lists(st.sampled_from(TOOLS), unique=True))],
        "stream": draw(st.booleans()),
    }  # fmt: skip


def answer(scenarios: tuple[Scenario, ...], request: dict[str, Any]) -> dict[str, Any]:
    conversation = read(request)
    return message_of(answer_of(reply_to(scenarios, conversation), conversation))


@given(st.lists(conversations(), min_size=1, max_size=3), st.randoms())
def test_an_answer_does_not_depend_on_what_was_asked_before_or_between(
    requests: list[dict[str, Any]], chance: random.Random
) -> None:
    alone = [answer(SHIPPED, request) for request in requests]
    order = list(range(len(requests))) * 2
    chance.shuffle(order)
    for at in order:
        assert answer(SHIPPED, requests[at]) == alone[at]


@given(conversations())
def test_cache_marks_and_streaming_do_not_change_the_answer_or_its_ids(request: dict[str, Any]) -> None:
    marked = dict(request, stream=not request["stream"], messages=[
        dict(message, content=[
            dict(block, cache_control={"type": "ephemeral"})
            for block in (
                [{"type": "text", "text": message["content"]}] if isinstance(message["content"], str)
                else message["content"]
            )
        ])
        for message in request["messages"]
    ])  # fmt: skip
    one, two = answer(SHIPPED, request), answer(SHIPPED, marked)
    assert (one["id"], one["content"]) == (two["id"], two["content"])


@given(conversations())
def test_ids_of_an_answer_are_new_to_the_conversation(request: dict[str, Any]) -> None:
    first = answer(SHIPPED, request)
    longer = dict(request, messages=[*request["messages"], {"role": "assistant", "content": first["content"]},
                                     {"role": "user", "content": "and now?"}])  # fmt: skip
    second = answer(SHIPPED, longer)
    ids = {block["id"] for block in first["content"] if block["type"] == "tool_use"}
    assert first["id"] != second["id"]
    assert not ids & {block["id"] for block in second["content"] if block["type"] == "tool_use"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": JSON}
)
ALMOST = st.fixed_dictionaries({"model": JSON, "messages": st.lists(MESSAGES, max_size=3)})


@given(st.one_of(JSON, ALMOST))
def test_whatever_is_sent_is_answered_or_refused_but_never_an_exception(request: Any) -> None:
    if problem_of(request) == "":
        assert answer(SHIPPED, request)["type"] == "message"
