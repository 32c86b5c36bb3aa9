"""Steps and outcomes: what a pass may do and how it may end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cost(StrEnum):
    """What a step costs the agent."""

    IN_PLACE = "in_place"
    TURN_END = "turn_end"
    RESTART = "restart"
    DESTROYS_STATE = "destroys_state"


class Kind(StrEnum):
    """All kinds of steps."""

    MAKE_DIRECTORIES = "make_directories"
    SERVE_SOCKETS = "serve_sockets"
    DROP_SOCKETS = "drop_sockets"
    BUILD = "build"
    REBUILD = "rebuild"
    ACTIVATE = "activate"
    TAKE_UP = "take_up"
    START = "start"
    STOP = "stop"
    CLEAR = "clear"
    REPORT_START = "report_start"
    REPORT_CRASH = "report_crash"
    REPORT_STOP = "report_stop"
    FREEZE = "freeze"
    THAW = "thaw"
    REFRESH_UNIT = "refresh_unit"
    PIN_GENERATION = "pin_generation"
    RESTORE_TAGS = "restore_tags"
    CONFIRM = "confirm"
    ROLL_BACK = "roll_back"
    ABANDON = "abandon"
    PURGE = "purge"


COSTS: dict[Kind, Cost] = {
    Kind.MAKE_DIRECTORIES: Cost.IN_PLACE,
    Kind.SERVE_SOCKETS: Cost.IN_PLACE,
    Kind.DROP_SOCKETS: Cost.IN_PLACE,
    Kind.BUILD: Cost.IN_PLACE,
    Kind.REBUILD: Cost.IN_PLACE,
    Kind.ACTIVATE: Cost.TURN_END,
    Kind.TAKE_UP: Cost.TURN_END,
    Kind.START: Cost.IN_PLACE,
    Kind.STOP: Cost.RESTART,
    Kind.CLEAR: Cost.IN_PLACE,
    Kind.REPORT_START: Cost.IN_PLACE,
    Kind.REPORT_CRASH: Cost.IN_PLACE,
    Kind.REPORT_STOP: Cost.IN_PLACE,
    Kind.FREEZE: Cost.IN_PLACE,
    Kind.THAW: Cost.IN_PLACE,
    Kind.REFRESH_UNIT: Cost.IN_PLACE,
    Kind.PIN_GENERATION: Cost.IN_PLACE,
    Kind.RESTORE_TAGS: Cost.IN_PLACE,
    Kind.CONFIRM: Cost.IN_PLACE,
    Kind.ROLL_BACK: Cost.RESTART,
    Kind.ABANDON: Cost.IN_PLACE,
    Kind.PURGE: Cost.DESTROYS_STATE,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, with the reason that `hive plan` and `hive why` show. `toplevel` is what `start`
    starts."""

    kind: Kind
    reason: str
    toplevel: str | None = None

    @property
    def cost(self) -> Cost:
        """What it costs the agent."""
        return COSTS[self.kind]


@dataclass(frozen=True, slots=True)
class Settled:
    """Desired equals actual."""


@dataclass(frozen=True, slots=True)
class Again:
    """Look again after `after_s` seconds, sooner if a hint comes. `turn_end` as in `Waiting`."""

    after_s: float
    turn_end: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to do until `on` happens (a hint will come): approval, build, the end of a turn, the operator.

    `turn_end`: the agent is to get no further turn meanwhile, else a busy one would never come to rest.
    """

    on: str
    turn_end: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The pass could not do its step; temporary ones are tried again with back-off."""

    error: str
    temporary: bool


Outcome = Settled | Again | Waiting | Failed


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order and, when there are none, why the agent rests as it is."""

    steps: tuple[Step, ...]
    outcome: Outcome
