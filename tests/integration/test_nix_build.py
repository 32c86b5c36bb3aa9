"""What is built: a root that a container starts from, from the validated spec alone, held by roots of
the store."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.effects.nix import RealNix
from reconciler.errors import CommandError
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec
from tests.integration.containers_kit import Yard, needs_containers
from tests.integration.nix_kit import BUILD_USER, PrivateNix, needs_nix, private_nix

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_nix]
SCOUT = AgentName("scout")
NOWHERE = Path("/nowhere")


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found


def spec(**changes: object) -> dict[str, object]:
    return {**Spec().model_dump(mode="json"), **changes}


async def ignore(line: str) -> None:
    """A sink."""


async def test_the_root_holds_the_spec_and_every_mount_point(private: PrivateNix) -> None:
    root = Path(await private.effect().build(SCOUT, NOWHERE, spec(model="opus"), ignore))
    assert json.loads((root / "etc/hyperhive/spec.json").read_text())["model"] == "opus"
    for place in ("usr", "proc", "sys", "dev", "run", "tmp", "var", "root", "etc/alternatives", "state",
                  "home/agent", "config", "agents", "opt/hive/lib/harness", "opt/hive/venv"):  # fmt: skip
        assert (root / place).is_dir(), place
    assert [str((root / link).readlink()) for link in ("bin", "lib64")] == ["usr/bin", "usr/lib64"]
    assert "agent:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert (root / "etc/machine-id").read_text() == (root / "etc/resolv.conf").read_text() == ""


async def test_a_spec_is_only_ever_a_value(private: PrivateNix) -> None:
    hostile = {"allow": ['x"; rm -rf $out; ${builtins.abort "no"} \'\' \\'], "deny": []}
    root = Path(await private.effect().build(SCOUT, NOWHERE, spec(bash=hostile), ignore))
    assert json.loads((root / "etc/hyperhive/spec.json").read_text())["bash"] == hostile


async def test_the_log_is_streamed_and_a_second_build_does_nothing(private: PrivateNix) -> None:
    lines: list[str] = []

    async def sink(line: str) -> None:
        lines.append(line)

    wanted = spec(models=[f"m-{uuid.uuid4().hex[:8]}"])
    await private.effect().build(SCOUT, NOWHERE, wanted, sink)
    assert any("building" in line for line in lines)
    lines.clear()
    await private.effect().build(SCOUT, NOWHERE, wanted, sink)
    assert not any("building" in line for line in lines)


async def test_the_client_is_the_build_user_and_leaves_nothing_behind(private: PrivateNix) -> None:
    await private.effect().build(SCOUT, NOWHERE, spec(models=[f"m-{uuid.uuid4().hex[:8]}"]), ignore)
    assert list((private.path / "state/clients").iterdir()) == []
    log = (private.path / "daemon.log").read_text()
    assert f"user {BUILD_USER}" in log


async def test_a_collection_takes_neither_a_fresh_build_nor_a_generation(private: PrivateNix) -> None:
    effect = private.effect()
    one = await effect.build(SCOUT, NOWHERE, spec(models=["one"]), ignore)
    private.run("nix-store", "--gc")
    assert Path(one).is_dir()
    await effect.set_generation(SCOUT, 1, one)
    two = await effect.build(SCOUT, NOWHERE, spec(models=["two"]), ignore)
    await effect.set_generation(SCOUT, 2, two)
    private.run("nix-store", "--gc")
    assert (Path(one).is_dir(), Path(two).is_dir()) == (True, True)
    await effect.drop_generations(SCOUT)
    private.run("nix-store", "--gc")
    assert (Path(one).is_dir(), Path(two).is_dir()) == (False, False)


async def test_a_root_that_the_store_has_lost_is_built_again_to_the_same_path_wherever_the_modules_lie(
    private: PrivateNix,
) -> None:
    nix = private.effect()
    wanted = spec(models=[f"m-{uuid.uuid4().hex[:8]}"])
    path = await nix.build(SCOUT, NOWHERE, wanted, ignore)
    await nix.set_generation(SCOUT, 1, path)
    await nix.drop_generations(SCOUT)
    private.run("nix-store", "--delete", path)
    assert not await nix.exists(path)
    elsewhere = private.path / "elsewhere" / uuid.uuid4().hex
    shutil.copytree(private.path / "modules", elsewhere)
    moved = RealNix(private.config().model_copy(update={"modules": str(elsewhere)}), private.environment)
    assert await moved.build(SCOUT, NOWHERE, wanted, ignore) == path
    assert await nix.exists(path)


async def test_a_failing_build_is_an_error_with_its_log(private: PrivateNix) -> None:
    effect, lines = private.effect(), list[str]()

    async def sink(line: str) -> None:
        lines.append(line)

    broken = private.path / "broken"
    (broken / "bare").mkdir(parents=True, exist_ok=True)
    (broken / "bare/build.nix").write_text(
        '{ name, specFile }: derivation { name = "hive-${name}"; system = builtins.currentSystem; '
        'builder = "/bin/sh"; args = [ "-c" "echo the disk is on fire; exit 3" ]; }'
    )
    effect._modules = broken
    with pytest.raises(CommandError) as failed:
        await effect.build(SCOUT, NOWHERE, spec(), sink)
    assert "exit code 3" in failed.value.record.stderr_tail
    assert any("on fire" in line for line in lines)


async def test_a_build_that_says_that_the_disk_is_full_is_not_believed_where_there_is_room(
    private: PrivateNix,
) -> None:
    """Else it would be tried again without end."""
    effect = private.effect()
    liar = private.path / "liar"
    (liar / "bare").mkdir(parents=True, exist_ok=True)
    (liar / "bare/build.nix").write_text(
        '{ name, specFile }: derivation { name = "hive-${name}"; system = builtins.currentSystem; '
        'builder = "/bin/sh"; args = [ "-c" "echo cp: x: No space left on device >&2; exit 1" ]; }'
    )
    effect._modules = liar
    with pytest.raises(CommandError) as failed:
        await effect.build(SCOUT, NOWHERE, spec(), ignore)
    assert "No space left on device" in failed.value.record.stderr_tail


async def test_a_build_past_its_deadline_is_an_error_and_its_builder_is_gone(private: PrivateNix) -> None:
    effect = private.effect(build_s=1.0)
    slow = private.path / "slow"
    (slow / "bare").mkdir(parents=True, exist_ok=True)
    (slow / "bare/build.nix").write_text(
        '{ name, specFile }: derivation { name = "hive-${name}"; system = builtins.currentSystem; '
        'builder = "/bin/sh"; args = [ "-c" "while :; do :; done" ]; }'
    )
    effect._modules = slow
    with pytest.raises(CommandError) as failed:
        await effect.build(SCOUT, NOWHERE, spec(), ignore)
    assert failed.value.code == "command-timeout"
    async with asyncio.timeout(10):
        while "while :; do :; done" in "".join(  # noqa: ASYNC110 - the daemon notices the client's end by itself
            path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
        ):
            await asyncio.sleep(0.05)


@needs_containers
async def test_a_container_starts_from_the_built_root_and_does_not_change_it(
    private: PrivateNix, tmp_path: Path
) -> None:
    root = await private.effect().build(SCOUT, NOWHERE, spec(), ignore)
    yard = Yard.make(tmp_path)
    driver = yard.driver()
    wanted = dataclasses.replace(await yard.spec(manager=True), toplevel=root)
    for _ in range(2):
        assert (await driver.start(wanted)).phase == "running"
        await driver.stop(wanted.name)
        assert (await driver.status(wanted.name)).exit_code == 0
    private.run("nix-store", "--verify-path", root)
