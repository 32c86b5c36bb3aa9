"""Scenario files: what is refused and how it is said; which step answers; what a template may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import OperatorError
from reconciler.scripted.answer import answer_of, events_of, message_of
from reconciler.scripted.conversation import problem_of, read
from reconciler.scripted.play import FALLBACK, Reply, reply_to
from reconciler.scripted.scenario import Scenario, Step, When, load, load_file, schema
from reconciler.scripted.templates import FILTERS

SYSTEM = "You are a Claude agent, built on Anthropic's SDK.\nYou are `scout`, an agent of a hyperhive: …"
PROMPT = "hyperhive: scout, you have 1 message.\n\n[message 7 from operator, 2026-11-22T10:00:00Z]\n| "


def scenario(*steps: dict[str, Any], **more: Any) -> Scenario:
    return Scenario.model_validate({"name": "s", "steps": list(steps), **more})


def body(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "claude-haiku-5-5",
        "max_tokens": 100,
        "system": SYSTEM,
        "messages": list(messages),
        **more,
    }


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def calls(*tools: tuple[str, str]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": call, "name": name, "input": {}} for call, name in tools],
    }


def results(**texts: str) -> dict[str, Any]:
    content = [{"type": "tool_result", "tool_use_id": call, "content": text} for call, text in texts.items()]
    return {"role": "user", "content": content}


def failed(call: str, text: str) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call, "content": text, "is_error": True}
    return {"role": "user", "content": [block]}


def play(scenarios: Scenario | list[Scenario], request: dict[str, Any]) -> Reply:
    assert problem_of(request) == ""
    return reply_to(scenarios if isinstance(scenarios, list) else [scenarios], read(request))


CALL = {"tools": [{"name": "Bash", "input": {"command": "id"}}]}


# ----------------------------------------------------------------------------------- reading a request
def test_the_agent_is_who_the_system_prompt_says_and_not_the_cli() -> None:
    assert read(body(user("hi"))).agent == "scout"
    assert read(body(user("hi"), system="You are powered by X.\nYou are a Claude agent")).agent == ""


def test_reminders_of_the_cli_are_not_part_of_the_prompt() -> None:
    asked = read(body(user("<system-reminder>\nattribution\n</system-reminder>\n", "hello there")))
    assert asked.prompt == "hello there"


def test_system_messages_in_the_middle_neither_start_nor_end_an_exchange() -> None:
    told = {"role": "system", "content": "<total_tokens>9 tokens left</total_tokens>"}
    asked = read(body(user("go"), told, calls(("a", "Bash")), results(a="ok"), told))
    assert asked.prompt == "go"
    assert [turn.results[0].text for turn in asked.turns] == ["ok"]


def test_a_prompt_after_an_interrupted_tool_starts_a_new_exchange() -> None:
    mixed = results(a="stopped")
    mixed["content"] += user("[Request interrupted by user for tool use]\n", "second")["content"]
    asked = read(body(user("first"), calls(("a", "Bash")), mixed))
    assert (asked.prompt, asked.turns) == ("second", ())


@pytest.mark.parametrize("own", [
    "Output token limit hit. Resume directly — no apology",
    "Your response above was cut off mid-stream. Resume directly from where it stops",
    "[Your previous response had no visible output. Please continue and produce a user-visible response.]",
])  # fmt: skip
def test_texts_of_the_cli_itself_continue_the_exchange(own: str) -> None:
    asked = read(
        body(user("go"), {"role": "assistant", "content": [{"type": "text", "text": "par"}]}, user(own))
    )
    assert (asked.prompt, len(asked.turns)) == ("go", 1)


def test_results_stand_in_the_order_of_the_calls_even_if_they_come_in_another() -> None:
    asked = read(body(user("go"), calls(("a", "Read"), ("b", "Bash")), results(b="two", a="one")))
    assert [(found.tool, found.text) for found in asked.results] == [("Read", "one"), ("Bash", "two")]


@pytest.mark.parametrize(("request_body", "said"), [
    ([], "no JSON object"),
    ({"messages": []}, "model"),
    ({"model": "m", "messages": []}, "at least one message"),
    ({"model": "m", "messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
    ({"model": "m", "messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
    ({"model": "m", "messages": [{"role": "user", "content": "x"}], "system": 3}, "system"),
])  # fmt: skip
def test_a_body_that_is_no_request_is_told_what_is_wrong(request_body: Any, said: str) -> None:
    assert said in problem_of(request_body)


# ------------------------------------------------------------------------------------- choosing a step
def test_the_step_is_the_number_of_answers_since_the_prompt() -> None:
    plays = scenario(CALL, {"text": "done"})
    assert play(plays, body(user("go"))).tools == (("Bash", {"command": "id"}),)
    assert play(plays, body(user("go"), calls(("a", "Bash")), results(a="uid=0"))).texts == ("done",)
    again = body(
        user("go"), calls(("a", "Bash")), results(a="0"), {"role": "assistant", "content": "done"}, user("go")
    )
    assert play(plays, again).branch == "steps[0]"


def test_after_the_last_step_the_scenario_says_that_it_is_over() -> None:
    over = body(
        user("go"), {"role": "assistant", "content": "done"}, user("Output token limit hit. Resume directly")
    )
    assert "is over" in play(scenario({"text": "done"}), over).texts[0]


def test_nothing_that_matches_gives_the_fallback() -> None:
    assert play(scenario({"text": "x"}, when={"agent": "smith"}), body(user("go"))).texts == (FALLBACK,)


def test_the_first_scenario_whose_conditions_all_hold_plays() -> None:
    choices = [
        scenario({"text": "needs Bash"}, name="a", when={"tools": ["Bash"]}),
        scenario({"text": "other model"}, name="b", when={"model": "opus"}),
        scenario({"text": "not this"}, name="c", when={"not_prompt": "stat"}),
        scenario({"text": "this"}, name="d", when={"prompt": "stat(?P<rest>us)?", "system": "Claude"}),
    ]
    assert play(choices, body(user("status"))).scenario == "d"
    offered = body(user("status"), tools=[{"name": "Bash", "input_schema": {}}])
    assert play(choices, offered).scenario == "a"


def test_a_failed_tool_leads_to_on_error_and_is_told_there() -> None:
    plays = scenario(CALL, {"text": "fine"}, on_error=[{"text": "oh: ${result.-1}"}])
    assert play(plays, body(user("go"), calls(("a", "Bash")), failed("a", "refused: no"))).texts == (
        "oh: refused: no",
    )


def test_a_failed_tool_without_on_error_is_told_in_plain_words() -> None:
    reply = play(
        scenario(CALL, {"text": "fine"}), body(user("go"), calls(("a", "Bash")), failed("a", "x ${y}"))
    )
    assert reply.texts == ("Bash failed: x ${y}",)


def test_a_failure_within_on_error_does_not_go_round_in_circles() -> None:
    plays = scenario(CALL, {"text": "fine"}, on_error=[CALL, {"text": "told"}])
    asked = body(user("go"), calls(("a", "Bash")), failed("a", "1"), calls(("b", "Bash")), failed("b", "2"))
    assert play(plays, asked).texts == ("Bash failed: 2",)


def test_a_condition_that_does_not_hold_leads_to_otherwise_and_stays_there() -> None:
    step = {"if_result": "^ok$", "text": "well", "otherwise": [{**CALL, "text": "hm"}, {"text": "end"}]}
    plays = scenario(CALL, step, {"text": "never"})
    first = body(user("go"), calls(("a", "Bash")), results(a="bad"))
    assert play(plays, first).texts == ("hm",)
    second = body(*first["messages"], calls(("b", "Bash")), results(b="ok"))
    assert play(plays, second).branch == "steps[1].otherwise[1]"
    assert play(plays, body(user("go"), calls(("a", "Bash")), results(a="ok"))).texts == ("well",)


def test_a_step_that_expects_an_error_takes_the_other_way_when_there_is_none() -> None:
    plays = scenario(CALL, {"expect": "error", "text": "refused", "otherwise": [{"text": "it ran"}]})
    assert play(plays, body(user("go"), calls(("a", "Bash")), failed("a", "no"))).texts == ("refused",)
    assert play(plays, body(user("go"), calls(("a", "Bash")), results(a="yes"))).texts == ("it ran",)


def test_captures_fill_later_steps_and_empty_ones_leave_steps_out() -> None:
    plays = scenario(
        CALL,
        {"capture": {"id": "^([0-9a-f]{4})$", "extra": r"extra=(\w+)|\Z"}, "text": "got ${id}", **CALL},
        {"only_if": "extra", "text": "with ${extra}"},
        {"unless": "extra", "text": "without, ${id}"},
    )
    asked = body(
        user("go"), calls(("a", "Bash")), results(a="noise\nbeef"), calls(("b", "Bash")), results(b="")
    )
    assert play(plays, asked).texts == ("without, beef",)
    asked = body(
        user("go"), calls(("a", "Bash")), results(a="beef\nextra=yes"), calls(("b", "Bash")), results(b="")
    )
    assert play(plays, asked).texts == ("with yes",)


# ------------------------------------------------------------------------------------------- templates
def test_values_are_filled_from_groups_definitions_results_and_json() -> None:
    plays = scenario(
        CALL,
        {"tools": [{"name": "t", "input": {
            "a": "${who|nix}", "b": ["${both}", "$${plain}"], "n": "${number|int}",
            "j": "${result.0.json.ids.0}", "s": "${who|shell}", "l": "${result.-1|line}"}}]},
        when={"prompt": r"give (?P<who>\S+) (?P<number>\d+)"},
        define={"both": "${who}-${number}"},
    )  # fmt: skip
    asked = body(user('give "x${y}" 12'), calls(("a", "Bash")), results(a='{"ids": [42]}'))
    assert play(plays, asked).tools[0][1] == {
        "a": '\\"x\\${y}\\"', "b": ['"x${y}"-12', "${plain}"], "n": 12, "j": "42", "s": "'\"x${y}\"'",
        "l": '{"ids": [42]}',
    }  # fmt: skip


def test_a_value_that_cannot_be_filled_is_said_and_not_raised() -> None:
    plays = scenario(CALL, {"text": "${result.0.json.ids.0}"})
    reply = play(plays, body(user("go"), calls(("a", "Bash")), results(a="no json")))
    assert "cannot go on" in reply.texts[0]
    assert "no json" in reply.texts[0]


# ----------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize(("text", "place", "why"), [
    ("scenarios: [", "no YAML", "while parsing"),
    ("scenarios:\n- {name: a, name: b, steps: [{text: x}]}", "no YAML", "given twice"),
    ("{}", "scenarios", "Field required"),
    ("scenarios:\n- {name: a, steps: []}", "scenarios[0].steps", "at least 1"),
    ("scenarios:\n- {name: a, steps: [{txt: x}]}", "scenarios[0].steps[0].txt", "Extra inputs"),
    ("scenarios:\n- {name: a, when: {prompt: '('}, steps: [{text: x}]}", "[0].when.prompt", "no regular"),
    ("scenarios:\n- {name: a, steps: [{text: '${nobody}'}]}", "scenarios[0]", "${nobody}: unknown name"),
    ("scenarios:\n- {name: a, steps: [{text: '${agent|rot13}'}]}", "scenarios[0]", "unknown filter 'rot13'"),
    ("scenarios:\n- {name: a, steps: [{text: '${result.x}'}]}", "scenarios[0]", "write ${result.N}"),
    ("scenarios:\n- {name: a, steps: [{only_if: b, text: x}]}", "scenarios[0]", "no name 'b'"),
    ("scenarios:\n- {name: a, steps: [{text: x, error: {status: 500}}]}", "[0].steps[0]", "in place of"),
    ("scenarios:\n- {name: a, steps: [{error: {status: 200}}]}", "scenarios[0].steps[0].error.status", "400"),
    ("scenarios:\n- {name: a, steps: [{delay: soon}]}", "scenarios[0].steps[0].delay", "valid number"),
])  # fmt: skip
def test_a_bad_file_is_refused_by_file_place_and_reason(
    tmp_path: Path, text: str, place: str, why: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(OperatorError) as refused:
        load_file(file)
    assert str(file) in refused.value.message
    assert place in refused.value.message
    assert why in refused.value.message


def test_a_name_given_in_two_files_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no scenario files"):
        load(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("scenarios: [{name: same, steps: [{text: x}]}]")
    with pytest.raises(OperatorError, match=r"b\.yaml: the scenario same is also in .*a\.yaml"):
        load(tmp_path)


def test_the_checked_in_schema_is_the_schema_of_the_code() -> None:
    import reconciler.scripted.scenario as module

    stored = Path(module.__file__).with_name("scenario.schema.json").read_text()
    assert stored == json.dumps(schema(), indent=2) + "\n", "run: python -m reconciler.scripted --schema"


# --------------------------------------------------------------------------------------------- answers
def test_a_stream_adds_up_to_the_message() -> None:
    asked = read(body(user("go")))
    reply = play(scenario({"thinking": "t" * 200, "text": ["one", "two"], **CALL}), body(user("go")))
    answer = answer_of(reply, asked)
    blocks: list[dict[str, Any]] = []
    parts = ""
    for name, data in events_of(answer):
        if name == "content_block_start":
            blocks.append(dict(data["content_block"]))
            parts = ""
        elif name == "content_block_delta":
            delta = data["delta"]
            kind = delta["type"]
            if kind == "input_json_delta":
                parts += delta["partial_json"]
                blocks[-1]["input"] = json.loads(parts) if parts.endswith("}") else {}
            else:
                field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}[
                    kind
                ]
                blocks[-1][field] += delta[field]
    assert blocks == message_of(answer)["content"]


def test_usage_grows_with_the_conversation_and_reads_the_known_part_from_the_cache() -> None:
    plays = scenario(CALL, {"text": "done"})
    first = body(user("go" * 500))
    second = body(*first["messages"], calls(("a", "Bash")), results(a="x" * 4000))
    one, two = (answer_of(play(plays, request), read(request)).usage for request in (first, second))
    assert one["cache_read_input_tokens"] == 0
    assert two["cache_read_input_tokens"] >= one["cache_creation_input_tokens"]
    assert two["cache_creation_input_tokens"] >= 1000


# --------------------------------------------------------------------------------------- documentation
DOCUMENT = (Path(__file__).parents[2] / "docs/scenarios.md").read_text()


def test_the_example_of_the_documentation_is_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(DOCUMENT.split("```yaml\n")[1].split("```")[0])
    [example] = load_file(file)
    asked = body(
        user(PROMPT + "what is the newest commit?"),
        calls(("a", "Bash")),
        results(a="beefbee first"),
        tools=[{"name": "Bash"}, {"name": "mcp__hyperhive__send"}],
    )
    sent = play(example, asked).tools[0][1]
    assert sent == {"to": "operator", "body": "It is beefbee.", "in_reply_to": 7}


@pytest.mark.parametrize("part", [When, Step])
def test_every_field_and_filter_is_documented(part: type[When | Step]) -> None:
    for name in part.model_fields:
        assert f"`{name}`" in DOCUMENT, name
    for name in FILTERS:
        assert f"|{name}" in DOCUMENT, name
