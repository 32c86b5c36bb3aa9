"""Generations are Nix profiles: Nix's own tools read them, its collector respects them, damage is seen."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.effects.nix import RealNix
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec
from tests.integration.nix_kit import PrivateNix, needs_nix, private_nix

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_nix]
SCOUT = AgentName("scout")


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found


@pytest.fixture
def profile(private: PrivateNix) -> Iterator[Path]:
    """The directory of scout's profile."""
    place = Path(private.config().state_dir) / "profiles" / SCOUT
    yield place
    shutil.rmtree(place.parent, ignore_errors=True)


async def ignore(line: str) -> None:
    """A sink."""


async def build(nix: RealNix) -> str:
    spec = {**Spec().model_dump(mode="json"), "models": [f"m-{uuid.uuid4().hex}"]}
    return await nix.build(SCOUT, Path("/nowhere"), spec, ignore)


async def test_nix_env_lists_the_generations_with_our_numbers(private: PrivateNix, profile: Path) -> None:
    nix = private.effect()
    for number in (1, 2, 12):
        await nix.set_generation(SCOUT, number, await build(nix))
    await nix.select(SCOUT, 2)
    listed = private.run("nix-env", "-p", str(profile / "system"), "--list-generations").splitlines()
    assert [line.split()[0] for line in listed] == ["1", "2", "12"]
    assert [line.split()[0] for line in listed if line.rstrip().endswith("(current)")] == ["2"]
    assert sorted(path.name for path in profile.glob("system*link")) == [
        "system-1-link", "system-12-link", "system-2-link",
    ]  # fmt: skip


async def test_what_nix_env_selects_is_seen_and_can_be_selected_back(
    private: PrivateNix, profile: Path
) -> None:
    nix = private.effect()
    for number in (1, 2):
        await nix.set_generation(SCOUT, number, await build(nix))
    await nix.select(SCOUT, 2)
    private.run("nix-env", "-p", str(profile / "system"), "--switch-generation", "1")
    assert await nix.selected(SCOUT) == 1
    await nix.select(SCOUT, 2)
    assert await nix.selected(SCOUT) == 2
    assert (profile / "system").readlink() == Path("system-2-link")


async def test_a_collection_keeps_what_is_pinned_and_takes_what_was_dropped(
    private: PrivateNix, profile: Path
) -> None:
    nix = private.effect()
    one, two = await build(nix), ""
    await nix.set_generation(SCOUT, 1, one)
    two = await build(nix)
    await nix.set_generation(SCOUT, 2, two)
    await nix.select(SCOUT, 2)
    private.run("nix-store", "--gc")
    assert (Path(one).is_dir(), Path(two).is_dir()) == (True, True)
    roots = private.run("nix-store", "--gc", "--print-roots")
    held = {str(profile / f"system-{n}-link") for n in (1, 2)}
    assert held <= set(re.findall(r"^(\S+) ->", roots, re.MULTILINE))
    await nix.drop_generations(SCOUT)
    private.run("nix-store", "--gc")
    assert (Path(one).is_dir(), Path(two).is_dir(), await nix.exists(one)) == (False, False, False)


def unlink(profile: Path, private: PrivateNix) -> None:
    (profile / "system-1-link").unlink()


def move(profile: Path, private: PrivateNix) -> None:
    (profile / "system-1-link").rename(profile / "system-7-link")


def a_file(profile: Path, private: PrivateNix) -> None:
    unlink(profile, private)
    (profile / "system-1-link").write_text("damaged")


def a_directory(profile: Path, private: PrivateNix) -> None:
    unlink(profile, private)
    (profile / "system-1-link").mkdir()


def elsewhere(profile: Path, private: PrivateNix) -> None:
    unlink(profile, private)
    (profile / "system-1-link").symlink_to("/etc")


def dangling(profile: Path, private: PrivateNix) -> None:
    unlink(profile, private)
    (profile / "system-1-link").symlink_to(private.path / "store" / ("0" * 32 + "-hive-scout"))


def unregistered(profile: Path, private: PrivateNix) -> None:
    for root in (private.path / "var/gcroots/auto").iterdir():
        if root.readlink() == profile / "system-1-link":
            root.unlink()


@pytest.mark.parametrize("damage", [unlink, move, a_file, a_directory, elsewhere, dangling, unregistered])
async def test_a_damaged_generation_is_not_listed_and_pinning_it_again_repairs_it(
    private: PrivateNix, profile: Path, damage: Callable[[Path, PrivateNix], None]
) -> None:
    nix = private.effect()
    one, two = await build(nix), await build(nix)
    await nix.set_generation(SCOUT, 1, one)
    await nix.set_generation(SCOUT, 2, two)
    await nix.select(SCOUT, 1)
    damage(profile, private)
    assert await nix.generations(SCOUT) == {2: two}
    assert await nix.selected(SCOUT) is None
    await nix.set_generation(SCOUT, 1, one)
    await nix.select(SCOUT, 1)
    assert (await nix.generations(SCOUT), await nix.selected(SCOUT)) == ({1: one, 2: two}, 1)
    private.run("nix-store", "--gc")
    assert Path(one).is_dir()


@pytest.mark.parametrize(
    "wrong", ["/etc", "system-9-link", "../scout/system-1-link", "system", "file", "dir"]
)
async def test_a_profile_that_points_elsewhere_selects_nothing_until_it_is_repaired(
    private: PrivateNix, profile: Path, wrong: str
) -> None:
    nix = private.effect()
    await nix.set_generation(SCOUT, 1, await build(nix))
    pointer = profile / "system"
    match wrong:
        case "file":
            pointer.write_text("damaged")
        case "dir":
            (pointer / "deep").mkdir(parents=True)
        case _:
            pointer.symlink_to(wrong)
    assert await nix.selected(SCOUT) is None
    await nix.select(SCOUT, 1)
    assert await nix.selected(SCOUT) == 1


async def test_a_half_made_selection_does_not_stand_in_the_way(private: PrivateNix, profile: Path) -> None:
    nix = private.effect()
    await nix.set_generation(SCOUT, 1, await build(nix))
    (profile / ".selecting").symlink_to("system-1-link")  # killed between making and renaming
    assert await nix.selected(SCOUT) is None
    await nix.select(SCOUT, 1)
    assert (await nix.selected(SCOUT), (profile / ".selecting").is_symlink()) == (1, False)


async def old_layout(private: PrivateNix, profile: Path, paths: dict[int, str]) -> None:
    profile.mkdir(parents=True, exist_ok=True)
    for number, path in paths.items():
        private.run("nix-store", "--add-root", str(profile / str(number)), "--indirect", "--realise", path)


async def test_links_of_the_old_layout_are_taken_over_without_losing_a_root(
    private: PrivateNix, profile: Path
) -> None:
    maker = private.effect()
    paths = {number: await build(maker) for number in (1, 2, 30)}
    await old_layout(private, profile, paths)
    (profile / "4").symlink_to(private.path / "store" / ("0" * 32 + "-hive-scout"))  # its path is long gone
    nix = private.effect()
    assert await nix.generations(SCOUT) == paths
    assert not [path.name for path in profile.iterdir() if path.name.isdigit()]
    private.run("nix-store", "--gc")
    assert all(Path(path).is_dir() for path in paths.values())


@dataclass
class Dying:
    """Unlinks `left` times, then dies before the next."""

    left: int
    unlink: Callable[..., None] = os.unlink

    def __call__(self, path: str, *args: object, **more: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise SystemExit
        self.unlink(path)


@pytest.mark.parametrize("cut", range(2 * 3 + 1))  # each link: make way for the new, remove the old
async def test_a_takeover_that_was_cut_short_is_finished_by_the_next_hived(
    private: PrivateNix, profile: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    maker = private.effect()
    paths = {number: await build(maker) for number in (1, 2, 3)}
    await old_layout(private, profile, paths)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", Dying(cut))
        with contextlib.nullcontext() if cut == 2 * len(paths) else pytest.raises(SystemExit):
            await private.effect().generations(SCOUT)
    held = private.run("nix-store", "--gc", "--print-roots")
    assert all(path in held for path in paths.values())
    assert await private.effect().generations(SCOUT) == paths
