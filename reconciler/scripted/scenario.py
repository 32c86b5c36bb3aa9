r"""Scenarios: what the scripted model says and does in a conversation that matches. YAML in, checked values
out.

    scenarios:
      - name: answer-the-operator
        when: {agent: scout, prompt: '(?i)status'}
        steps:
          - thinking: I look at the repository first.
            tools: [{name: Bash, input: {command: git log --oneline -3}}]
          - capture: {newest: '^(\S+ .*)'}
            text: 'The newest commit is ${newest}.'
 The first scenario that matches plays (files in order of name). Step 0 answers the prompt, step n the
results of step n-1. A tool call that failed leads to `on_error` unless the step says `expect`; a condition
that does not hold leads to `otherwise`; both play to their own end instead of the remaining steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from reconciler.errors import OperatorError
from reconciler.scripted import templates

FILE_LIMIT_BYTES = 1024 * 1024
FILES_LIMIT = 200


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


Regex = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_compiles)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class When(_Part):
    """All conditions that are given must hold. Regular expressions are searched; their named groups become
    names for templates.

    `agent`: the name that the system prompt gives. `prompt`: the text that started the exchange. `tools`:
    names that are offered.
    """

    agent: Regex | None = None
    system: Regex | None = None
    prompt: Regex | None = None
    not_prompt: Regex | None = None
    model: Regex | None = None
    tools: list[str] = []


class ToolCall(_Part):
    """A tool call; strings in `input` are templates."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    input: dict[str, Any] = {}


class ApiError(_Part):
    """An error in place of an answer; `after_events` sends it in the stream, after so many events."""

    status: Annotated[int, Field(ge=400, le=599)]
    type: str = "api_error"
    message: str = "Internal server error"
    headers: dict[str, str] = {}
    after_events: Annotated[int, Field(ge=1)] | None = None


class Stall(_Part):
    """Silence: before the first byte, or (after `after_events`) in the middle of the stream."""

    seconds: Seconds
    after_events: Annotated[int, Field(ge=1)] | None = None


class Usage(_Part):
    """Numbers of tokens to report in place of the estimated ones."""

    input_tokens: Annotated[int, Field(ge=0)] | None = None
    output_tokens: Annotated[int, Field(ge=0)] | None = None
    cache_read_input_tokens: Annotated[int, Field(ge=0)] | None = None
    cache_creation_input_tokens: Annotated[int, Field(ge=0)] | None = None


class Step(_Part):
    """One answer of the model, and the conditions under which it is given.

    `only_if`, `unless`: the step is left out if the name is empty, or is not.

    `expect`: what the tool results before this step must be (`ok`: none failed, `error`: at least one did,
    `any`). `if_result` is searched in their joined text, each `capture` (first group, or the whole match)
    too. When one is not found, `otherwise` plays.

    `delay` is silence in seconds before the first byte, `chunk_delay` between events of a stream; `cut`
    closes the connection of a stream after so many events (an answer that is not streamed comes whole).
    """

    only_if: Name | None = None
    unless: Name | None = None
    expect: Literal["ok", "error", "any"] = "ok"
    if_result: Regex | None = None
    capture: dict[Name, Regex] = {}
    otherwise: list[Step] = []
    thinking: str = ""
    text: str | list[str] = []
    tools: list[ToolCall] = []
    stop_reason: (
        Literal["end_turn", "tool_use", "max_tokens", "refusal", "pause_turn", "stop_sequence"] | None
    ) = None
    usage: Usage = Usage()
    delay: Seconds = 0
    chunk_delay: Seconds = 0
    stall: Stall | None = None
    cut: Annotated[int, Field(ge=0)] | None = None
    error: ApiError | None = None

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        instead = self.error is not None and self.error.after_events is None
        if instead and (self.text or self.thinking or self.tools):
            raise ValueError(
                "an error stands in place of text, thinking and tools, unless it has after_events"
            )
        return self


class Scenario(_Part):
    """Conditions and the steps to play; `on_error` plays when a tool call failed that was expected to work.

    `define` gives names to templates over the groups of the conditions.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")]
    description: str = ""
    when: When = When()
    define: dict[Name, str] = {}
    steps: Annotated[list[Step], Field(min_length=1, max_length=200)]
    on_error: list[Step] = []

    @model_validator(mode="after")
    def _references(self) -> Self:
        groups = [
            re.compile(p).groupindex
            for p in (self.when.agent, self.when.system, self.when.prompt, self.when.model)
            if p
        ]
        given = frozenset(name for index in groups for name in index)
        problems = [f"define: {problem}" for problem in templates.check(self.define, given)]
        given |= frozenset(self.define)
        problems += _problems(self.steps, given, "steps")
        captured = given | frozenset(name for step in self.steps for name in step.capture)
        problems += _problems(self.on_error, captured, "on_error")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class File(_Part):
    """One scenario file."""

    scenarios: Annotated[list[Scenario], Field(min_length=1, max_length=500)]


def _problems(steps: Sequence[Step], names: frozenset[str], place: str) -> Iterator[str]:
    """References to names that no condition or earlier capture gives."""
    for at, step in enumerate(steps):
        asked = {name for name in (step.only_if, step.unless) if name is not None} - names
        yield from (f"{place}[{at}]: no name {name!r} is given before" for name in sorted(asked))
        yield from _problems(step.otherwise, names, f"{place}[{at}].otherwise")
        names |= frozenset(step.capture)
        said = step.model_dump(include={"thinking", "text", "tools", "error"})
        yield from (f"{place}[{at}]: {problem}" for problem in templates.check(said, names))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe subset; a key given twice is an error and not a silent loss."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return found


def load(directory: Path) -> tuple[Scenario, ...]:
    """All scenarios of the `*.yaml` files below a directory, in order of file name.

    `OperatorError` names the file, the path inside it and the reason; also for a name given twice and for a
    directory without files.
    """
    files = sorted(directory.glob("*.yaml"))[:FILES_LIMIT]
    if not files:
        raise OperatorError(f"no scenario files (*.yaml) in {directory}", code="not-found")
    found: dict[str, Path] = {}
    scenarios: list[Scenario] = []
    for path in files:
        for scenario in load_file(path):
            if scenario.name in found:
                raise OperatorError(f"{path}: the scenario {scenario.name} is also in {found[scenario.name]}")
            found[scenario.name] = path
            scenarios.append(scenario)
    return tuple(scenarios)


def load_file(path: Path) -> tuple[Scenario, ...]:
    """The scenarios of one file; errors as in `load`."""
    try:
        raw = path.read_bytes()
        if len(raw) > FILE_LIMIT_BYTES:
            raise OperatorError(
                f"{path}: {len(raw)} bytes; a scenario file has {FILE_LIMIT_BYTES} at most", code="too-large"
            )
        data = yaml.load(raw, Loader=_UniqueKeys)  # noqa: S506 - the loader is a SafeLoader
        return tuple(File.model_validate(data).scenarios)
    except OSError as error:
        raise OperatorError(f"cannot read the scenarios {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise OperatorError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OperatorError(
            f"{path}: {_place(first['loc'])}: {first['msg']}", hint="see scenario.schema.json"
        ) from error


def schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file; checked in as `scenario.schema.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **File.model_json_schema()}


def _place(parts: Sequence[int | str]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"
