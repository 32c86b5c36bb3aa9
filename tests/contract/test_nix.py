"""Evaluating, building and pinning, by real Nix and by the fake."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from reconciler.effects.protocols import Nix
from reconciler.errors import CommandError, InvalidError, PermanentError
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec
from reconciler.model.states import Role
from reconciler.model.template import template_files
from tests.fakes.nix import FakeNix
from tests.fakes.stored import FileNix
from tests.integration.nix_kit import PrivateNix, needs_nix, private_nix

pytestmark = pytest.mark.asyncio
SCOUT = AgentName("scout")


@dataclass(slots=True)
class World:
    """`lose` takes a generation's path out of the store behind everybody's back."""

    nix: Nix
    tree: Callable[[dict[str, str]], Path]
    lose: Callable[[str], None]


@pytest.fixture(scope="module")
def real_nix() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found


@pytest.fixture(params=["fake", "file", pytest.param("real", marks=[needs_nix, pytest.mark.integration])])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param in {"fake", "file"}:
        fake = FakeNix() if request.param == "fake" else FileNix(tmp_path / "world")
        nix: Nix = fake
        place = tmp_path
        lose: Callable[[str], None] = fake.lose
    else:
        private: PrivateNix = request.getfixturevalue("real_nix")
        nix = private.effect()
        place = private.path / uuid.uuid4().hex
        place.mkdir()
        lose = partial(lose_path, private)

    def tree(files: dict[str, str]) -> Path:
        folder = place / uuid.uuid4().hex
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    yield World(nix, tree, lose)
    if request.param == "real":
        shutil.rmtree(Path(real_state(request)) / "profiles", ignore_errors=True)


def lose_path(private: PrivateNix, store_path: str) -> None:
    """Database and disk forget the path although a root holds it."""
    private.run("env", "NIX_REMOTE=", "nix-store", "--delete", "--ignore-liveness", store_path)


def real_state(request: pytest.FixtureRequest) -> str:
    private: PrivateNix = request.getfixturevalue("real_nix")
    return private.config().state_dir


async def logged(line: str) -> None:
    """A sink."""


def agent(body: str) -> dict[str, str]:
    return {"agent.nix": "{ hyperhive = { " + body + " }; }", "prompt.md": "hello"}


async def test_an_empty_agent_is_the_default_spec(world: World) -> None:
    found = await world.nix.evaluate(world.tree({"agent.nix": "{ }"}))
    assert found.spec == Spec()
    assert found.spec_json == Spec().model_dump(mode="json")
    assert len(found.digest) == 64


async def test_settings_are_read_and_the_digest_follows_them(world: World) -> None:
    first = await world.nix.evaluate(world.tree(agent('model = "opus"; bash.allow = [ "git *" ];')))
    second = await world.nix.evaluate(
        world.tree(
            {"agent.nix": '{ ... }: { hyperhive.bash.allow = [ "git *" ]; hyperhive.model = "opus"; }'}
        )
    )
    other = await world.nix.evaluate(world.tree(agent('model = "opus";')))
    assert (first.spec.model, first.spec.bash.allow) == ("opus", ["git *"])
    assert first.digest == second.digest != other.digest


async def test_the_template_evaluates(world: World) -> None:
    files = template_files(Role.MANAGER, "opus", ["git *", 'echo "${HOME}"', 'echo "a\\\\b"'])
    found = await world.nix.evaluate(world.tree(files))
    assert found.spec.role == "manager"
    assert found.spec.bash.allow == ["git *", 'echo "${HOME}"', 'echo "a\\\\b"']


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("model = 5;", "hyperhive.model"),
        ('modle = "opus";', "hyperhive.modle"),
        ('network.allow = [ "example.org" ];', "hyperhive.network.allow"),
        ("uidMap.base = 70000;", "hyperhive.uidMap.base"),
        ('tools.allow = [ "Bash" ];', "hyperhive.tools.allow.0"),
        ('role = "queen";', "hyperhive.role"),
        ('bash.allow = [ "git *" "" ];', "hyperhive.bash.allow.1"),
        ('limits.memoryMax = "lots";', "hyperhive.limits.memoryMax"),
        ("nix.enable = 1;", "hyperhive.nix.enable"),
        ("send = [ ];", "hyperhive.send"),
        ('mcpServers.Bad = { command = "x"; };', "hyperhive.mcpServers"),
    ],
)
async def test_a_wrong_option_is_refused_by_its_name(world: World, body: str, where: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await world.nix.evaluate(world.tree(agent(body)))
    assert any(refusal.where.startswith(where) for refusal in refused.value.refusals), refused.value.refusals
    assert where in refused.value.message


async def test_every_wrong_option_is_named_at_once(world: World) -> None:
    with pytest.raises(InvalidError) as refused:
        await world.nix.evaluate(world.tree(agent('model = 5; role = "queen"; nix.enable = "no";')))
    assert {refusal.where for refusal in refused.value.refusals} == {
        "hyperhive.model",
        "hyperhive.role",
        "hyperhive.nix.enable",
    }


async def test_what_does_not_parse_is_refused_with_the_error(world: World) -> None:
    with pytest.raises(InvalidError, match="error"):
        await world.nix.evaluate(world.tree({"agent.nix": "{ hyperhive = "}))


async def test_a_commit_without_agent_nix_is_refused(world: World) -> None:
    with pytest.raises(InvalidError, match=r"no agent\.nix"):
        await world.nix.evaluate(world.tree({"flake.nix": "{ }"}))


async def test_other_settings_than_the_hives_need_the_other_platform(world: World) -> None:
    with pytest.raises(InvalidError) as refused:
        await world.nix.evaluate(world.tree({"agent.nix": "{ environment.systemPackages = [ ]; }"}))
    assert refused.value.refusals[0].where == "environment"


async def test_equal_specs_build_the_same_path_and_others_another(world: World) -> None:
    tree = world.tree(agent(""))
    spec = Spec().model_dump(mode="json")
    first = await world.nix.build(SCOUT, tree, spec, logged)
    assert first == await world.nix.build(SCOUT, tree, spec, logged)
    assert first.endswith("-hive-scout")
    assert first != await world.nix.build(SCOUT, tree, {**spec, "model": "opus"}, logged)


async def test_generations_are_pinned_and_dropped(world: World) -> None:
    spec = Spec().model_dump(mode="json")
    assert await world.nix.generations(SCOUT) == {}
    one = await world.nix.build(SCOUT, world.tree(agent("")), spec, logged)
    two = await world.nix.build(SCOUT, world.tree(agent("")), {**spec, "model": "opus"}, logged)
    for _ in range(2):
        await world.nix.set_generation(SCOUT, 1, one)
        await world.nix.set_generation(SCOUT, 2, two)
    await world.nix.set_generation(SCOUT, 10, one)
    assert await world.nix.generations(SCOUT) == {1: one, 2: two, 10: one}
    await world.nix.drop_generations(SCOUT)
    await world.nix.drop_generations(SCOUT)
    assert await world.nix.generations(SCOUT) == {}


async def test_a_path_that_is_not_in_the_store_cannot_be_pinned(world: World) -> None:
    spec = Spec().model_dump(mode="json")
    path = await world.nix.build(SCOUT, world.tree(agent("")), spec, logged)
    missing = path.replace(path.rsplit("/", 1)[1][:32], "0" * 32)
    with pytest.raises(CommandError):
        await world.nix.set_generation(SCOUT, 1, missing)
    assert await world.nix.generations(SCOUT) == {}


async def built(world: World, number: int) -> str:
    """A path of its own: what one test loses must not be another's."""
    spec = Spec().model_dump(mode="json")
    models = [f"m{number}-{uuid.uuid4().hex[:12]}"]
    return await world.nix.build(SCOUT, world.tree(agent("")), {**spec, "models": models}, logged)


async def test_a_pinned_generation_is_selected_and_no_other(world: World) -> None:
    one, two = await built(world, 1), await built(world, 2)
    assert await world.nix.selected(SCOUT) is None
    with pytest.raises(PermanentError, match="generation 1 of scout"):
        await world.nix.select(SCOUT, 1)
    await world.nix.set_generation(SCOUT, 1, one)
    await world.nix.set_generation(SCOUT, 2, two)
    assert await world.nix.selected(SCOUT) is None
    for number in (2, 2, 1):
        await world.nix.select(SCOUT, number)
        assert await world.nix.selected(SCOUT) == number
        assert await world.nix.runs(SCOUT, number, {1: one, 2: two}[number])
        assert not await world.nix.runs(SCOUT, number, {1: two, 2: one}[number])
        assert not await world.nix.runs(SCOUT, 3 - number, {1: one, 2: two}[3 - number])
    with pytest.raises(PermanentError, match="generation 3 of scout"):
        await world.nix.select(SCOUT, 3)
    assert await world.nix.selected(SCOUT) == 1
    assert await world.nix.generations(SCOUT) == {1: one, 2: two}


async def test_dropping_forgets_the_selection_too(world: World) -> None:
    await world.nix.set_generation(SCOUT, 1, await built(world, 1))
    await world.nix.select(SCOUT, 1)
    await world.nix.drop_generations(SCOUT)
    assert await world.nix.selected(SCOUT) is None
    await world.nix.set_generation(SCOUT, 1, await built(world, 1))
    assert await world.nix.selected(SCOUT) is None


async def test_a_generation_can_be_pinned_to_another_path(world: World) -> None:
    one, two = await built(world, 1), await built(world, 2)
    await world.nix.set_generation(SCOUT, 1, one)
    await world.nix.select(SCOUT, 1)
    await world.nix.set_generation(SCOUT, 1, two)
    assert (await world.nix.generations(SCOUT), await world.nix.selected(SCOUT)) == ({1: two}, 1)


async def test_a_generation_whose_path_is_lost_is_not_pinned_any_more(world: World) -> None:
    one, two = await built(world, 1), await built(world, 2)
    await world.nix.set_generation(SCOUT, 1, one)
    await world.nix.set_generation(SCOUT, 2, two)
    await world.nix.select(SCOUT, 1)
    assert (await world.nix.exists(one), await world.nix.exists(two)) == (True, True)
    world.lose(one)
    assert (await world.nix.exists(one), await world.nix.exists(two)) == (False, True)
    assert await world.nix.generations(SCOUT) == {2: two}
    assert await world.nix.selected(SCOUT) is None
    assert not await world.nix.runs(SCOUT, 1, one)
    with pytest.raises(PermanentError):
        await world.nix.select(SCOUT, 1)


@pytest.mark.parametrize("path", ["", "/nix", "/nix/store", "/etc/passwd", "/nix/store/../../etc/passwd"])
async def test_what_is_no_store_path_does_not_exist(world: World, path: str) -> None:
    assert await world.nix.exists(path) is False
