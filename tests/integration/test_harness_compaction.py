"""Compaction and the rewriting of notes with the genuine CLI: what is shown, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agenthost import welcome
from tests.fakes.container import needs_container
from tests.support.harnesses import calling, scenario, world

pytestmark = [needs_container, pytest.mark.asyncio]

SUMMARY = scenario("TEXT ONLY", {"text": "<summary>They spoke of a tulip.</summary>"})
NOTING = "about to be summed up"
FULL = {"input_tokens": 800_000, "output_tokens": 10}


def noting(*steps: dict[str, Any]) -> dict[str, Any]:
    return scenario(NOTING, *steps)


def notes(folder: Path) -> str:
    return (folder / "state/notes.md").read_text()


async def test_an_ordered_compaction_lets_the_agent_note_first_and_tells_the_figures(tmp_path: Path) -> None:
    write = calling("Write", file_path="/state/notes.md", content="# Flowers\nThe word is tulip.\n")
    plans = [SUMMARY, noting(write, {"text": "Noted."}), scenario(".", {"text": "fine"})]
    async with world(tmp_path, *plans) as hived:
        await hived.turn("the word is tulip")
        await hived.host.order("compact")
        turn = await hived.host.ended(2)
        assert turn.end is not None
        assert (turn.end.outcome, turn.purpose) == ("ok", "compaction")
        assert notes(tmp_path) == "# Flowers\nThe word is tulip.\n"
        begun, ended = turn.of("compaction")
        assert begun.keys() == {"before_tokens"}
        assert ended["before_tokens"] > ended["after_tokens"] > 0
        assert turn.of("context")[-1]["used_tokens"] == ended["after_tokens"]
        assert turn.of("context")[-1]["window_tokens"] == 1_000_000
        await hived.turn("go on")
        assert "They spoke of a tulip" in hived.model.said()


async def test_a_context_beyond_the_watermark_is_compacted_once(tmp_path: Path) -> None:
    first = scenario("one", {"text": "done", "usage": FULL})
    plans = [SUMMARY, noting({"text": "Nothing to note."}), first, scenario(".", {"text": "fine"})]
    async with world(tmp_path, *plans) as hived:
        turn = await hived.turn("one")
        assert turn.of("context")[-1]["used_tokens"] > 800_000
        compacted = await hived.host.ended(2)
        assert (compacted.purpose, compacted.end and compacted.end.outcome) == ("compaction", "ok")
        after = await hived.turn("two")
        assert after.id == 3
        assert after.of("context")[-1]["used_tokens"] < 100_000


async def test_nothing_but_the_notes_can_be_touched_before_a_summary_and_not_for_ever(tmp_path: Path) -> None:
    other = calling("Write", file_path="/state/other", content="x")
    shell = calling("Bash", command="git init /state/x")
    read = [calling("Read", file_path="/state/notes.md") for _ in range(20)]
    plans = [SUMMARY, noting(other, shell, *read), scenario(".", {"text": "fine"})]
    async with world(tmp_path, *plans) as hived:
        await hived.turn("hello")
        await hived.host.order("compact")
        turn = await hived.host.ended(2)
        refused = [one["reason"] for one in turn.of("policy_refusal")]
        assert "only Edit, Read, Write work, and only on /state/notes.md" in refused[0]
        assert "only Edit, Read, Write work" in refused[1]
        assert "8 calls are enough" in refused[2]
        assert len(turn.of("tool_call")) <= 12, "it is cut short in the end"
        assert [p.name for p in (tmp_path / "state").iterdir() if p.name in {"other", "x"}] == []
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert len(turn.of("compaction")) == 2
        calls = len(hived.model.requests)
        work = await hived.turn("again")
        assert not work.of("policy_refusal")
        assert len(hived.model.requests) == calls + 1


async def test_a_summary_that_fails_is_told_and_the_conversation_stays(tmp_path: Path) -> None:
    broken = {"error": {"status": 400, "type": "invalid_request_error", "message": "no"}}
    plans = [
        scenario("TEXT ONLY", broken),
        noting({"text": "ok"}),
        scenario(".", {"text": "The word is tulip."}),
    ]
    async with world(tmp_path, *plans) as hived:
        await hived.turn("hello")
        await hived.host.order("compact")
        turn = await hived.host.ended(2)
        begun, failed = turn.of("compaction")
        assert begun.keys() == {"before_tokens"}
        assert failed["error"]
        assert turn.end is not None
        assert (turn.end.outcome, "could not be summed up" in turn.end.error) == ("api_error", True)
        await hived.turn("again")
        assert "The word is tulip." in hived.model.said()


async def test_nothing_is_asked_when_there_is_no_conversation_yet(tmp_path: Path) -> None:
    async with world(tmp_path, scenario(".", {"text": "fine"})) as hived:
        await hived.host.order("compact")
        turn = await hived.host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert hived.model.requests == []
        assert "no conversation" in turn.of("note")[0]["text"]


async def test_long_notes_are_rewritten_by_a_second_session_that_leaves_no_trace(tmp_path: Path) -> None:
    long = "# Work\n" + "the same again\n" * 100 + "## Open\n- a\n"
    answer = "<notes>\n# Work\nthe same, often\n## Open\n- a\n</notes>"
    told = welcome(spec={"tools": {"allow": ["Write"]}, "notes": {"maxBytes": 1024}})
    write = calling("Write", file_path="/state/notes.md", content=long)
    plans = [
        scenario("Rewrite the notes below", {"text": answer}),
        scenario("write", write, {"text": "The word is tulip."}),
        scenario(".", {"text": "fine"}),
    ]
    async with world(tmp_path, *plans, told=told) as hived:
        await hived.turn("write")
        turn = await hived.host.ended(2)
        assert (turn.purpose, turn.end and turn.end.outcome) == ("notes", "ok")
        assert turn.of("notes") == [{"before_bytes": len(long), "after_bytes": 35}]
        assert turn.of("text") == turn.of("context") == []
        assert notes(tmp_path) == "# Work\nthe same, often\n## Open\n- a\n"
        assert (tmp_path / "state/notes.md.1").read_text() == long
        asked = hived.model.requests[-1]
        assert asked["session"] != told.session_id
        assert not asked["body"].get("tools")
        assert "tulip" not in hived.model.said()
        await hived.turn("go on")
        assert hived.model.requests[-1]["session"] == told.session_id
        assert "tulip" in hived.model.said()
        assert "Rewrite the notes below" not in hived.model.said()
