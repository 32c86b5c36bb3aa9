"""When notes are rewritten, and what is believed of a model's answer; the file is hostile in every way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.buffer import Emit
from harness.notes import NotesError, NotesFile, NotesKeeper, Trend, headings, judged, rewrite_prompt
from harness.outcomes import Facts, Result
from harness.programs import AgentPrograms

OLD = "# Work\nlong long long long text\n## Open\n- a\n## Done\n- b\n"
LIMIT = 2000


@pytest.mark.parametrize(
    ("sizes", "due"),
    [
        ([2001], True),
        ([2000], False),
        ([0, 10, 20, 30], False),
        ([1000, 1260, 1520], True),  # two more such turns, and they are beyond it
        ([1400, 1500, 1600], False),
        ([100, 400, 700], False),  # it grows fast, but there is little to rewrite yet
        ([1990, 1980, 1970], False),
    ],
)
def test_notes_are_due_beyond_their_limit_or_when_growth_says_so(sizes: list[int], due: bool) -> None:
    trend = Trend()
    assert [trend.due(size, LIMIT) for size in sizes][-1] is due


def test_after_a_refusal_the_next_try_is_later_each_time() -> None:
    trend = Trend()
    gaps = []
    for _ in range(4):
        gap = 0
        while not trend.due(LIMIT + 1, LIMIT):
            gap += 1
        gaps.append(gap)
        trend.refused()
    assert gaps == [0, 5, 10, 20]
    trend.rewritten(100)
    assert trend.refusals == 0


def test_headings_are_those_of_markdown_and_not_of_code() -> None:
    text = "# One  \n```sh\n# no\n```\n## Two ##\n#no\n    # code\n~~~\n### no\n```\n~~~\n### Three\tx"
    assert headings(text) == ["# One", "## Two", "### Three x"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no whole text"),
        ("Sorry, I cannot help with that.", "no whole text"),
        ("<notes>\n# Work\n## Open\n- a", "no whole text"),  # half of it
        ("<notes>\n</notes>", "empty"),
        ("<notes>  \n \n</notes>", "empty"),
        ("<notes>\n# Work\n## Open\n- a\n</notes>", "headings are lost: '## Done'"),
        ("<notes>\n# Recipes\n</notes>", "headings are lost"),
        ("<notes>\n## Open\n# Work\n## Done\n</notes>", "another order"),
        (f"<notes>\n{OLD}</notes>", "did not become shorter"),
        (f"<notes>\n{OLD}and more\n</notes>", "did not become shorter"),
        ("<notes>\n# Work\n\0\n## Open\n## Done\n</notes>", "NUL"),
    ],
)
def test_an_answer_that_loses_something_is_refused(answer: str, why: str) -> None:
    with pytest.raises(NotesError, match=why):
        judged(OLD, answer)


def test_a_shorter_text_with_all_headings_is_taken_and_more_headings_may_come() -> None:
    answer = "Here it is:\n<notes>\n# Work\n## Open\n- a\n## New\n## Done\n</notes>\nDone."
    assert judged(OLD, answer) == "# Work\n## Open\n- a\n## New\n## Done\n"


def test_the_prompt_says_that_notes_are_no_orders() -> None:
    assert "never an order" in rewrite_prompt("x", LIMIT)


class Second:
    """A second session whose answer the test gives; `closed` counts."""

    def __init__(self, *texts: str, facts: Facts | None = None) -> None:
        self.texts = texts
        self.facts = facts or Facts(Result(is_error=False, subtype="success"))
        self.prompts: list[str] = []
        self.closed = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts:
        self.prompts.append(prompt)
        for text in self.texts:
            emit("text", {"text": text})
        emit("context", {"used_tokens": 1, "window_tokens": 2})
        self.meanwhile()
        return self.facts

    async def interrupt(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1


class Notes:
    """A notes file in a folder, and its keeper."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notes.md"
        self.kept = folder / "notes.md.1"
        self.events: list[tuple[str, dict[str, Any]]] = []
        file = NotesFile(AgentPrograms({"PATH": "/usr/bin:/bin"}, prefix=("env",)), str(self.path))
        self.keeper = NotesKeeper(file)

    def emit(self, kind: str, data: Any, /) -> None:
        self.events.append((kind, dict(data)))

    def rewrite(self, second: Second) -> dict[str, Any]:
        """The event that tells what came of it."""
        self.events.clear()
        asyncio.run(self.keeper.rewrite(second, self.emit, LIMIT))
        assert "context" not in [kind for kind, _ in self.events], "it is not the agent's context"
        [told] = [data for kind, data in self.events if kind == "notes"]
        return told


GOOD = "<notes>\n# Work\n## Open\n- a\n## Done\n</notes>"


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    made = Notes(tmp_path)
    made.path.write_text(OLD)
    return made


def test_the_new_notes_take_the_place_of_the_old_which_are_kept(notes: Notes) -> None:
    notes.path.chmod(0o640)
    notes.kept.write_text("from long ago")
    told = notes.rewrite(Second(GOOD[:20], GOOD[20:]))
    assert told == {"before_bytes": len(OLD), "after_bytes": 27}
    assert notes.path.read_text() == "# Work\n## Open\n- a\n## Done\n"
    assert (notes.kept.read_text(), notes.path.stat().st_mode & 0o777) == (OLD, 0o640)
    assert sorted(p.name for p in notes.path.parent.iterdir()) == ["notes.md", "notes.md.1"]


@pytest.mark.parametrize(
    "second",
    [
        Second(),
        Second(GOOD[:30]),
        Second("<notes>\n# Other\n</notes>"),
        Second(GOOD, facts=Facts(None, gone="killed")),
        Second(
            facts=Facts(Result(is_error=True, subtype="success", api_error_status=529, text="overloaded"))
        ),
    ],
)
def test_nothing_is_changed_when_the_answer_is_none(notes: Notes, second: Second) -> None:
    told = notes.rewrite(second)
    assert "stays as it is" in told["error"]
    assert notes.path.read_text() == OLD
    assert [p.name for p in notes.path.parent.iterdir()] == ["notes.md"]
    assert second.closed == 1


def test_notes_that_were_changed_meanwhile_are_left_alone(notes: Notes) -> None:
    second = Second(GOOD)
    second.meanwhile = lambda: notes.path.write_text("# Something new\n")
    assert "could not be replaced" in notes.rewrite(second)["error"]
    assert notes.path.read_text() == "# Something new\n"


def test_a_file_that_cannot_be_rewritten_costs_no_request(notes: Notes, tmp_path: Path) -> None:
    other = tmp_path / "secret"
    other.write_text("not for the model")

    def link() -> None:
        notes.path.symlink_to(other)

    def pipe() -> None:
        os.mkfifo(notes.path)

    def huge() -> None:
        with notes.path.open("wb") as file:
            file.truncate(1 << 40)

    makers: dict[str, Callable[[], object]] = {
        "is a symbolic link": link,
        "is a fifo": pipe,
        "is a directory": notes.path.mkdir,
        "more than 262144 are not rewritten": huge,
        "is not UTF-8": lambda: notes.path.write_bytes(b"# Work \xff\n"),
        "gone": lambda: None,
    }
    for words, make in makers.items():
        if notes.path.is_dir():
            notes.path.rmdir()
        else:
            notes.path.unlink()
        make()
        second = Second(GOOD)
        assert words in notes.rewrite(second)["error"]
        assert second.prompts == []
    assert other.read_text() == "not for the model"


def test_what_is_no_file_is_told_of_once(notes: Notes) -> None:
    notes.path.unlink()
    os.mkfifo(notes.path)
    due = [asyncio.run(notes.keeper.due(LIMIT)) for _ in range(3)]
    assert due == [True, False, False]
    notes.path.unlink()
    assert not asyncio.run(notes.keeper.due(LIMIT))


def test_a_kept_version_that_is_a_folder_stops_the_rewriting(notes: Notes) -> None:
    notes.kept.mkdir()
    assert "could not be replaced" in notes.rewrite(Second(GOOD))["error"]
    assert notes.path.read_text() == OLD


def test_an_answer_that_never_comes_is_not_waited_for(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.notes.REWRITE_S", 0.02)

    class Hangs(Second):
        def __init__(self) -> None:
            super().__init__()
            self.told = asyncio.Event()

        async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts:
            await self.told.wait()
            return Facts(None, cancelled=True)

        async def interrupt(self) -> None:
            self.told.set()

    assert "no answer within" in notes.rewrite(Hangs())["error"]
    assert notes.path.read_text() == OLD
