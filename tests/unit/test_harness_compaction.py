"""The narrow policy before a summary, and what is believed of the CLI's word that there is one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from harness.buffer import Emit
from harness.compaction import CALLS_ENOUGH, CALLS_MAX, NotesOnly, Watched, can_write, take_notes
from harness.outcomes import Facts, Result, Verdict
from harness.policy.engine import Decision
from tests.fakes.session import GOOD

NOTES = {"file_path": "/state/notes.md"}


class Everything:
    async def decide(self, _tool: object, _arguments: object, _cwd: str) -> Decision:
        return Decision(True, "anything goes")


class Nothing:
    async def decide(self, _tool: object, _arguments: object, _cwd: str) -> Decision:
        return Decision(False, "nothing goes")


async def nobody() -> None:
    pass


def decided(policy: NotesOnly, tool: str, arguments: object, cwd: str = "/state") -> bool:
    return asyncio.run(policy.decide(tool, arguments, cwd)).allowed


@pytest.mark.parametrize(
    ("tool", "arguments", "allowed"),
    [
        ("Write", NOTES, True),
        ("Edit", NOTES, True),
        ("Read", {"file_path": "notes.md"}, True),
        ("Read", {"file_path": "/state/./x/../notes.md"}, True),
        ("Read", {"file_path": "/state/notes.md.1"}, False),
        ("Write", {"file_path": "/state/notes.md/../other"}, False),
        ("Write", {"file_path": "/config/agent.nix"}, False),
        ("Write", {"file_path": ["/state/notes.md"]}, False),
        ("Write", {}, False),
        ("Write", None, False),
        ("Bash", {"command": "cat /state/notes.md"}, False),
        ("mcp__hyperhive__send", {"to": "operator", "body": "x"}, False),
        ("Glob", {"pattern": "*", "path": "/state/notes.md"}, False),
    ],
)
def test_nothing_but_the_notes_may_be_touched(tool: str, arguments: object, allowed: bool) -> None:
    assert decided(NotesOnly(Everything(), nobody), tool, arguments) is allowed


def test_what_the_agents_own_policy_refuses_stays_refused() -> None:
    assert not decided(NotesOnly(Nothing(), nobody), "Write", NOTES)


def test_calls_are_counted_and_a_model_that_does_not_stop_is_interrupted() -> None:
    stopped: list[int] = []

    async def enough() -> None:
        stopped.append(1)

    policy = NotesOnly(Everything(), enough)
    allowed = [decided(policy, "Read", NOTES) for _ in range(CALLS_ENOUGH)]
    assert allowed == [True] * CALLS_MAX + [False] * (CALLS_ENOUGH - CALLS_MAX)
    assert stopped == [1]


def test_only_tools_that_write_can_write() -> None:
    assert [can_write(tools) for tools in [("Edit",), ("Read", "Write"), ("Read", "Bash"), ()]] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("events", "told", "outcome", "done"),
    [
        ([{"before_tokens": 9}, {"before_tokens": 9, "after_tokens": 2}], "ok", "ok", True),
        (
            [{"before_tokens": 9}, {"before_tokens": 9, "error": "API Error: 400 no"}],
            "ok",
            "api_error",
            False,
        ),
        (
            [{"before_tokens": 9, "error": "API Error: Request rejected (429) · slow"}],
            "ok",
            "rate_limited",
            False,
        ),
        ([{"before_tokens": 9, "error": "Prompt is too long"}], "ok", "prompt_too_long", False),
        ([], "ok", "ok", False),
        ([{"before_tokens": 9}], "crashed", "crashed", False),
    ],
)
def test_a_summary_that_was_not_made_is_no_success(
    events: list[dict[str, Any]], told: Any, outcome: str, done: bool
) -> None:
    seen: list[object] = []
    watched = Watched(lambda kind, data: seen.append((kind, data)))
    for data in events:
        watched.take("compaction", data)
    assert (watched.verdict(Verdict(told)).outcome, watched.done) == (outcome, done)
    assert len(seen) == len(events)


class Session:
    """Ends as the test says; `hangs` until it is interrupted."""

    def __init__(self, facts: Facts, *, hangs: bool = False) -> None:
        self.facts = facts
        self.prompts: list[str] = []
        self.told = asyncio.Event()
        self.hangs = hangs

    async def run(self, prompt: str, _emit: Emit, *, command: bool = False) -> Facts:
        self.prompts.append(prompt)
        if self.hangs:
            await self.told.wait()
        return self.facts

    async def interrupt(self) -> None:
        self.told.set()


def noted(session: Session, *, able: bool = True) -> list[str]:
    """The notes that the operator reads in the transcript."""
    said: list[str] = []

    @contextlib.contextmanager
    def limits(enough: Callable[[], Awaitable[None]]) -> Iterator[bool]:
        assert enough is not None
        yield able

    def emit(kind: str, data: Any, /) -> None:
        if kind == "note":
            said.append(data["text"])

    asyncio.run(take_notes(session, limits, emit, max_bytes=4096))
    return said


def test_an_agent_that_cannot_write_is_not_asked_to() -> None:
    session = Session(GOOD)
    assert "neither Edit nor Write" in noted(session, able=False)[0]
    assert session.prompts == []


def test_notes_that_went_well_need_no_word() -> None:
    session = Session(GOOD)
    assert noted(session) == []
    assert "below 4 KiB" in session.prompts[0]


def test_notes_that_come_to_nothing_are_told_of_and_that_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Facts(Result(is_error=True, subtype="success", api_error_status=529, text="overloaded"))
    assert (
        "(unavailable: overloaded); the conversation is summed up all the same" in noted(Session(broken))[0]
    )
    monkeypatch.setattr("harness.compaction.NOTES_S", 0.02)
    assert "it took more than" in noted(Session(Facts(None, cancelled=True), hangs=True))[0]
