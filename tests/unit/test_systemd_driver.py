"""What the systemd driver asks of systemd, and what it makes of odd answers."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.effects.containers import drift, proc, record, systemd, unitfile, units
from reconciler.effects.containers.systemd import SystemdContainers
from reconciler.effects.protocols import ContainerSpec
from reconciler.errors import PermanentError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from tests.fakes.bus import FakeBus

pytestmark = pytest.mark.asyncio
PROBE = AgentName("probe")
UNIT = unitfile.unit_name(PROBE)


@dataclass(slots=True)
class Place:
    bus: FakeBus
    driver: SystemdContainers
    config: Config
    template: Path

    def spec(self, name: AgentName = PROBE) -> ContainerSpec:
        state = Path(self.config.state_dir)
        return ContainerSpec(
            name, "/nix/store/root", 1 << 20, state / "agents" / name, state, False, Limits()
        )

    def running(self, name: AgentName = PROBE, invocation: str = "a" * 32) -> None:
        """A container with this process in nspawn's place."""
        directory = Path(self.config.state_dir) / "containers" / name
        directory.mkdir(parents=True)
        command = (1 << 32, 200, 512)  # the default limits
        order = record.Order(name, "", "/nix/store/root", (), {}, (), *command, 20.0)
        record.write_order(directory, order)
        me, world = proc.ref(os.getpid()), proc.world_id()
        record.write_record(
            directory,
            record.Record(name, invocation, "/nix/store/root", world, time.time(), "running", nspawn=me),
        )
        limits = {key: typed.value for key, typed in drift.properties(order).items()}
        self.bus.load(
            unitfile.unit_name(name),
            ActiveState="active",
            InvocationID=bytes.fromhex(invocation),
            MainPID=me.pid,
            **limits,
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    config = Config(state_dir=str(tmp_path / "state"))
    template = tmp_path / unitfile.TEMPLATE
    template.write_text(unitfile.text(config))
    monkeypatch.setattr(drift, "_FILE", template)
    monkeypatch.setattr(drift, "_ADMIN", tmp_path)
    monkeypatch.setattr(drift, "_CONTROL", tmp_path / "control")
    monkeypatch.setattr(units, "_LOOK_S", 0.01)
    bus = FakeBus()
    (tmp_path / "state").mkdir()
    return Place(bus, SystemdContainers(config, bus), config, template)


async def test_a_unit_that_is_not_loaded_is_only_asked_for(place: Place) -> None:
    assert (await place.driver.status(PROBE)).phase == "absent"
    assert list(await place.driver.logs(PROBE, 5)) == []
    await place.driver.stop(PROBE)
    await place.driver.thaw(PROBE)
    await place.driver.clear(PROBE)
    assert set(place.bus.asked) == {"GetUnit"}


async def test_a_start_and_a_stop_need_no_signal(place: Place) -> None:
    place.bus.on_start = lambda unit: unit.update(ActiveState="active", InvocationID=bytes(16))
    status = await place.driver.start(place.spec())
    assert (status.phase, status.toplevel, status.drift) == ("running", "/nix/store/root", ())
    await place.driver.stop(PROBE)
    assert "KillUnit" not in place.bus.asked


async def test_a_host_without_the_unit_is_told_how_to_get_it(place: Place) -> None:
    place.bus.refuse["SetUnitProperties"] = PermanentError("no such unit", code="no-such-unit")
    with pytest.raises(PermanentError) as caught:
        await place.driver.start(place.spec())
    assert (caught.value.code, caught.value.hint) == ("no-such-unit", "run `hive install-units`")


async def test_a_missing_or_old_unit_file_is_written_before_a_start(place: Place) -> None:
    for text in (None, unitfile.text(place.config, python="/old/python")):
        place.template.unlink()
        if text is not None:
            place.template.write_text(text)
        place.bus.asked.clear()
        await place.driver.start(place.spec())
        assert place.template.read_text() == unitfile.text(place.config)
        assert place.bus.asked.index("Reload") < place.bus.asked.index("StartUnit")
        await place.driver.stop(PROBE)


async def test_a_unit_file_that_is_managed_elsewhere_is_left_alone(place: Place) -> None:
    elsewhere = place.template.with_name("store")
    elsewhere.write_text(unitfile.text(place.config, python="/old/python"))
    place.template.unlink()
    place.template.symlink_to(elsewhere)
    status = await place.driver.start(place.spec())
    assert (status.phase, status.drift) == ("running", ())
    await place.driver.refresh(PROBE)
    assert place.template.is_symlink()


async def test_a_container_that_does_not_end_is_killed_and_told_of_if_that_does_not_help(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_CLEANUP_S", 0.05)
    place.running()
    place.bus.on_stop = lambda unit: unit.update(ActiveState="deactivating", Job=[7, "/job/7"])
    place.bus.on_kill = lambda unit: None
    with pytest.raises(TemporaryError) as caught:
        await place.driver.stop(PROBE, timeout_s=0.05)
    assert caught.value.code == "still-running"
    place.bus.on_kill = lambda unit: unit.update(ActiveState="failed", Job=[0, "/"])
    await place.driver.stop(PROBE, timeout_s=0.05)
    assert (await place.driver.status(PROBE)).phase == "exited"


async def test_without_systemd_nothing_is_made_up(place: Place) -> None:
    place.running()
    place.bus.refuse["GetUnit"] = TemporaryError("cannot reach the message bus", code="bus-away")
    for asked in (place.driver.status(PROBE), place.driver.stop(PROBE), place.driver.clear(PROBE)):
        with pytest.raises(TemporaryError) as caught:
            await asked
        assert caught.value.code == "bus-away"
    assert (Path(place.config.state_dir) / "containers" / PROBE / record.RECORD).exists()


async def test_a_full_read_of_many_that_run_asks_once_when_their_files_are_as_before(place: Place) -> None:
    names = [AgentName(f"agent-{number}") for number in range(50)]
    for number, name in enumerate(names):
        place.running(name, f"{number:032x}")
    first = await place.driver.statuses()
    assert [first[name].invocation for name in names] == [f"{number:032x}" for number in range(50)]
    assert {status.phase for status in first.values()} == {"running"}
    place.bus.asked.clear()
    assert await place.driver.statuses() == first
    assert place.bus.asked == ["ListUnitsByPatterns"]
    assert await place.driver.status(names[7]) == first[names[7]]


async def test_a_changed_limit_is_drift_when_its_file_appears_and_is_set_back(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.running()
    monkeypatch.setattr(drift, "_FOLDERS", (str(tmp_path / "control"),))
    assert (await place.driver.status(PROBE)).drift == ()
    (tmp_path / "control" / f"{UNIT}.d").mkdir(parents=True)
    place.bus.units[UNIT].update(MemoryMax=1 << 20)
    assert (await place.driver.status(PROBE)).drift == (f"memory_max is {1 << 20} instead of {1 << 32}",)
    await place.driver.refresh(PROBE)
    assert (await place.driver.status(PROBE)).drift == ()
    assert Counter(place.bus.asked)["Reload"] == 0
