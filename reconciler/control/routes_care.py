"""Routes that keep a hive: its backup, its health."""

from __future__ import annotations

from reconciler.control import models as api
from reconciler.control.auth import Door
from reconciler.control.call import Call, Route
from reconciler.control.edge import Param
from reconciler.model.states import UserRole

OPERATOR = UserRole.OPERATOR
SLOW_S = 300.0  # reads every file of the hive; `hive` waits as long
_STATE_TOO = Param("state", "integer", "0: leave the agents' own trees out.", default=1, high=1)


async def _none(call: Call) -> api.Done:
    raise AssertionError(call)  # the server answers special routes itself


CARE_ROUTES = (
    Route(
        "GET",
        "/v1/backup/plan",
        "What a backup would hold now, and how large.",
        api.BackupPlan,
        lambda c: c.services.backups.plan(),
        OPERATOR,
        doors=frozenset({Door.CONTROL}),
        deadline_s=SLOW_S,
    ),
    Route(
        "GET",
        "/v1/backup",
        "The hive as one tar, of this instant; ends with its seal, or with the reason why not.",
        None,
        _none,
        OPERATOR,
        query=(_STATE_TOO,),
        doors=frozenset({Door.CONTROL}),
        special="archive",
    ),
    Route(
        "GET",
        "/v1/doctor",
        "Check everything that must be true of the hive.",
        api.Health,
        lambda c: c.services.doctor.examine(c.actor, repair=False),
        OPERATOR,
        doors=frozenset({Door.CONTROL}),
        deadline_s=SLOW_S,
    ),
    Route(
        "POST",
        "/v1/doctor/repair",
        "Make anew what is only a picture of the rows (tags, main, deploy log, roots), then check.",
        api.Health,
        lambda c: c.services.doctor.examine(c.actor, repair=not c.body(api.Write).dry_run),
        OPERATOR,
        api.Write,
        doors=frozenset({Door.CONTROL}),
        deadline_s=SLOW_S,
    ),
)
