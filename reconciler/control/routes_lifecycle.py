"""Routes of the operator's acts on an agent as a whole: holds, rollback, kept state, attachments."""

from __future__ import annotations

from reconciler.control import models as api
from reconciler.control.call import Route
from reconciler.model.states import UserRole

OPERATOR = UserRole.OPERATOR

LIFECYCLE_ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/holds", "All holds.", api.HoldList, lambda c: c.services.lifecycle.holds()),
    Route(
        "POST",
        "/v1/hold",
        "Freeze the whole hive.",
        api.HoldList,
        lambda c: c.services.lifecycle.hold(c.actor, "*", c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
    Route(
        "POST",
        "/v1/release",
        "Take the hive's hold away.",
        api.HoldList,
        lambda c: c.services.lifecycle.release(c.actor, "*", c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/hold",
        "Freeze it: nothing of it runs until it is released.",
        api.HoldList,
        lambda c: c.services.lifecycle.hold(c.actor, c.agent, c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/release",
        "Let it go on where it was.",
        api.HoldList,
        lambda c: c.services.lifecycle.release(c.actor, c.agent, c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/rollback",
        "Run an earlier generation again, under a new number.",
        api.Proposal,
        lambda c: c.services.lifecycle.rollback(c.actor, c.agent, c.body(api.Rollback)),
        OPERATOR,
        api.Rollback,
    ),
    Route(
        "GET",
        "/v1/kept",
        "What is kept of destroyed agents.",
        api.KeptList,
        lambda c: c.services.lifecycle.kept(),
    ),
    Route(
        "POST",
        "/v1/agents/{name}/revive",
        "Let a destroyed agent run again.",
        api.Agent,
        lambda c: c.services.lifecycle.revive(c.actor, c.agent, c.body(api.Act)),
        OPERATOR,
        api.Act,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/purge",
        "Remove for good what was kept of it.",
        api.Done,
        lambda c: c.services.lifecycle.purge(c.actor, c.agent, c.body(api.Purge)),
        OPERATOR,
        api.Purge,
    ),
    Route(
        "GET",
        "/v1/agents/{name}/attachments",
        "Who is inside its container.",
        api.AttachmentList,
        lambda c: c.services.lifecycle.attached(c.agent),
    ),
    Route(
        "POST",
        "/v1/agents/{name}/attachments",
        "Somebody goes in; must be renewed each minute.",
        api.Attachment,
        lambda c: c.services.lifecycle.attach(c.actor, c.agent),
        OPERATOR,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/attachments/{attachment}/renew",
        "They are still there.",
        api.Attachment,
        lambda c: c.services.lifecycle.renew(c.actor, c.agent, c.attachment),
        OPERATOR,
    ),
    Route(
        "POST",
        "/v1/agents/{name}/attachments/{attachment}/end",
        "They left.",
        api.Done,
        lambda c: c.services.lifecycle.detach(c.actor, c.agent, c.attachment),
        OPERATOR,
    ),
)
