"""The operator's decisions: what they bind to, what they end, and what follows from them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.names import AgentName
from reconciler.model.states import ProposalState, Risk, Role, UserRole
from reconciler.services import Actor
from reconciler.store.proposals import ProposalRow
from tests.support.approvals import ALICE, BOB, BOSS, SCOUT, SCRIBE, SMITH, VICTOR, World, agent_nix

pytestmark = pytest.mark.asyncio

OPUS = {"agent.nix": agent_nix(model='"opus"')}
SONNET = {"agent.nix": agent_nix(model='"sonnet"')}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(BOSS, Role.MANAGER)
    await world.agent(SMITH)
    yield world
    await world.close()


async def conflict(world: World, proposal: int, actor: Actor = ALICE) -> str:
    with pytest.raises(OperatorError) as caught:
        await world.approve(proposal, actor)
    assert caught.value.status == 409
    return caught.value.message


async def test_an_approval_is_written_down_and_wakes_a_pass(world: World) -> None:
    number = await world.propose(BOSS, SMITH, OPUS)
    world.woken.clear()
    shown = await world.approve(number, note="fine", now=True)
    assert (shown.state, shown.decided_by, shown.note) == (ProposalState.APPROVED, "operator:alice", "fine")
    assert world.woken == ["smith"]
    row = await world.store.state.one("SELECT * FROM audit ORDER BY id DESC LIMIT 1")
    assert row is not None
    assert (row["actor"], row["action"], row["target"]) == (
        "operator:alice", "proposal.approved", f"proposal:{number}",
    )  # fmt: skip
    assert json.loads(row["data"])["digest"] == shown.digest
    asked = await world.store.state.one("SELECT activate_now FROM proposals WHERE id = ?", number)
    assert asked is not None
    assert asked["activate_now"] == 1
    tags = [tag["tag"] for tag in await world.outbox("tag") if tag["tag"].endswith(f"/{number}")]
    assert tags == [f"pending/{number}", f"approved/{number}"]


async def test_viewers_look_on(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    for call in (
        world.service.approve(VICTOR, number, api.Approve(digest="x")),
        world.service.deny(VICTOR, number, api.Decide()),
        world.service.cancel(VICTOR, number, api.Decide()),
        world.service.new_agent(VICTOR, api.NewAgent(name="x")),
    ):
        with pytest.raises(OperatorError, match="may look, but not decide") as caught:
            await call
        assert caught.value.status == 403
    assert (await world.get(number)).state is ProposalState.PENDING


@pytest.mark.parametrize("digest", ["", "x", "0" * 64, "ä\ud800"])
async def test_what_was_not_shown_cannot_be_approved(world: World, digest: str) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    with pytest.raises(OperatorError, match="changed since you looked") as caught:
        await world.service.approve(ALICE, number, api.Approve(digest=digest))
    assert caught.value.code == "conflict"
    assert (await world.get(number)).state is ProposalState.PENDING


async def test_a_page_from_before_another_deployment_is_stale(world: World) -> None:
    first = await world.propose(SMITH, SMITH, SONNET)
    second = await world.propose(BOSS, SMITH, OPUS)
    before = await world.get(second)
    assert [c.before for c in before.changes if c.option == "model"] == ['"haiku"']
    await world.approve(first)
    await world.deploy(first)
    with pytest.raises(OperatorError, match="changed since you looked"):
        await world.service.approve(ALICE, second, api.Approve(digest=before.digest or ""))
    after = await world.get(second)
    assert [c.before for c in after.changes if c.option == "model"] == ['"sonnet"']
    assert after.digest != before.digest
    assert after.base == (await world.get(first)).commit
    assert (await world.approve(second)).state is ProposalState.APPROVED


async def test_a_deployment_that_ends_between_look_and_click_makes_the_page_stale(world: World) -> None:
    first = await world.propose(SMITH, SMITH, SONNET)
    second = await world.propose(BOSS, SMITH, OPUS)
    await world.approve(first)
    shown = await world.get(second)
    refresh = world.service.examiner.refresh

    async def refresh_then_deploy(row: ProposalRow) -> ProposalRow:
        found = await refresh(row)
        await world.deploy(first)
        return found

    world.service.examiner.refresh = refresh_then_deploy  # type: ignore[method-assign]
    with pytest.raises(OperatorError, match="changed since you looked"):
        await world.service.approve(ALICE, second, api.Approve(digest=shown.digest or ""))


async def test_the_same_person_may_repeat_and_another_is_told_who_was_faster(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    await world.approve(number)
    await world.approve(number)
    assert await world.count("audit WHERE action = 'proposal.approved' AND target = 'proposal:3'") == 1
    assert "is approved already, by operator:alice" in await conflict(world, number, BOB)
    with pytest.raises(OperatorError, match="is approved"):
        await world.service.deny(ALICE, number, api.Decide())


async def test_of_two_decisions_at_once_exactly_one_holds(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    digest = (await world.get(number)).digest or ""
    found = await asyncio.gather(
        world.service.approve(ALICE, number, api.Approve(digest=digest)),
        world.service.approve(BOB, number, api.Approve(digest=digest)),
        world.service.deny(BOB, number, api.Decide()),
        world.service.cancel(BOB, number, api.Decide()),
        return_exceptions=True,
    )
    # a cancellation may follow an approval; nothing else may follow anything
    decided = [one for one in found if not isinstance(one, BaseException)]
    assert 1 <= len(decided) <= 2
    assert all(isinstance(one, OperatorError) for one in found if one not in decided)
    rows = await world.count(f"audit WHERE target = 'proposal:{number}'")
    assert rows == len(decided)


async def test_an_approval_ends_what_is_older_and_leaves_what_is_newer(world: World) -> None:
    older = await world.propose(SMITH, SMITH, SONNET)
    chosen = await world.propose(BOSS, SMITH, OPUS)
    newer = await world.propose(SMITH, SMITH, {"prompt.md": "x"})
    other = await world.propose(BOSS, BOSS, {"prompt.md": "x"})
    await world.approve(chosen)
    assert (await world.get(older)).state is ProposalState.SUPERSEDED
    assert f"proposal {chosen} was approved instead" in (await world.get(older)).note
    assert (await world.get(newer)).state is ProposalState.PENDING
    assert (await world.get(other)).state is ProposalState.PENDING
    await world.approve(newer)
    assert (await world.get(chosen)).state is ProposalState.SUPERSEDED


async def test_a_denial_reaches_the_proposer_with_its_note(world: World) -> None:
    number = await world.propose(BOSS, SMITH, OPUS)
    shown = await world.service.deny(ALICE, number, api.Decide(note="too dear\0"))
    assert (shown.state, shown.note) == (ProposalState.DENIED, "too dear")
    await world.service.deny(ALICE, number, api.Decide(note="again"))
    (told,) = [body for body in await world.told("hm1nd") if f"proposal {number} " in body]
    assert told.endswith("is denied, by the operator: too dear")
    assert await world.told("operator") == []


async def test_proposers_take_back_their_own_and_the_operator_any(world: World) -> None:
    smith = Actor("agent:smith", UserRole.VIEWER)
    mine = await world.propose(SMITH, SMITH, OPUS)
    theirs = await world.propose(BOSS, SMITH, SONNET)
    assert (await world.service.cancel(smith, mine, api.Decide())).state is ProposalState.CANCELLED
    assert await world.told("smith") == [t for t in await world.told("smith") if f"proposal {mine} " not in t]
    with pytest.raises(OperatorError, match="may look"):
        await world.service.cancel(smith, theirs, api.Decide())
    await world.service.cancel(ALICE, theirs, api.Decide(note="no"))
    with pytest.raises(OperatorError, match="cancelled by you"):
        await world.service.deny(ALICE, theirs, api.Decide())
    assert any(f"proposal {theirs} " in body for body in await world.told("hm1nd"))


async def test_a_deployment_cannot_be_cancelled_once_it_activates(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    await world.approve(number)
    await world.deploy(number)
    with pytest.raises(OperatorError, match="cannot become cancelled"):
        await world.service.cancel(ALICE, number, api.Decide())


# ------------------------------------------------------------------------------------------------ new agents
async def test_a_new_agent_gets_its_row_with_the_approval(world: World) -> None:
    (world.etc / "subuid").write_text(f"bob:{1_048_576 + 2 * 65536}:65536\n")
    made = await world.service.request_spawn(BOSS, wire.Spawn(name="scribe"))
    await world.settled()
    assert await world.store.state.one("SELECT 1 FROM agents WHERE name = 'scribe'") is None
    await world.approve(made.proposal)
    row = await world.store.state.one("SELECT * FROM agents WHERE name = 'scribe'")
    assert row is not None
    assert (row["desired"], row["role"], row["generation"]) == ("running", "agent", None)
    assert row["uid_base"] == 1_048_576 + 3 * 65536
    assert uuid.UUID(row["session_id"]).version == 4
    assert world.woken[-1] == "scribe"
    assert [event["kind"] for event in await world.outbox("event") if event["agent"] == "scribe"].count(
        "agent.created"
    ) == 1


async def test_a_new_agent_gets_the_range_that_it_asked_for_if_it_is_still_free(world: World) -> None:
    wanted = 1_048_576 + 9 * 65536
    numbers = []
    for name in (SCRIBE, SCOUT):
        await world.service.start_draft(BOSS, wire.SpawnDraft(name=name))
        path, commit = await world.bundle(name, {"agent.nix": agent_nix(uidMap_base=str(wanted))})
        tar = world.tar(a="b")
        numbers.append((await world.service.propose_draft(BOSS, name, commit, "", path, tar)).proposal)
    await world.settled()
    await world.approve(numbers[0])
    row = await world.store.state.one("SELECT uid_base FROM agents WHERE name = 'scribe'")
    assert row is not None
    assert row["uid_base"] == wanted
    assert "is not free any more: another agent has it" in await conflict(world, numbers[1])


async def test_there_is_one_manager_whatever_is_approved_in_which_order(tmp_path: Path) -> None:
    async with await World.open(tmp_path) as world:
        numbers = []
        for name in ("one", "two"):
            made = await world.service.new_agent(ALICE, api.NewAgent(name=name, role=Role.MANAGER))
            numbers.append(made.id)
        await world.settled()
        assert (await world.get(numbers[0])).risk is Risk.DANGEROUS
        await world.approve(numbers[0])
        assert "two cannot become manager: one is" in await conflict(world, numbers[1])
        assert await world.store.state.one("SELECT 1 FROM agents WHERE name = 'two'") is None


async def test_an_agent_that_was_taken_back_before_it_ran_is_not_wanted(world: World) -> None:
    made = await world.service.new_agent(ALICE, api.NewAgent(name="scribe", approve=True))
    await world.service.cancel(ALICE, made.id, api.Decide())
    row = await world.store.state.one("SELECT desired FROM agents WHERE name = 'scribe'")
    assert row is not None
    assert row["desired"] == "destroyed"
    with pytest.raises(OperatorError, match="destroyed, but not purged"):
        await world.service.new_agent(ALICE, api.NewAgent(name="scribe"))


async def test_nothing_is_approved_for_a_destroyed_agent(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'destroyed' WHERE name = 'smith'")
    assert "is destroyed" in await conflict(world, number)


async def test_staged_state_goes_with_a_denial_and_stays_with_an_approval(world: World) -> None:
    numbers = []
    for name in (SCRIBE, SCOUT):
        await world.service.start_draft(BOSS, wire.SpawnDraft(name=name))
        path, commit = await world.bundle(name, {"x": "y"})
        made = await world.service.propose_draft(BOSS, name, commit, "", path, world.tar(a="b"))
        numbers.append(made.proposal)
    await world.settled()
    await world.service.deny(ALICE, numbers[0], api.Decide())
    await world.approve(numbers[1])
    await world.restart()
    staged = world.directory / "state/staged"
    assert [path.name for path in staged.iterdir()] == [f"{numbers[1]}.tar"]
    assert [item.name for item in (await world.service.drafts()).items] == ["scout", "scribe"]


# ------------------------------------------------------------------------------------------------ reading
async def test_diffs_have_three_bases(world: World) -> None:
    first = await world.propose(SMITH, SMITH, SONNET)
    await world.approve(first)
    await world.deploy(first)
    second = await world.propose(SMITH, SMITH, {**SONNET, "a\u00e9": "evil \u202e text"})
    third = await world.propose(SMITH, SMITH, {**SONNET, "b": "x"})
    await world.approve(second)
    running = await world.service.diff(third, "running")
    assert running.base_commit == (await world.get(first)).commit
    approved = await world.service.diff(third, "approved")
    assert approved.base_commit == (await world.get(second)).commit
    previous = await world.service.diff(third, "proposal")
    assert previous.base_commit == (await world.get(second)).commit
    assert [file.status for file in previous.files] == ["deleted", "added"]
    assert previous.files[0].hunks[0].lines[0].text == "evil ⟨U+202E⟩ text"
    nothing = await world.service.diff(1, "running")
    assert nothing.commit == (await world.get(1)).commit
    with pytest.raises(OperatorError, match="no base of a diff"):
        await world.service.diff(third, "main")


async def test_why_names_the_turn_and_the_message_behind_a_proposal(world: World) -> None:
    async with world.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO leases (agent, boot, turn_id, state, created_at) "
            "VALUES ('hm1nd', 'b', 1, 'open', ?)",
            tx.now,
        )
        await tx.run(
            "INSERT INTO turns (id, agent, boot, start_key, model, session_id, state, begun_at) "
            "VALUES (1, 'hm1nd', 'b', 'k', 'haiku', 's', 'open', ?)",
            tx.now,
        )
        await tx.run(
            "INSERT INTO messages (sender, recipient, body, state, lease_id, sent_at) "
            "VALUES ('operator', 'hm1nd', 'give smith opus', 'leased', 1, ?)",
            tx.now - 1,
        )
    number = await world.propose(BOSS, SMITH, OPUS, "as asked")
    await world.service.deny(ALICE, number, api.Decide(note="no"))
    why = await world.service.why(number)
    assert why.agent == "smith"
    assert [(cause.kind, cause.text) for cause in why.chain] == [
        ("approval", "alice (operator) denied it: no"),
        ("proposal", f"hm1nd proposed {(await world.get(number)).commit[:12]} for smith: as asked"),
        ("turn", "hm1nd ran turn 1 with haiku"),
        ("message", "the operator wrote: give smith opus"),
    ]


async def test_lists_are_newest_first_and_paged(world: World) -> None:
    for number in range(5):
        await world.propose(SMITH, SMITH, {"x": str(number)})
    first = await world.service.list(state="pending", agent="smith", before=None, limit=3)
    assert [item.id for item in first.items] == [7, 6, 5]
    rest = await world.service.list(state="pending", agent="smith", before=first.next, limit=3)
    assert ([item.id for item in rest.items], rest.next) == ([4, 3], None)
    with pytest.raises(OperatorError, match="no state of a proposal"):
        await world.service.list(state="nope", agent=None, before=None, limit=3)
    with pytest.raises(OperatorError, match="there is no proposal 99"):
        await world.get(99)


async def test_the_build_log_is_read_from_a_line_on(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    async with world.store.events.transaction() as tx:
        for text in ("one", "two"):
            await tx.run(
                "INSERT INTO build_log (proposal_id, at, text) VALUES (?, ?, ?)", number, tx.now, text
            )
    log = await world.service.log(number, 0)
    assert ([line.text for line in log.items], log.done) == (["one", "two"], False)
    assert [line.text for line in (await world.service.log(number, log.items[0].id)).items] == ["two"]
    await world.service.deny(ALICE, number, api.Decide())
    assert (await world.service.log(number, 99)).done
    assert AgentName((await world.get(number)).agent) == SMITH
