"""Rules of a spec that need to know the host and the rest of the hive. Pure: the facts are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.errors import Refusal
from reconciler.model.names import AgentName
from reconciler.model.risk import is_allowed_model
from reconciler.model.spec import Spec
from reconciler.model.states import Role

RANGE = 65536
PROMPT_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Reserved:
    """Host uids or gids that belong to something else: `first`, how many, and who says so."""

    first: int
    count: int
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules need. `uid_base`: of the agent itself, None before it exists. `taken`: first uids of
    other agents. `uids`: first inclusive, end exclusive. `prompt`: text of the prompt file, None if it is
    not there.
    """

    agent: AgentName
    uid_base: int | None
    taken: frozenset[int]
    uids: tuple[int, int]
    reserved: tuple[Reserved, ...]
    other_manager: AgentName | None
    allowed_models: tuple[str, ...]
    prompt: str | None


def refusals(spec: Spec, facts: Facts) -> tuple[Refusal, ...]:
    """Every reason why this spec cannot be taken for this agent here."""
    return (
        *_models(spec, facts),
        *_role(spec, facts),
        *_uids(spec, facts),
        *_prompt(spec, facts),
        *_network(spec),
    )


def range_fault(base: int, facts: Facts) -> str | None:
    """Why a range of 65536 uids from `base` cannot be an agent's; None if it can."""
    first, end = facts.uids
    if base % RANGE or base < first or base + RANGE > end:
        return "it lies outside of the host's uidRange"
    if base in facts.taken:
        return "another agent has it (also a destroyed one, until it is purged)"
    for other in facts.reserved:
        if base < other.first + other.count and other.first < base + RANGE:
            return f"it overlaps with {other.source}"
    return None


def lowest_free(facts: Facts) -> int | None:
    """The first range that an agent can have; None if the host's uidRange is full."""
    return next((base for base in range(*facts.uids, RANGE) if range_fault(base, facts) is None), None)


def _models(spec: Spec, facts: Facts) -> Iterable[Refusal]:
    allowed = ", ".join(facts.allowed_models)
    named = [("hyperhive.model", spec.model), *(("hyperhive.models", model) for model in spec.models)]
    for option, model in named:
        if not is_allowed_model(model, facts.allowed_models):
            yield Refusal(option, f"the model {model!r} is not served by this host", allowed)
    if spec.models and spec.model not in spec.models:
        yield Refusal(
            "hyperhive.models",
            f"the agent's own model {spec.model!r} is not among them",
            "add it to the list",
        )


def _role(spec: Spec, facts: Facts) -> Iterable[Refusal]:
    if Role(spec.role) is Role.MANAGER and facts.other_manager is not None:
        yield Refusal(
            "hyperhive.role", f"a hive has at most one manager, and {facts.other_manager} is it", '"agent"'
        )


def _uids(spec: Spec, facts: Facts) -> Iterable[Refusal]:
    base = spec.uidMap.base
    if base is None or base == facts.uid_base:
        return
    if facts.uid_base is not None:
        yield Refusal(
            "hyperhive.uidMap.base",
            f"the range of an agent is fixed when it is created: it is {facts.uid_base}, not {base}",
            f"{facts.uid_base} or null",
        )
        return
    why = range_fault(base, facts)
    if why is not None:
        first, end = facts.uids
        yield Refusal(
            "hyperhive.uidMap.base",
            f"{base} cannot be the first uid: {why}",
            f"a free multiple of {RANGE} from {first} to {end - RANGE}, or null",
        )


def _prompt(spec: Spec, facts: Facts) -> Iterable[Refusal]:
    if spec.prompt is None:
        return
    if facts.prompt is None:
        yield Refusal(
            "hyperhive.prompt", f"there is no file {spec.prompt} in the commit", "a file of the commit"
        )
    elif len(facts.prompt.encode()) > PROMPT_MAX_BYTES:
        yield Refusal("hyperhive.prompt", f"{spec.prompt} is too long", f"{PROMPT_MAX_BYTES} bytes")
    elif "\0" in facts.prompt or "\ufffd" in facts.prompt:
        yield Refusal("hyperhive.prompt", f"{spec.prompt} is not UTF-8 text", "text")


def _network(spec: Spec) -> Iterable[Refusal]:
    if spec.network.allow:
        yield Refusal("hyperhive.network.allow", "not supported yet: agents have no network", "[ ]")


def explain(found: Sequence[Refusal]) -> str:
    """All refusals as text, one per line."""
    return "\n".join(
        f"{refusal.where}: {refusal.why}" + (f" (allowed: {refusal.allowed})" if refusal.allowed else "")
        for refusal in found
    )
