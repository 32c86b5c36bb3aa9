"""Tags that were removed, moved or broken are seen against the rows, and made again as they were."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.projection import TagDrift, missing_tags, project_tag, repair_tags
from reconciler.control import models as api
from reconciler.errors import HiveError
from reconciler.model.names import AgentName, Commit
from reconciler.store.deployments import record_start
from tests.support.approvals import ALICE, SMITH, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

OPUS = {"agent.nix": '{ hyperhive.model = "opus"; }\n'}
SONNET = {"agent.nix": '{ hyperhive.model = "sonnet"; }\n'}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Proposals of every end; all tags projected."""
    async with await World.open(tmp_path) as world:
        await world.agent(SMITH)
        deployed = await world.propose(SMITH, SMITH, OPUS)
        await world.approve(deployed)
        await world.deploy(deployed)
        await world.service.deny(ALICE, await world.propose(SMITH, SMITH, SONNET), api.Decide(note="no"))
        await world.propose(SMITH, SMITH, {"agent.nix": "{ hyperhive = "})
        with pytest.raises(HiveError):
            await world.service.propose_bundle(SMITH, SMITH, "d" * 40, "", world.tar())
        taken_back = await world.propose(SMITH, SMITH, {**OPUS, "a": "b"})
        await world.service.cancel(ALICE, taken_back, api.Decide(note="later"))
        await drain(world)
        yield world


async def drain(world: World) -> None:
    for row in await world.outbox("tag"):
        await project_tag(world.git, row)
    async with world.store.state.transaction() as tx:
        await tx.run("DELETE FROM outbox WHERE kind = 'tag'")


async def drift(world: World, name: AgentName = SMITH) -> TagDrift:
    return await missing_tags(world.git, world.store.state, name)


async def test_what_was_projected_is_no_drift(world: World) -> None:
    assert not await drift(world)
    assert len(world.fake.repositories[SMITH].tags) > 15


async def test_the_probing_of_a_deployment_asks_for_no_tag(world: World) -> None:
    async with world.store.state.transaction() as tx:
        await record_start(tx, SMITH, 1, generation=1, reason="")
    assert not await drift(world)


async def test_an_agent_without_proposals_or_repository_has_no_drift(world: World) -> None:
    assert not await drift(world, AgentName("nobody"))


async def test_every_tag_that_is_removed_is_seen_and_made_again_as_it_was(world: World) -> None:
    repository = world.fake.repositories[SMITH]
    tags, messages = dict(repository.tags), dict(repository.messages)
    states = {tag for tag in tags if not tag.startswith("template/")}
    assert {tag.split("/")[0] for tag in states} == {
        "proposal", "pending", "approved", "building", "activating", "deployed", "denied", "invalid",
        "cancelled",
    }  # fmt: skip
    for tag in sorted(states):
        del repository.tags[tag], repository.messages[tag]
        found = await drift(world)
        if tag.startswith("proposal/") and not found:
            # That commit was refused, so nothing but this tag says that it ever came.
            assert f"invalid/{tag.partition('/')[2]}" in tags
            repository.tags[tag], repository.messages[tag] = tags[tag], messages[tag]
            continue
        assert [one.tag for one in found.missing] == [tag]
        assert not found.moved
        assert await repair_tags(world.git, SMITH, found) == []
        assert (repository.tags, repository.messages) == (tags, messages)


async def test_all_of_them_at_once(world: World) -> None:
    repository = world.fake.repositories[SMITH]
    tags, messages = dict(repository.tags), dict(repository.messages)
    arrived = {tag for tag in tags if tag.startswith(("template/", "proposal/"))}
    for tag in tags.keys() - arrived:
        del repository.tags[tag], repository.messages[tag]
    assert await repair_tags(world.git, SMITH, await drift(world)) == []
    assert (repository.tags, repository.messages) == (tags, messages)
    assert not await drift(world)


async def test_a_tag_that_was_moved_is_moved_back(world: World) -> None:
    repository = world.fake.repositories[SMITH]
    tags = dict(repository.tags)
    denied = next(tag for tag in tags if tag.startswith("denied/"))
    assert repository.main is not None
    repository.tags[denied] = repository.main
    found = await drift(world)
    assert ([one.tag for one in found.moved], found.missing) == ([denied], ())
    await repair_tags(world.git, SMITH, found)
    assert repository.tags == tags
    assert repository.messages[denied] == "no"


async def test_what_waits_in_the_outbox_is_no_drift(world: World) -> None:
    number = await world.propose(SMITH, SMITH, {**SONNET, "c": "d"})
    assert f"pending/{number}" not in world.fake.repositories[SMITH].tags
    assert not await drift(world)
    async with world.store.state.transaction() as tx:  # given up: nobody else will do it before a restart
        await tx.run("UPDATE outbox SET error = 'the disk was full' WHERE kind = 'tag'")
    assert [one.tag for one in (await drift(world)).missing] == [f"pending/{number}"]


async def test_a_commit_that_never_came_is_asked_for_by_nobody(world: World) -> None:
    rows = await world.store.state.all("SELECT id FROM proposals WHERE commit_id = ?", "d" * 40)
    assert [f"invalid/{row['id']}" in world.fake.repositories[SMITH].tags for row in rows] == [False]
    assert not await drift(world)


async def test_tags_of_commits_that_are_gone_are_named(world: World) -> None:
    repository = world.fake.repositories[SMITH]
    denied = next(tag for tag in repository.tags if tag.startswith("denied/"))
    lost = repository.tags[denied]
    for tag in [tag for tag, at in repository.tags.items() if at == lost]:
        del repository.tags[tag]
    del repository.commits[lost]
    found = await repair_tags(world.git, SMITH, await drift(world))
    assert {one.commit for one in found} == {Commit(lost)}
    assert denied in {one.tag for one in found}


async def test_a_purged_agents_proposals_ask_for_nothing(world: World) -> None:
    world.fake.repositories.clear()
    assert await drift(world)
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE proposals SET purged = 1")
    assert not await drift(world)
