"""The status of a unit's container, made of what systemd tells, the record and /proc. Reads, and changes
nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from reconciler.effects.containers import cgroups, proc, suspend
from reconciler.effects.containers.proc import ProcessRef
from reconciler.effects.containers.record import Order, Record
from reconciler.effects.containers.units import UnitFacts
from reconciler.effects.protocols import ContainerStatus

_TRUST_S = 60.0


@dataclass(frozen=True, slots=True)
class Body:
    """Of a start that lives: the first process of its container, the control groups of its unit, and the
    limits that the kernel has for them."""

    invocation: str
    main_pid: int
    leader: ProcessRef
    groups: tuple[str, ...]
    limits: tuple[str, ...]
    until: float


class Bodies:
    """What does not change while a start lives, so that a full read of many need not find it anew; the limits
    are read again each minute."""

    def __init__(self) -> None:
        self._known: dict[str, Body] = {}

    def of(self, unit: str, facts: UnitFacts) -> tuple[Body | None, str]:
        """The body, and the state of its first process (`X` if it is gone); None if there is none yet."""
        known = self._known.get(unit)
        if known is not None and (known.invocation, known.main_pid) == (facts.invocation, facts.main_pid):
            state = known.leader.state()
            if state != "X" and time.monotonic() < known.until:
                return known, state
        self._known.pop(unit, None)
        leader = leader_of(facts)
        if leader is None:
            return None, "X"
        ref, groups = proc.ref(leader), cgroups.of_unit(facts.main_pid, unit)
        found = Body(
            facts.invocation, facts.main_pid, ref, groups, cgroups.enforced(groups),
            time.monotonic() + _TRUST_S,
        )  # fmt: skip
        if facts.active == "active":  # until then its groups are being made
            self._known[unit] = found
        return found, ref.state()

    def forget(self, unit: str) -> None:
        """Find it anew at the next look."""
        self._known.pop(unit, None)


def leader_of(facts: UnitFacts) -> int | None:
    """The first process of the container: nspawn's only child."""
    return next(iter(proc.children(facts.main_pid)), None) if facts.main_pid else None


def members(facts: UnitFacts) -> Record:
    """What `suspend` needs to find the processes by itself, without a control group."""
    leader = leader_of(facts)
    return Record("", "", "", "", 0.0, leader=None if leader is None else proc.ref(leader))


def steady(listed: tuple[str, str] | None, found: Record | None, world: str) -> UnitFacts | None:
    """The facts of a unit that is active in systemd's list, and whose recorded process lives."""
    if listed != ("active", "running") or found is None or found.nspawn is None:
        return None
    if found.phase != "running" or found.world != world or not found.nspawn.is_alive():
        return None
    return UnitFacts("active", found.invocation, found.nspawn.pid, freezer="")


def living(
    unit: str,
    facts: UnitFacts,
    mine: Record | None,
    toplevel: str | None,
    differs: tuple[str, ...],
    bodies: Bodies,
) -> ContainerStatus:
    """Of a unit that lives. `mine` is the record of this start; without it nobody knows when it began."""
    body, state = bodies.of(unit, facts)
    if body is not None:
        groups, limits = body.groups, body.limits
    else:
        groups = cgroups.of_unit(facts.main_pid, unit) if facts.main_pid else ()
        limits = cgroups.enforced(groups)
    frozen = "frozen" in facts.freezer if facts.freezer else bool(cgroups.is_frozen(groups))
    stopped = state == "T"
    return ContainerStatus(
        phase="starting" if facts.active == "activating" else "running",
        toplevel=toplevel,
        invocation=facts.invocation or None,
        unit=unit,
        leader_pid=None if body is None else body.leader.pid,
        started_at=None if mine is None else mine.started_at,
        # RLIMIT_NPROC bounds the tasks of each uid where no control group does.
        limits_enforced=tuple(sorted({*limits, "tasks"})),
        stop_asked=mine is not None and mine.stop_asked,
        frozen=frozen or stopped,
        restless=stopped and not frozen and suspend.is_restless(members(facts)),
        drift=differs,
    )


def ended(
    unit: str, facts: UnitFacts | None, found: Record, world: str, differs: tuple[str, ...]
) -> ContainerStatus:
    """From the record; from systemd what the unit's helper could not write down (no disk, no Python)."""
    told = facts if found.phase != "exited" and facts is not None and facts.invocation else None
    return ContainerStatus(
        phase="exited",
        toplevel=found.toplevel,
        invocation=found.invocation,
        unit=unit,
        exit_code=found.exit_code if told is None else _exit_code(told),
        signal=found.signal if told is None else _signal(told),
        oom=found.oom or (told is not None and told.result == "oom-kill"),
        started_at=found.started_at,
        limits_enforced=found.limits_enforced,
        host_restarted=found.world != world,
        result=found.result if told is None else told.result,
        ended_at=found.ended_at if told is None else told.main_exited_at or None,
        stop_asked=found.stop_asked,
        drift=differs,
    )


def unrecorded(unit: str, facts: UnitFacts, order: Order | None) -> ContainerStatus:
    """A start that ended before the unit's helper could write anything down."""
    if order is None:
        return ContainerStatus(phase="absent")
    return ContainerStatus(
        phase="exited",
        toplevel=order.toplevel,
        invocation=facts.invocation,
        unit=unit,
        exit_code=_exit_code(facts),
        signal=_signal(facts),
        result=facts.result,
        ended_at=facts.main_exited_at or None,
    )


def _exit_code(facts: UnitFacts) -> int | None:
    return None if facts.killed or not facts.main_exited_at else facts.main_status


def _signal(facts: UnitFacts) -> int | None:
    return facts.main_status if facts.killed else None
