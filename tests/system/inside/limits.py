"""Run in the virtual machine by `test_limits.py`: containers of the systemd driver that outgrow their limits.

Prints one JSON object: what the driver and the kernel say about each of them. Judges nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from reconciler.effects.containers import cgroups, systemd, unitfile
from reconciler.effects.protocols import ContainerStatus
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from tests.integration import containers_kit as kit

# PID 1 of the containers. It eats memory, lets a child eat it, or forks until it is refused.
_PAYLOAD = """
import errno, os, signal, sys, time
def eat():
    kept = []
    while True:
        kept.append(bytearray(os.urandom(4096) * 256))
mode = open("/config/mode").read().strip()
print("begins", mode, flush=True)
if mode == "eat":
    eat()
if mode == "child-eats":
    child = os.fork()
    if not child:
        eat()
    _, status = os.waitpid(child, 0)
    print("child ended by", os.waitstatus_to_exitcode(status), flush=True)
if mode == "fork":
    made = 0
    try:
        while made < 200:
            if not os.fork():
                time.sleep(600)
            made += 1
    except OSError as error:
        print("refused after", made, errno.errorcode[error.errno], flush=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("stays", flush=True)
while True:
    signal.pause()
"""
_LIMITS = Limits(memoryMax="64M", tasksMax=32)
_DEADLINE_S = 300.0  # an emulated machine beside seven other lanes


async def _tell(yard: kit.Yard, mode: str) -> dict[str, Any]:
    """Start a container, and tell of it when it has ended or says that it stays."""
    driver, name = yard.systemd(), AgentName(mode)
    await driver.start(await yard.spec(mode, mode=mode, limits=_LIMITS))
    lines: list[str] = []
    status = ContainerStatus(phase="absent")
    groups: tuple[str, ...] = ()
    async with asyncio.timeout(_DEADLINE_S):
        while status.phase != "exited" and "stays" not in lines:
            status = await driver.status(name)
            if status.leader_pid is not None:
                groups = cgroups.of_unit(status.leader_pid, f"hive-agent@{mode}.service") or groups
            lines = [str(line) for line in await driver.logs(name, 20)]
            await asyncio.sleep(1.0)  # each look is a program, and programs are slow there
    kernel = {
        key: text
        for group in groups
        for key in ("memory.max", "memory.events", "pids.max", "pids.current")
        if (text := _read(Path(group, key)))
    }
    return {"status": dataclasses.asdict(status), "lines": lines, "kernel": kernel}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


async def _main() -> None:
    with tempfile.TemporaryDirectory(dir="/bed/tmp") as place:
        yard = kit.Yard.make(Path(place) / "yard", "systemd", harness=_PAYLOAD)
        try:
            told = {mode: await _tell(yard, mode) for mode in ("eat", "child-eats", "fork")}
        finally:
            await yard.clean()
    print(json.dumps(told))


if __name__ == "__main__":
    # The processor is emulated, and slower still on a busy machine.
    unitfile.START_S = 120
    systemd._START_S = 130.0
    asyncio.run(_main())
