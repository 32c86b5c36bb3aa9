"""What an agent may know of itself, put together from the services: the answer of `GET status`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from harness import wire
from reconciler.control import models as api
from reconciler.model.names import AgentName
from reconciler.services import Services

QUESTIONS_MAX = 20
EXCERPT_MAX = 200
SETTINGS = ("bash.allow", "bash.deny", "tools.allow", "network.allow", "send.allow", "models")


async def own_status(services: Services, agent: AgentName) -> wire.OwnStatus:
    """State, nap, budget, inbox, questions, and what is allowed, of one agent."""
    view, budget, spec, asked, loops, peers = await asyncio.gather(
        services.agents.get(agent),
        services.budgets.of(agent),
        services.agents.spec(agent),
        services.broker.questions(agent=agent, state="open", limit=QUESTIONS_MAX),
        services.broker.loops(),
        services.broker.peers(agent),
    )
    return wire.OwnStatus(
        state=view.state.value,
        model=view.model.active or view.model.default,
        model_queued=view.model.queued,
        generation=view.generation,
        commit=view.commit,
        status=view.status,
        nap_until=view.nap_until,
        waiting=view.inbox_depth,
        held=sum(loop.waiting for loop in loops.items if loop.state == "held" and agent in loop.agents),
        questions=[_question(question) for question in asked.items],
        peers=peers,
        settings=_settings(spec.spec),
        budget_limit_usd=budget.limit_today_usd,
        budget_left_usd=budget.left_today_usd,
        budget_resets_at=budget.resets_at,
        tokens_per_turn=budget.tokens_per_turn,
        queued=list(view.queued),
    )


def _question(question: api.Question) -> wire.OpenQuestion:
    return wire.OpenQuestion(
        id=question.id, question=question.question[:EXCERPT_MAX], expires_at=question.expires_at
    )


def _settings(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """The lists of a spec that say what is allowed, by option."""
    found = {}
    for option in SETTINGS:
        value: Any = spec
        for key in option.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, list):
            found[option] = [str(item) for item in value]
    return found
