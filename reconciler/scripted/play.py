"""Which scenario and which step answer a conversation. Pure: the same conversation is answered the same
way, whatever came between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reconciler.scripted.conversation import Conversation, ToolResult
from reconciler.scripted.scenario import ApiError, Scenario, Step
from reconciler.scripted.templates import TemplateError, fill

FALLBACK = (
    "This is the scripted model: no scenario matches this message, so nothing was done. "
    "It plays the scenarios of its YAML files; with an API key the same hive speaks to a real model."
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer: filled-in texts and tool calls (name, input), and the step that says how.

    `scenario` is empty for the fallback; `branch` is the place of the step as in the file (`steps[2]`,
    `steps[1].otherwise[0]`).
    """

    scenario: str
    branch: str
    step: Step
    thinking: str = ""
    texts: tuple[str, ...] = ()
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    error: ApiError | None = None


@dataclass(slots=True)
class _Cursor:
    """Where a replay stands: the list of steps it is in, the next index, the names captured so far."""

    steps: Sequence[Step]
    place: str
    next: int = 0
    names: dict[str, str] = field(default_factory=dict)


def reply_to(scenarios: Sequence[Scenario], conversation: Conversation) -> Reply:
    """The answer of the first scenario that matches, else the fallback."""
    for scenario in scenarios:
        names = match(scenario, conversation)
        if names is not None:
            names.update(fill(scenario.define, names, ()))
            return _play(scenario, conversation, names)
    return Reply("", "", Step(), texts=(FALLBACK,))


def match(scenario: Scenario, conversation: Conversation) -> dict[str, str] | None:
    """The names that the scenario's conditions give if they all hold, else None."""
    when = scenario.when
    names = {"agent": conversation.agent, "model": conversation.model, "prompt": conversation.prompt}
    if not conversation.tools.issuperset(when.tools):
        return None
    if when.not_prompt and re.search(when.not_prompt, conversation.prompt):
        return None
    searched = (
        (when.system, conversation.system),
        (when.prompt, conversation.prompt),
        (when.model, conversation.model),
    )
    found = [re.fullmatch(when.agent, conversation.agent)] if when.agent else []
    found += [re.search(pattern, text) for pattern, text in searched if pattern]
    for hit in found:
        if hit is None:
            return None
        names.update({name: value or "" for name, value in hit.groupdict().items()})
    return names


def _play(scenario: Scenario, conversation: Conversation, names: dict[str, str]) -> Reply:
    """Replay the exchange: each earlier answer took one step, and the results after it decided the branch."""
    cursor = _Cursor(scenario.steps, "steps", names=names)
    step, branch = _enter(scenario, cursor, ())
    for turn in conversation.turns:
        step, branch = _enter(scenario, cursor, turn.results)
    if step is None:
        return Reply(scenario.name, branch, Step(), texts=(f"(the scenario {scenario.name} is over)",))
    try:
        error = (
            ApiError.model_validate(fill(step.error.model_dump(), cursor.names, conversation.results))
            if step.error
            else None
        )
        said = [step.text] if isinstance(step.text, str) else step.text
        return Reply(
            scenario.name,
            branch,
            step,
            thinking=str(fill(step.thinking, cursor.names, conversation.results)),
            texts=tuple(fill(said, cursor.names, conversation.results)),
            tools=tuple(
                (call.name, fill(call.input, cursor.names, conversation.results)) for call in step.tools
            ),
            error=error,
        )
    except TemplateError as problem:
        return Reply(
            scenario.name,
            branch,
            Step(),
            texts=(f"I cannot go on: {problem} (scenario {scenario.name}, {branch}).",),
        )


def _enter(scenario: Scenario, cursor: _Cursor, results: Sequence[ToolResult]) -> tuple[Step | None, str]:
    """The next step after these results, following `otherwise` and `on_error`; None when the steps have run
    out."""
    while cursor.next < len(cursor.steps):
        step, branch = cursor.steps[cursor.next], f"{cursor.place}[{cursor.next}]"
        if (step.only_if and not cursor.names[step.only_if]) or (step.unless and cursor.names[step.unless]):
            cursor.next += 1
            continue
        failed = any(result.is_error for result in results)
        if failed and step.expect == "ok":
            return _divert(cursor, scenario.on_error, "on_error", _told(results))
        text = "\n".join(result.text for result in results)
        captured = _captures(step, text)
        if captured is not None and (step.expect != "error" or failed):
            cursor.names.update(captured)
            cursor.next += 1
            return step, branch
        if not step.otherwise:
            return _divert(
                cursor, (), branch, Step(text=f"I did not get the result that I expected: {_short(text)}")
            )
        cursor.steps, cursor.place, cursor.next = step.otherwise, f"{branch}.otherwise", 0
    return None, f"{cursor.place}[{cursor.next}]"


def _divert(cursor: _Cursor, steps: Sequence[Step], place: str, default: Step) -> tuple[Step, str]:
    """Leave the steps for good: for `steps`, whose first is given now, or for one default answer.

    A failure while `on_error` itself plays ends with the default, so that a scenario cannot go round in
    circles.
    """
    chosen = steps if steps and cursor.place != place else (default,)
    cursor.steps, cursor.place, cursor.next = chosen, place, 1
    return chosen[0], f"{place}[0]" if chosen is steps else place


def _captures(step: Step, text: str) -> dict[str, str] | None:
    """What the step captures from the results before it; None if a pattern is not found."""
    if step.if_result and not re.search(step.if_result, text, re.MULTILINE):
        return None
    captured = {}
    for name, pattern in step.capture.items():
        found = re.search(pattern, text, re.MULTILINE)
        if found is None:
            return None
        captured[name] = (found[1] if found.re.groups else found[0]) or ""
    return captured


def _told(results: Sequence[ToolResult]) -> Step:
    failed = [result for result in results if result.is_error]
    return Step(
        text="\n".join(f"{result.tool or 'A tool'} failed: {_short(result.text)}" for result in failed)
    )


def _short(text: str) -> str:
    return (text[:600] + "…" if len(text) > 600 else text).replace("${", "$${")
