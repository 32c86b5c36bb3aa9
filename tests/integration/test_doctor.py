"""`hive doctor` over a real hive: invariants are really broken, seen, and mended where it can."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.projection import project_meta
from reconciler.approvals.tags import ProposalTags
from reconciler.config import Config, Gateway, Harness
from reconciler.control import models as api
from reconciler.doctor.disk import disk_facts, offline_facts
from reconciler.doctor.gather import Gathering, deployed
from reconciler.doctor.service import DoctorService, told
from reconciler.effects.protocols import ContainerSpec
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from reconciler.store import health
from tests.fakes.containers import FakeContainers
from tests.fakes.faults import Faults
from tests.fakes.nix import FakeNix
from tests.support import hives
from tests.support.hives import BASES, GONE, OPERATOR, SCOUT, SMITH, Hive
from tests.support.needs import needs_root

pytestmark = [pytest.mark.asyncio, needs_root]
ROOT = Path(__file__).parents[2]


@dataclass
class Link:
    connected: bool = True
    problems: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass
class World:
    """A hive that is well, with fakes for Nix and containers."""

    hive: Hive
    config: Config
    nix: FakeNix
    containers: FakeContainers
    link: Link
    woken: list[str]
    doctor: DoctorService

    @property
    def state(self) -> Path:
        return self.hive.state

    async def look(self, *, repair: bool = False) -> dict[str, api.Check]:
        found = await self.doctor.examine(OPERATOR, repair=repair)
        return {item.id: item for item in found.items}

    async def run(self, sql: str, *values: str | int) -> None:
        async with self.hive.store.state.transaction() as tx:
            await tx.run(sql, *values)


@pytest.fixture
def place() -> Iterator[Path]:
    with hives.a_place() as found:
        yield found


@pytest_asyncio.fixture
async def world(place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hive = await hives.a_hive(place)
    venv = place / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").touch()
    config = hive.config.model_copy(
        update={
            "ui_user": "nobody", "build_user": "nobody", "operator_group": "root",
            "harness": Harness(package=str(ROOT / "harness"), venv=str(venv)),
            "modules": str(ROOT / "modules"),
            "gateway": Gateway(upstream="unix:/run/model.sock"),
        }
    )  # fmt: skip
    (place / "config.json").write_text(config.model_dump_json())
    monkeypatch.setenv("HIVE_CONFIG", str(place / "config.json"))
    faults = Faults()
    nix, containers, link = FakeNix(faults), FakeContainers(faults), Link()
    woken: list[str] = []
    store, git = hive.store, hive.git
    gathering = Gathering(
        store=store, config=config, containers=containers, git=git, nix=nix, gateway=link
    )  # fmt: skip
    doctor = DoctorService(
        store=store, gathering=gathering, git=git, tags=ProposalTags(store, git), wake=woken.append
    )
    made = World(hive, config, nix, containers, link, woken, doctor)
    for row in await health.agents(store.state):
        nix.store.add(row["store_path"])
        await nix.set_generation(AgentName(row["name"]), 1, row["store_path"])
        await nix.select(AgentName(row["name"]), 1)
        if row["desired"] == "running":
            await project_meta(git, deployed(row))
    await made.run("INSERT INTO proposal_progress SELECT id, 'deployed', created_at FROM proposals")
    (hive.state / "staged/2.tar").unlink()
    yield made
    await hive.close()


async def test_of_a_hive_that_is_well_nothing_fails(world: World) -> None:
    found = await world.look()
    bad = {name: item.detail for name, item in found.items() if item.status == "fail"}
    assert bad == {}
    for name in ("tags", "deploy-log", "generations", "strays", "permissions", "audit-chain", "uid-ranges"):
        assert found[name].status == "ok", found[name].detail


async def test_a_missing_tag_is_seen_and_made_anew(world: World) -> None:
    hives.git(world.state / "repos/smith.git", "tag", "-d", "deployed/1")
    found = (await world.look())["tags"]
    assert found.status == "fail"
    assert "smith: deployed/1" in found.detail
    assert "--repair" in found.remedy
    assert (await world.look(repair=True))["tags"].status == "ok"
    assert world.woken == ["gone", "scout", "smith"]


async def test_a_tag_of_no_row_is_seen(world: World) -> None:
    main = await world.hive.git.main(SMITH)
    assert main is not None
    await world.hive.git.pin(SMITH, "approved/77", main)
    found = (await world.look())["tags"]
    assert (found.status, "smith: approved/77" in found.detail) == ("warn", True)


async def test_a_deploy_log_that_says_something_else_is_seen_and_written_anew(world: World) -> None:
    await project_meta(world.hive.git, {"agent": "smith", "generation": 9})
    found = (await world.look())["deploy-log"]
    assert found.status == "fail"
    assert "smith: it says generation 9, not 1" in found.detail
    assert (await world.look(repair=True))["deploy-log"].status == "ok"


async def test_a_changed_decision_is_seen_with_its_row(world: World) -> None:
    await world.run("UPDATE audit SET actor = 'operator:mallory' WHERE id = 2")
    found = (await world.look())["audit-chain"]
    assert found.status == "fail"
    assert "row 2 of 3" in found.detail
    assert "backup" in found.remedy


async def test_a_removed_decision_is_seen(world: World) -> None:
    await world.run("DELETE FROM audit WHERE id = 2")
    assert "row 3" in (await world.look())["audit-chain"].detail


async def test_a_broken_reference_between_rows_is_seen(world: World) -> None:
    connection = world.hive.store.state._writer
    await connection.execute("PRAGMA foreign_keys = OFF")
    await world.run("UPDATE generations SET proposal_id = 999 WHERE agent = 'smith'")
    found = (await world.look())["databases"]
    assert found.status == "fail"
    assert "generations" in found.detail
    assert "restore" in found.remedy


async def test_an_effect_that_was_given_up_is_seen_and_tried_again(world: World) -> None:
    await world.run(
        "INSERT INTO outbox (kind, data, created_at, error) VALUES ('tag', '{}', 1, 'no such commit')"
    )
    assert "no such commit" in (await world.look())["outbox"].detail
    assert (await world.look(repair=True))["outbox"].status == "ok"


async def test_profiles_that_hold_something_else_are_seen(world: World) -> None:
    world.nix.pointers.clear()
    assert "points to None, not to 1" in (await world.look())["generations"].detail
    world.nix.store.clear()
    found = (await world.look())["generations"]
    assert "is not pinned" in found.detail
    assert "the store does not have" in found.detail


async def test_uids_that_clash_or_lie_outside_are_seen(world: World) -> None:
    narrow = world.config.model_copy(
        update={"uid_range": world.config.uid_range.model_copy(update={"end": 1_114_112})}
    )
    world.doctor._gathering._config = narrow
    found = (await world.look())["uid-ranges"]
    assert found.status == "warn"
    assert "scout" in found.detail
    await world.run("UPDATE agents SET uid_base = 65536 WHERE name = 'scout'")
    records = (await world.look())["uid-records"]
    assert records.status == "fail"
    assert f"made for {BASES[SCOUT]}" in records.detail


async def test_wrong_modes_and_owners_are_seen_with_what_is_enough(world: World) -> None:
    (world.state / "state.db").chmod(0o644)
    os.chown(world.state / "agents/smith/state", 0, 0)
    (world.state / "repos/smith.git").chmod(0o755)
    detail = (await world.look())["permissions"].detail
    assert "state.db has mode 0644, 0600 is enough" in detail
    assert f"agents/smith/state belongs to uid 0, not to {BASES[SMITH] + 1000}" in detail
    assert "smith.git has mode 0755" in detail


async def test_things_without_a_row_are_seen(world: World) -> None:
    state, run = world.state, Path(world.config.run_dir)
    for path in (
        state / "agents/ghost",
        state / "repos/ghost.git",
        run / "agents/ghost",
        state / "profiles/ghost",
    ):
        path.mkdir(parents=True)
    (state / "staged/99.tar").touch()
    spec = ContainerSpec(AgentName("ghost"), "/nix/store/x", 1, state, run, manager=False, limits=Limits())
    await world.containers.start(spec)
    detail = (await world.look())["strays"].detail
    for kind in ("container ghost", "repository", "directory", "sockets", "profile"):
        assert kind in detail
    assert (await world.look())["strays"].status == "warn"
    assert "and 1 more" in detail


async def test_kept_state_of_a_destroyed_agent_is_no_stray(world: World) -> None:
    assert (world.state / "agents" / GONE).is_dir()
    assert (await world.look())["strays"].status == "ok"


async def test_leftovers_are_seen_when_they_are_old_and_not_while_they_are_at_work(world: World) -> None:
    tree = world.state / "trees/build-smith-1"
    tree.mkdir(parents=True)
    assert (await world.look())["leftovers"].status == "ok"
    os.utime(tree, (time.time() - 7200, time.time() - 7200))
    found = (await world.look())["leftovers"]
    assert found.status == "warn"
    assert "build-smith-1: 2 h old" in found.detail


async def test_limits_that_are_not_enforced_and_a_gateway_that_is_away_are_seen(world: World) -> None:
    run = Path(world.config.run_dir)
    spec = ContainerSpec(SMITH, "/nix/store/x", BASES[SMITH], world.state, run, manager=True, limits=Limits())
    await world.containers.start(spec)
    world.link.connected = False
    found = await world.look()
    assert found["gateway"].status == "fail"
    enforced = (await world.containers.status(SMITH)).limits_enforced
    assert (found["limits"].status == "warn") == (set(enforced) != {"memory", "tasks", "cpu"})


async def test_rows_of_the_future_are_seen(world: World) -> None:
    await world.run("UPDATE audit SET at = ? WHERE id = 3", int((time.time() + 3600) * 1e6))
    assert "in the future" in (await world.look())["clock"].detail


def credential_check(world: World, path: Path) -> api.Check:
    gateway = world.config.gateway.model_copy(update={"credential_file": str(path)})
    facts = disk_facts(world.config.model_copy(update={"gateway": gateway}), ())
    return next(item for item in told(facts, offline=True).items if item.id == "credential")


async def test_a_credential_that_others_can_read_or_the_gateway_cannot_is_seen(
    world: World, place: Path
) -> None:
    key = place / "key"
    assert "No such file" in credential_check(world, key).detail
    key.write_text("sk-secret")
    key.chmod(0o604)
    found = credential_check(world, key)
    assert "can be read by everybody" in found.detail
    assert "sk-secret" not in found.detail
    key.chmod(0o400)
    assert "nobody cannot read it" in credential_check(world, key).detail
    shutil.chown(key, hives.GATEWAY)
    assert credential_check(world, key).status == "ok"
    key.write_text("")
    assert "empty" in credential_check(world, key).detail


async def test_a_configuration_that_cannot_work_is_seen_with_its_field(world: World) -> None:
    config = world.config.model_copy(
        update={
            "ui_user": "no-such-user", "modules": "/nowhere",
            "gateway": Gateway(upstream="https://api.example.org", allowed_models=["haiku", "gpt"]),
        }
    )  # fmt: skip
    facts = disk_facts(config, ())
    text = "; ".join(facts.config_faults)
    assert "ui_user: the user 'no-such-user'" in text
    assert "modules: /nowhere/bare/default.nix is not there" in text
    assert "'gpt' is no model" in text
    assert "needs a credential" in text
    assert any("changed since hived was started: " in note for note in facts.config_notes)


async def test_without_hived_the_disk_is_judged_and_the_rest_is_not_applicable(world: World) -> None:
    await world.hive.store.close()
    report = told(offline_facts(world.config), offline=True)
    found = {item.id: item for item in report.items}
    assert report.offline
    for name in ("databases", "audit-chain", "schemas", "permissions", "uid-ranges", "uid-records"):
        assert found[name].status == "ok", found[name].detail
    for name in ("gateway", "tags", "generations", "strays", "limits"):
        assert found[name].status == "not-applicable"


async def test_without_hived_a_damaged_database_is_seen(world: World) -> None:
    await world.hive.store.close()
    with (world.state / "state.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192)
    found = {item.id: item for item in told(offline_facts(world.config), offline=True).items}
    assert found["databases"].status == "fail"
    assert "state.db" in found["databases"].detail


async def test_a_repair_is_an_audit_row(world: World) -> None:
    await world.look(repair=True)
    row = await world.hive.store.state.one("SELECT actor, action FROM audit ORDER BY id DESC LIMIT 1")
    assert row is not None
    assert (row["actor"], row["action"]) == ("unix:root", "hive.repair")
    assert (await world.look())["audit-chain"].status == "ok"


async def test_the_answer_is_json_of_the_api(world: World) -> None:
    answer = await world.doctor.examine(OPERATOR, repair=False)
    assert api.Health.model_validate(json.loads(answer.model_dump_json())) == answer
    assert answer.ok + answer.warn + answer.fail <= len(answer.items)
