"""What pages say: a proposal in one sentence, its progress in five words, a prompt line as a command."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from reconciler.control import models as api
from reconciler.model.states import AgentState, ProposalKind, ProposalState, Risk, Role
from tests.fakes.controldata import World, change
from ui.views import commands, proposals, values
from ui.views.needs import by_need, needs
from ui.views.nix import spans

NOW = datetime(2026, 11, 22, 21, 0, 0, tzinfo=UTC)
P = ProposalState


@pytest.fixture
def world() -> World:
    return World(NOW)


def said(proposal: api.Proposal) -> str:
    return "".join(f"`{piece.text}`" if piece.code else piece.text for piece in proposals.summary(proposal))


def test_a_change_of_model_and_shell_is_one_sentence(world: World) -> None:
    proposal = world.add_proposal(
        1,
        "smith",
        0,
        changes=[
            change("hyperhive.model", '"haiku"', '"opus"', Risk.ELEVATED, ""),
            change("hyperhive.bash.allow", '["git *"]', '["git *", "nix build .*"]', Risk.ELEVATED, ""),
        ],
    )
    assert said(proposal) == "model `haiku` → `opus`, shell + `nix build .*`"


def test_the_most_dangerous_change_is_named_first_and_the_rest_is_counted(world: World) -> None:
    low = [change(f"limits.{n}", "1", "2", Risk.LOW, "") for n in range(5)]
    proposal = world.add_proposal(
        1, "smith", 0, changes=[*low, change("role", '"agent"', '"manager"', Risk.DANGEROUS, "")]
    )
    assert said(proposal).startswith("role `agent` → `manager`, ")
    assert said(proposal).endswith(" and 2 more")
    assert proposals.rows(proposal)[0].risk == "dangerous"


def test_what_is_taken_from_a_list_is_said_too(world: World) -> None:
    proposal = world.add_proposal(
        1, "smith", 0, changes=[change("send.allow", '["a", "b"]', '["b"]', Risk.LOW, "")]
    )
    assert said(proposal) == "may send to \N{MINUS SIGN} `a`"


def test_a_spawn_says_model_shell_and_staged_files(world: World) -> None:
    proposal = world.add_proposal(
        1,
        "scribe",
        0,
        kind=ProposalKind.SPAWN,
        staged_files=["notes.md"],
        changes=[change("model", None, '"haiku"', Risk.LOW, "")],
    )
    assert said(proposal) == "a new agent, model `haiku`, no shell, 1 staged file"


def test_a_spawn_of_a_manager_says_so(world: World) -> None:
    role = change("role", None, '"manager"', Risk.DANGEROUS, "")
    proposal = world.add_proposal(1, "hm1nd", 0, kind=ProposalKind.SPAWN, changes=[role])
    assert said(proposal) == "a new manager, no shell"


def test_a_commit_without_settings_names_its_files(world: World) -> None:
    assert said(world.add_proposal(1, "smith", 0, files=["a", "b"])) == "no setting changes, 2 files changed"
    assert said(world.add_proposal(2, "smith", 0, state=P.INVALID)) == "does not evaluate"
    assert said(world.add_proposal(3, "smith", 0, state=P.EXAMINING)) == "being examined"


def test_a_value_that_is_no_json_is_shown_as_it_is() -> None:
    row = values.row(change("x", "not json {", "[" * 5000, Risk.LOW, ""))
    assert row.before[0].text == "not json {"
    assert len(row.after[0].text) < 1000


def test_a_long_list_is_cut_and_says_so() -> None:
    row = values.row(change("x", None, str(list(range(100))), Risk.LOW, ""))
    assert row.after[-1].text == "… and 40 more"


def test_an_empty_list_is_not_the_same_as_an_absent_one() -> None:
    row = values.row(change("bash.allow", "[]", '["git *"]', Risk.ELEVATED, ""))
    assert [(i.text, i.mark) for i in row.before] == [("[ ]", "same")]
    assert values.row(change("bash.allow", None, '["git *"]', Risk.ELEVATED, "")).before == ()


def test_files_are_named_with_what_became_of_them(world: World) -> None:
    files = [
        change("file flake.lock", '"100644 a"', '"100644 b"', Risk.ELEVATED, ""),
        change("file new.sh", None, '"100755 b"', Risk.ELEVATED, ""),
        change("file old", '"100644 a"', None, Risk.ELEVATED, ""),
        change("7 more files", None, None, Risk.ELEVATED, ""),
    ]
    sentence = "file `flake.lock` changed, file `new.sh` new, file `old` gone, 7 more files"
    assert said(world.add_proposal(1, "smith", 0, changes=files)) == sentence


def test_a_list_shows_what_stays_what_comes_and_what_goes() -> None:
    row = values.row(change("x", '["a", "b"]', '["b", "c"]', Risk.LOW, ""))
    assert [(i.text, i.mark) for i in row.before] == [("a", "removed"), ("b", "same")]
    assert [(i.text, i.mark) for i in row.after] == [("b", "same"), ("c", "added")]


def steps(world: World, *states: str, now: P) -> list[str]:
    entered = [api.Progress.model_validate({"state": s, "at": world.ago(9)}) for s in states]
    proposal = world.add_proposal(1, "smith", 0, state=now, progress=entered)
    return [f"{step.word} {step.mark}" for step in proposals.progress(proposal)]


def test_nothing_approved_has_no_progress(world: World) -> None:
    assert steps(world, "examining", "pending", now=P.PENDING) == []
    assert steps(world, "examining", "pending", "denied", now=P.DENIED) == []


def test_progress_stands_as_five_words(world: World) -> None:
    assert steps(world, "approved", "building", now=P.BUILDING) == [
        "approved done",
        "building now",
        "activating todo",
        "probing todo",
        "deployed todo",
    ]


def test_a_deployed_proposal_has_all_five_done_even_without_a_time_for_probing(world: World) -> None:
    done = steps(world, "approved", "building", "activating", "deployed", now=P.DEPLOYED)
    assert all(word.endswith(" done") for word in done)


def test_a_failure_marks_the_step_in_which_it_came(world: World) -> None:
    marks = steps(world, "approved", "building", "activating", "probing", "failed", now=P.FAILED)
    assert marks[3:] == ["probing failed", "deployed todo"]


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello\nthere", commands.Say("hello\nthere")),
        ("//etc is a path", commands.Say("/etc is a path")),
        ("/cancel", commands.Act("cancel")),
        ("/compact", commands.Act("compact")),
        ("/new-session", commands.Act("new-session")),
        ("/compact please", commands.Unknown("compact")),
        ("/model opus", commands.UseModel("opus")),
        ("/model", commands.UseModel(None)),
        ("/nap", commands.Nap(600, "")),
        ("/nap 90s", commands.Nap(90, "")),
        ("/nap 2h waiting for the build", commands.Nap(7200, "waiting for the build")),
        ("/nap 25h", commands.Unknown("nap")),
        ("/nap soon", commands.Unknown("nap")),
        ("/help", commands.Help()),
        ("/clear", commands.Clear()),
        ("/stop now please", commands.Unknown("stop")),
        ("/approve", commands.Unknown("approve")),
        ("/", commands.Unknown("")),
    ],
)
def test_a_line_is_a_message_or_a_known_command_and_never_a_guess(
    line: str, meaning: commands.Command
) -> None:
    assert commands.parse(line) == meaning


def test_every_command_of_the_help_is_understood() -> None:
    for form, _ in commands.HELP:
        assert not isinstance(commands.parse(form.split()[0]), commands.Unknown | commands.Say)


def test_agents_that_need_somebody_come_first_and_turns_do_not_move_rows(world: World) -> None:
    for name, state in (("b", "idle"), ("a", "stopped"), ("c", "crashed"), ("m", "idle"), ("d", "thinking")):
        world.add_agent(name, state=AgentState(state), role=Role.MANAGER if name == "m" else Role.AGENT)
    order = [a.name for a in by_need(world.agents.values())]
    assert order == ["c", "m", "b", "d", "a"]
    world.agents["b"] = world.agents["b"].model_copy(update={"state": AgentState.THINKING})
    assert [a.name for a in by_need(world.agents.values())] == order


def test_what_needs_the_operator_is_counted_once(world: World) -> None:
    world.add_agent("a", state=AgentState.CRASHED, held=True)
    world.add_agent("b", state=AgentState.IDLE, held=True)
    world.add_agent("c", state=AgentState.HELD, held=True)
    world.add_proposal(1, "a", 0)
    world.add_proposal(2, "a", 0, state=P.DENIED)
    hold = api.Hold(scope="*", by="alice", reason="", at=world.ago(1))
    status = api.HiveStatus.model_construct(hold=hold, held=["b"], stuck=["a", "ghost"])
    found = needs(world.proposals.values(), [], [], list(world.agents.values()), status)
    assert found.count == 5, "c is held by the hive alone, which counts once"
    assert ([a.name for a in found.held], [a.name for a in found.crashed]) == (["b"], ["a"])
    assert found.gone == ["ghost"], "a destroyed agent that cannot be cleared away is named, not dropped"


def test_a_line_of_nix_keeps_every_character() -> None:
    for line in (
        '  a = "x # y" + "\\"";  # why',
        'unterminated "string',
        "''indented",
        "let x = true; in-x",
        "",
    ):
        assert "".join(span.text for span in spans(line, path="agent.nix")) == line
    kinds = [s.kind for s in spans('x = "a"; # b', path="agent.nix") if s.kind]
    assert kinds == ["string", "comment"]
    assert [s.kind for s in spans('x = "a"', path="README.md")] == [""]
