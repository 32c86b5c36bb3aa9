"""How commits become proposals, and what their examination says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.approvals import drafting
from reconciler.approvals.proposing import HOURLY_MAX, OPEN_MAX
from reconciler.control import models as api
from reconciler.errors import AgentError, InvalidError, OperatorError
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalKind, ProposalState, Risk, Role
from tests.support.approvals import ALICE, BOSS, SCOUT, SCRIBE, SMITH, VICTOR, World, agent_nix

pytestmark = pytest.mark.asyncio

OPUS = {"agent.nix": agent_nix(model='"opus"', bash_allow='[ "nix build .*" ]')}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(BOSS, Role.MANAGER)
    await world.agent(SMITH)
    yield world
    await world.close()


async def test_a_proposal_shows_what_changes_and_how_risky_it_is(world: World) -> None:
    number = await world.propose(BOSS, SMITH, OPUS, "opus and nix for smith")
    shown = await world.get(number)
    assert (shown.state, shown.kind, shown.risk) == (ProposalState.PENDING, ProposalKind.APPLY, Risk.ELEVATED)
    changes = {change.option: (change.before, change.after, change.risk) for change in shown.changes}
    assert changes["model"] == ('"haiku"', '"opus"', Risk.ELEVATED)
    assert changes["bash.allow"] == ("[]", '["nix build .*"]', Risk.ELEVATED)
    assert changes["prompt"][1] == "null"
    assert shown.files == ["agent.nix"]
    assert (shown.requested_by, shown.description) == ("hm1nd", "opus and nix for smith")
    assert [step.state for step in shown.progress] == ["examining", "pending"]
    assert shown.tag == f"pending/{number}"
    assert shown.digest is not None
    assert world.fake.repositories[SMITH].tags[f"proposal/{number}"] == shown.commit
    states = [
        event["data"]["state"]
        for event in await world.outbox("event")
        if event["kind"] == "proposal.state" and event["data"]["proposal"] == number
    ]
    assert states == ["examining", "pending"]
    assert list((world.directory / "state/trees").iterdir()) == []


async def test_agents_propose_for_themselves_and_the_manager_for_all(world: World) -> None:
    await world.agent(SCOUT)
    assert (await world.get(await world.propose(SMITH, SMITH, OPUS))).requested_by == "smith"
    path, commit = await world.bundle(SCOUT, OPUS)
    with pytest.raises(AgentError, match="may propose for itself only") as caught:
        await world.service.propose_bundle(SMITH, SCOUT, commit, "", path)
    assert caught.value.code == "forbidden"
    with pytest.raises(AgentError, match="there is no agent nobody"):
        await world.service.propose_bundle(BOSS, "nobody", commit, "", path)


@pytest.mark.parametrize("name", ["..", "a/b", "x" * 40, "", "-x", "größe", "operator", "meta", "Smith"])
async def test_bad_names_are_refused_before_anything_happens(world: World, name: str) -> None:
    before = await world.count("proposals")
    with pytest.raises(OperatorError, match=r"not an agent name|reserved"):
        await world.service.propose_bundle(BOSS, name, "a" * 40, "", world.directory / "x")
    with pytest.raises(OperatorError, match=r"not an agent name|reserved"):
        await world.service.start_draft(BOSS, wire.SpawnDraft(name=name))
    with pytest.raises(OperatorError, match=r"not an agent name|reserved"):
        await world.service.new_agent(ALICE, api.NewAgent(name=name))
    assert await world.count("proposals") == before


@pytest.mark.parametrize("commit", ["main", "HEAD", "abc1234", "A" * 40, "a" * 41, "refs/heads/main", ""])
async def test_only_full_commit_ids_are_taken(world: World, commit: str) -> None:
    before = await world.count("proposals")
    with pytest.raises(OperatorError, match="not a full commit id"):
        await world.service.propose_bundle(SMITH, SMITH, commit, "", world.directory / "x")
    with pytest.raises(OperatorError, match="not a full commit id"):
        await world.service.propose(ALICE, api.Propose(agent="smith", commit=commit))
    assert await world.count("proposals") == before


async def test_a_bad_bundle_is_refused_at_once_and_seen_by_the_operator(world: World) -> None:
    path = world.directory / "junk"
    path.write_text("junk")
    with pytest.raises(InvalidError, match="the bundle is refused"):
        await world.service.propose_bundle(SMITH, SMITH, "a" * 40, "", path)
    (found,) = (await world.service.list(state="invalid", agent="smith", before=None, limit=10)).items
    assert "the bundle is refused: it is no bundle" in found.error
    assert not [body for body in await world.told("smith") if f"proposal {found.id} " in body]
    with pytest.raises(OperatorError, match="was not taken in"):
        await world.service.diff(found.id, "running")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{ ... }:\n{ hyperhive = ", "does not evaluate"),
        (agent_nix(model="7"), "hyperhive.model"),
        (agent_nix(model='"fable"'), "the model 'fable' is not served by this host"),
        (agent_nix(role='"manager"'), "at most one manager, and hm1nd is it"),
        (agent_nix(uidMap_base="2097152"), "fixed when it is created"),
        (agent_nix(network_allow='[ "example.org" ]'), "hyperhive.network.allow"),
        (agent_nix(prompt='"nowhere.md"'), "there is no file nowhere.md"),
        (agent_nix(unheard="1"), "hyperhive.unheard"),
    ],
)
async def test_what_cannot_be_taken_ends_as_invalid_and_is_told(world: World, text: str, why: str) -> None:
    number = await world.propose(BOSS, SMITH, {"agent.nix": text})
    shown = await world.get(number)
    assert shown.state is ProposalState.INVALID
    assert why in shown.error
    assert len(shown.error.encode()) <= 8192
    (told,) = [body for body in await world.told("hm1nd") if f"proposal {number} " in body]
    assert why in told
    await world.restart()
    assert len([body for body in await world.told("hm1nd") if f"proposal {number} " in body]) == 1


async def test_a_commit_without_agent_nix_is_invalid(world: World) -> None:
    commit = await world.git.commit(SMITH, {"x": "y"}, parent=None, author="a", message="m")
    made = await world.service.propose(ALICE, api.Propose(agent="smith", commit=commit))
    await world.settled()
    assert "no agent.nix" in (await world.get(made.id)).error


async def test_a_prompt_that_is_no_text_or_too_long_is_invalid(world: World) -> None:
    nix = agent_nix(prompt='"prompt.md"')
    number = await world.propose(SMITH, SMITH, {"agent.nix": nix, "prompt.md": "x" * 70_000})
    assert "prompt.md is too long" in (await world.get(number)).error
    number = await world.propose(SMITH, SMITH, {"agent.nix": nix, "prompt.md": "a\0b"})
    assert "not UTF-8 text" in (await world.get(number)).error


async def test_a_repeated_request_is_answered_with_its_own_proposal(world: World) -> None:
    path, commit = await world.bundle(SMITH, OPUS)
    one = await world.service.propose_bundle(SMITH, SMITH, commit, "", path)
    two = await world.service.propose_bundle(SMITH, SMITH, commit, "", path)
    other = await world.service.propose_bundle(BOSS, SMITH, commit, "", path)
    assert one.proposal == two.proposal != other.proposal


async def test_proposers_are_bounded(world: World) -> None:
    for number in range(OPEN_MAX):
        await world.propose(SMITH, SMITH, {"x": str(number)})
    with pytest.raises(AgentError, match=f"{OPEN_MAX} are allowed"):
        await world.propose(SMITH, SMITH, {"x": "more"})
    await world.propose(BOSS, SMITH, {"x": "the manager may"})
    for row in (await world.service.list(state="pending", agent="smith", before=None, limit=100)).items:
        await world.service.deny(ALICE, row.id, api.Decide())
    for number in range(HOURLY_MAX - OPEN_MAX):
        denied = await world.propose(SMITH, SMITH, {"y": str(number)})
        await world.service.deny(ALICE, denied, api.Decide())
    with pytest.raises(AgentError, match="within an hour"):
        await world.propose(SMITH, SMITH, {"x": "more"})
    world.clock.advance(3601)
    await world.propose(SMITH, SMITH, {"x": "more"})


async def test_descriptions_are_bounded(world: World) -> None:
    with pytest.raises(AgentError, match="2000 are allowed") as caught:
        await world.propose(SMITH, SMITH, OPUS, "x" * 2001)
    assert caught.value.status == 413


async def test_few_examinations_run_at_once(world: World) -> None:
    world.nix.gate = asyncio.Event()
    made = []
    for number in range(6):
        path, commit = await world.bundle(SMITH, {"x": str(number)})
        made.append((await world.service.propose_bundle(SMITH, SMITH, commit, "", path)).proposal)
    assert [(await world.get(number)).state for number in made] == [ProposalState.EXAMINING] * 6
    world.nix.gate.set()
    await world.settled()
    assert world.nix.most <= 2
    assert {(await world.get(number)).state for number in made} == {ProposalState.PENDING}


async def test_a_proposal_that_is_cancelled_meanwhile_stays_cancelled(world: World) -> None:
    world.nix.gate = asyncio.Event()
    path, commit = await world.bundle(SMITH, OPUS)
    made = await world.service.propose_bundle(SMITH, SMITH, commit, "", path)
    await world.service.cancel(ALICE, made.proposal, api.Decide(note="not now"))
    world.nix.gate.set()
    await world.settled()
    assert (await world.get(made.proposal)).state is ProposalState.CANCELLED


async def test_files_beside_the_settings_are_elevated_and_comments_are_low(world: World) -> None:
    main = world.fake.repositories[SMITH].main
    assert main is not None
    text = await world.git.read(SMITH, main, "agent.nix", 10_000)
    only_text = await world.get(await world.propose(SMITH, SMITH, {"agent.nix": f"# a comment\n{text}"}))
    assert [(c.option, c.risk) for c in only_text.changes] == [("file agent.nix", Risk.LOW)]
    flake = await world.get(await world.propose(SMITH, SMITH, {"flake.nix": "{ evil = 1; }\n"}))
    assert [(c.option, c.risk) for c in flake.changes] == [("file flake.nix", Risk.ELEVATED)]
    prompt = await world.get(await world.propose(SMITH, SMITH, {"prompt.md": "be wild\n"}))
    assert [(c.option, c.risk) for c in prompt.changes] == [("file prompt.md", Risk.LOW)]


# ------------------------------------------------------------------------------- the operator
async def test_the_operator_proposes_what_is_in_the_repository(world: World) -> None:
    main = world.fake.repositories[SMITH].main
    pushed = await world.git.commit(SMITH, OPUS, parent=main, author="alice", message="m")
    made = await world.service.propose(ALICE, api.Propose(agent="smith", commit=pushed, description="mine"))
    await world.settled()
    shown = await world.get(made.id)
    assert (shown.state, shown.requested_by) == (ProposalState.PENDING, "operator")
    again = await world.service.propose(ALICE, api.Propose(agent="smith", commit=pushed))
    assert again.id == made.id
    with pytest.raises(OperatorError, match="there is no commit") as caught:
        await world.service.propose(ALICE, api.Propose(agent="smith", commit="d" * 40))
    assert caught.value.status == 404
    with pytest.raises(OperatorError, match="may look"):
        await world.service.propose(VICTOR, api.Propose(agent="smith", commit=pushed))


async def test_a_push_to_main_becomes_a_proposal_once(world: World) -> None:
    assert await world.service.scan(SMITH) is None
    repository = world.fake.repositories[SMITH]
    repository.main = await world.git.commit(SMITH, OPUS, parent=repository.main, author="a", message="m")
    number = await world.service.scan(SMITH)
    assert number is not None
    await world.settled()
    assert (await world.get(number)).requested_by == "operator"
    await world.service.deny(ALICE, number, api.Decide())
    assert await world.service.scan(SMITH) is None


async def test_pushes_are_looked_for_again_and_again(world: World) -> None:
    watching = asyncio.create_task(world.service.run())
    repository = world.fake.repositories[SMITH]
    repository.main = await world.git.commit(SMITH, OPUS, parent=repository.main, author="a", message="m")
    for _ in range(2):
        await world.clock.asleep()
        world.clock.advance(world.config.timeouts.resync_s)
    await world.clock.asleep()
    watching.cancel()
    found = await world.service.list(state=None, agent="smith", before=None, limit=9)
    assert [item.requested_by for item in found.items] == ["operator", "operator"]
    assert found.items[0].description == "pushed to main"


# ------------------------------------------------------------------------------- new agents
async def test_a_spawn_in_one_step_is_a_proposal_of_the_template(world: World) -> None:
    made = await world.service.request_spawn(BOSS, wire.Spawn(name="scribe", description="writes"))
    again = await world.service.request_spawn(BOSS, wire.Spawn(name="scribe"))
    assert again.proposal == made.proposal
    await world.settled()
    shown = await world.get(made.proposal)
    assert (shown.state, shown.kind) == (ProposalState.PENDING, ProposalKind.SPAWN)
    options = [change.option for change in shown.changes]
    assert options[:3] == ["agent", "model", "role"]
    assert not any(option.startswith("file ") for option in options)
    with pytest.raises(AgentError, match="only the manager"):
        await world.service.request_spawn(SMITH, wire.Spawn(name="other"))
    with pytest.raises(AgentError, match="exists already"):
        await world.service.request_spawn(BOSS, wire.Spawn(name="smith"))
    with pytest.raises(AgentError, match="proposal"):
        await world.service.new_agent(ALICE, api.NewAgent(name="scribe"))


async def test_a_denied_new_agent_can_be_asked_for_again_with_other_settings(world: World) -> None:
    one = await world.service.new_agent(ALICE, api.NewAgent(name="scribe", model="opus"))
    await world.settled()
    await world.service.deny(ALICE, one.id, api.Decide())
    two = await world.service.new_agent(
        ALICE, api.NewAgent(name="scribe", bash_allow=["git *"], approve=True)
    )
    assert two.state is ProposalState.APPROVED
    changes = {change.option: change.after for change in two.changes}
    assert (changes["model"], changes["bash.allow"]) == ('"haiku"', '["git *"]')


async def test_a_new_agent_that_cannot_be_is_said_so(world: World) -> None:
    with pytest.raises(OperatorError, match="not served here"):
        await world.service.new_agent(ALICE, api.NewAgent(name="scribe", model="gpt"))
    made = await world.service.new_agent(ALICE, api.NewAgent(name="boss2", role=Role.MANAGER, approve=True))
    assert made.state is ProposalState.INVALID
    assert "at most one manager" in made.error
    assert await world.store.state.one("SELECT 1 FROM agents WHERE name = 'boss2'") is None


async def test_a_draft_in_two_steps_carries_its_state(world: World) -> None:
    draft = await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    assert (await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))).commit == draft.commit
    assert world.directed == [("hm1nd", "repos")] * 2
    assert [item.name for item in (await world.service.drafts()).items] == ["scribe"]
    path, commit = await world.bundle(SCRIBE, {"agent.nix": agent_nix(model='"sonnet"'), "style.md": "terse"})
    state = world.tar(**{"notes.md": "remember"})
    made = await world.service.propose_draft(BOSS, "scribe", commit, "", path, state)
    state.unlink()
    await world.settled()
    shown = await world.get(made.proposal)
    assert (shown.state, shown.staged_files) == (ProposalState.PENDING, ["notes.md"])
    options = {change.option for change in shown.changes}
    assert {"agent", "model", "file style.md"} <= options
    assert "file flake.nix" not in options
    assert (world.directory / f"state/staged/{made.proposal}.tar").stat().st_mode & 0o077 == 0
    assert (await world.service.drafts()).items[0].proposal == made.proposal

    other = await world.service.propose_draft(
        BOSS, "scribe", commit, "", path, world.tar(**{"notes.md": "forget"})
    )
    await world.settled()
    assert other.proposal != made.proposal
    assert (await world.get(other.proposal)).digest != shown.digest


async def test_the_operator_discards_a_draft_and_the_manager_is_told(world: World) -> None:
    draft = await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    path, commit = await world.bundle(SCRIBE, {"agent.nix": agent_nix(model='"sonnet"')})
    with pytest.raises(OperatorError, match="only look"):
        await world.service.discard_draft(VICTOR, "scribe", api.Act())
    rehearsed = await world.service.discard_draft(ALICE, "scribe", api.Act(dry_run=True))
    assert (rehearsed.items, len((await world.service.drafts()).items)) == ([], 1)
    left = await world.service.discard_draft(ALICE, "scribe", api.Act(note="we have one"))
    assert left.items == []
    told = await world.store.state.one(
        "SELECT data FROM outbox WHERE kind = 'notify' ORDER BY id DESC LIMIT 1"
    )
    assert told is not None
    assert "discarded your draft scribe, and says: we have one" in told["data"]
    assert await world.git.main(SCRIBE) is None, "nothing shows its repository any more"
    with pytest.raises(OperatorError, match="there is no draft"):
        await world.service.discard_draft(ALICE, "scribe", api.Act())
    with pytest.raises(AgentError, match="the operator discarded it"):
        await world.service.propose_draft(BOSS, "scribe", commit, "", path, world.tar(a="b"))
    again = await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    assert again.commit
    assert draft.commit


async def test_a_draft_that_waits_for_a_decision_is_decided_and_not_discarded(world: World) -> None:
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    path, commit = await world.bundle(SCRIBE, {"agent.nix": agent_nix(model='"sonnet"')})
    made = await world.service.propose_draft(
        BOSS, "scribe", commit, "keeps the log", path, world.tar(**{"notes.md": "remember"})
    )
    await world.settled()
    [shown] = (await world.service.drafts()).items
    assert (shown.proposal_state, shown.state_files) == (ProposalState.PENDING, 1)
    assert shown.description == "keeps the log"
    with pytest.raises(OperatorError, match=f"proposal {made.proposal} for scribe is pending"):
        await world.service.discard_draft(ALICE, "scribe", api.Act())
    await world.service.deny(ALICE, made.proposal, api.Decide(note="no"))
    assert (await world.service.discard_draft(ALICE, "scribe", api.Act())).items == []
    assert (await world.get(made.proposal)).commit == commit, "what was proposed stays to be seen"


async def test_a_draft_whose_name_was_taken_meanwhile_says_so(world: World) -> None:
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    own = await world.service.new_agent(ALICE, api.NewAgent(name="scribe"))
    await world.settled()
    path, commit = await world.bundle(SCRIBE, {"agent.nix": agent_nix(model='"sonnet"')})
    with pytest.raises(AgentError, match=f"proposal {own.id} for a new agent scribe"):
        await world.service.propose_draft(BOSS, "scribe", commit, "", path, world.tar(a="b"))


async def test_there_are_so_many_drafts_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "DRAFTS_MAX", 2)
    for name in ("one", "two"):
        await world.service.start_draft(BOSS, wire.SpawnDraft(name=name))
    with pytest.raises(AgentError, match="there are 2 drafts already") as refused:
        await world.service.start_draft(BOSS, wire.SpawnDraft(name="three"))
    assert "hive discard" in refused.value.hint
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="two"))
    await world.service.discard_draft(ALICE, "one", api.Act())
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="three"))


async def test_drafts_are_the_managers_and_need_a_start(world: World) -> None:
    tar = world.tar(a="b")
    with pytest.raises(AgentError, match="only the manager"):
        await world.service.start_draft(SMITH, wire.SpawnDraft(name="scribe"))
    with pytest.raises(AgentError, match="there is no draft"):
        await world.service.propose_draft(BOSS, "scribe", "a" * 40, "", tar, tar)
    with pytest.raises(AgentError, match="exists already"):
        await world.service.start_draft(BOSS, wire.SpawnDraft(name="smith"))


async def test_a_bad_state_is_refused_and_leaves_nothing(world: World) -> None:
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    path, commit = await world.bundle(SCRIBE, {})
    junk = world.directory / "junk.tar"
    junk.write_text("no tar")
    with pytest.raises(InvalidError, match="the staged state"):
        await world.service.propose_draft(BOSS, "scribe", commit, "", path, junk)
    (found,) = (await world.service.list(state="invalid", agent="scribe", before=None, limit=5)).items
    assert "the staged state" in found.error
    assert list((world.directory / "state/staged").iterdir()) == []


async def test_agents_read_their_own_repository_and_the_manager_all(world: World) -> None:
    assert await world.service.repository_bundle(SMITH, "smith")
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    assert await world.service.repository_bundle(BOSS, "scribe")
    for name in ("hm1nd", "scribe"):
        with pytest.raises(AgentError, match="its own repository only"):
            await world.service.repository_bundle(SMITH, name)
    with pytest.raises(OperatorError, match="no repository"):
        await world.service.repository_bundle(BOSS, AgentName("nobody"))


async def test_a_commit_of_another_repository_is_refused(world: World) -> None:
    scout = await world.agent(SCOUT)
    other = await world.git.commit(SCOUT, OPUS, parent=Commit(scout), author="a", message="m")
    with pytest.raises(OperatorError, match="there is no commit"):
        await world.service.propose(ALICE, api.Propose(agent="smith", commit=other))
