"""Routes of budgets."""

from __future__ import annotations

from reconciler.control import models as api
from reconciler.control.call import Route
from reconciler.model.states import UserRole

OPERATOR = UserRole.OPERATOR

BUDGET_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/budgets",
        "The budgets of today: the hive's, then the agents'.",
        api.BudgetList,
        lambda c: c.services.budgets.all(),
    ),
    Route("GET", "/v1/budget", "The hive's.", api.Budget, lambda c: c.services.budgets.of("*")),
    Route(
        "POST",
        "/v1/budget/raise",
        "Add to the hive's budget of today.",
        api.Budget,
        lambda c: c.services.budgets.raise_today(c.actor, "*", c.body(api.RaiseBudget)),
        OPERATOR,
        api.RaiseBudget,
    ),
    Route(
        "GET",
        "/v1/agents/{name}/budget",
        "An agent's.",
        api.Budget,
        lambda c: c.services.budgets.of(c.agent),
    ),
    Route(
        "POST",
        "/v1/agents/{name}/budget/raise",
        "Add to an agent's budget of today; if it waited for that, it goes on at once.",
        api.Budget,
        lambda c: c.services.budgets.raise_today(c.actor, c.agent, c.body(api.RaiseBudget)),
        OPERATOR,
        api.RaiseBudget,
    ),
)
