"""What the commands of the unit `hive-agent@.service` do:
`python -m reconciler.effects.containers.unit start|stop|ended DIRECTORY`.

`start` (ExecStart=) makes the private mounts, writes the record and becomes systemd-nspawn. `stop`
(ExecStop=) notes that somebody asked for the end. `ended` (ExecStopPost=) writes down how it ended: also when
hived is away, also when the machine goes down. Nothing here decides; systemd supervises. Standard library
only: about 20 ms each.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from reconciler.effects.containers import cgroups, mounts, proc, record

_HANDLER_S = 3.0  # how long a stop waits for the container's first process to listen to SIGTERM
_PAUSE_S = 0.01


def main(argv: list[str]) -> None:
    """Run one of the commands; the environment is what systemd gives to those of a unit."""
    command, directory = argv[1], Path(argv[2]).absolute()
    os.umask(0o077)
    match command:
        case "start":
            start(directory)
        case "stop":
            stop(directory)
        case "ended":
            ended(directory)
        case _:
            raise ValueError(f"unknown command {command!r}")


def start(directory: Path) -> NoReturn:
    """Become nspawn, unless another container of that name lives."""
    order = record.read_order(directory)
    old = record.read_record(directory)
    if old is not None and _is_alive(old):
        sys.stderr.write(f"another container of {order.name} lives\n")
        sys.exit(1)
    mounts.make_private(order.hardened)
    # The pid and its start time stay the same over exec, so the record is true before nspawn runs.
    record.write_record(directory, _record(order, nspawn=proc.ref(os.getpid()), phase="running"))
    environment = {**order.env, "NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"]}
    os.execvpe(order.argv[0], list(order.argv), environment)  # noqa: S606 - that is its point


def stop(directory: Path) -> None:
    """Note a stop that somebody asked for. systemd runs this also after the main process ended by itself
    with 0: then without MAINPID."""
    found = record.read_record(directory)
    if found is None or found.invocation != os.environ["INVOCATION_ID"] or "MAINPID" not in os.environ:
        return
    if found.nspawn is None or not found.nspawn.is_alive():
        return
    record.write_record(directory, found._replace(stop_asked=True))
    _await_handler(int(os.environ["MAINPID"]))


def ended(directory: Path) -> None:
    """Write down how it ended."""
    order = record.read_order(directory)
    found = record.read_record(directory)
    if found is None or found.invocation != os.environ["INVOCATION_ID"]:
        found = _record(order)  # it ended before it could write one
    groups = cgroups.of_unit("self", f"hive-agent@{order.name}.service")
    code, number = _status(os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", ""))
    oom = code != 0 and cgroups.oom_kills(groups) > 0
    result = os.environ.get("SERVICE_RESULT", "")
    record.write_record(
        directory,
        found._replace(
            phase="exited",
            exit_code=code,
            signal=number,
            oom=oom or result == "oom-kill",
            result="oom-kill" if oom else result,
            ended_at=time.time(),
            limits_enforced=tuple(sorted({*cgroups.enforced(groups), "tasks"})),
        ),
    )


def _record(
    order: record.Order, *, nspawn: proc.ProcessRef | None = None, phase: str = "starting"
) -> record.Record:
    return record.Record(
        name=order.name,
        invocation=os.environ["INVOCATION_ID"],
        toplevel=order.toplevel,
        world=proc.world_id(),
        started_at=time.time(),
        phase=phase,
        nspawn=nspawn,
    )


def _is_alive(old: record.Record) -> bool:
    """Whether a container of an earlier start lives: one of the shim's above all, as systemd ends its own."""
    if old.world != proc.world_id():
        return False
    return any(process is not None and process.is_alive() for process in (old.shim, old.nspawn, old.leader))


def _await_handler(nspawn: int) -> None:
    """PID 1 of a container loses signals that it has no handler for yet. SIGTERM comes right after this."""
    deadline = time.monotonic() + _HANDLER_S
    while time.monotonic() < deadline:
        leaders = proc.children(nspawn)
        if any(proc.minds(leader, signal.SIGTERM) for leader in leaders):
            return
        time.sleep(_PAUSE_S)


def _status(code: str, status: str) -> tuple[int | None, int | None]:
    """Exit code and signal of the main process, from systemd's EXIT_CODE and EXIT_STATUS."""
    if code == "exited" and status.isdigit():
        return int(status), None
    if code in {"killed", "dumped"}:
        number = getattr(signal, f"SIG{status}", None)
        return None, int(number) if number is not None else None
    return None, None


if __name__ == "__main__":
    main(sys.argv)
