"""`plan(desired, actual, now, bounds)`: the steps from what is to what should be.

Laws (tests/property): applying a plan to a faithful model reaches desired; a second plan is empty; a
container with a live turn or an attached person is stopped only if the operator asked for it; nothing is
stopped or built without a decision in the input; a held agent is neither started nor let go on; state is
destroyed only by a purge; from every crash point the next plan converges.
"""

from __future__ import annotations

from reconciler.model.states import Desired as Want
from reconciler.model.states import ProposalState
from reconciler.plan.facts import Actual, Bounds, Deployment, Desired, Target
from reconciler.plan.steps import Again, Kind, Outcome, Plan, Settled, Step, Waiting


def plan(desired: Desired, actual: Actual, now: float, bounds: Bounds) -> Plan:
    """All steps that can be seen from here, in order; a pass applies the first and looks at the world again.

    `now` is in epoch seconds. With no steps, the outcome says why it rests.
    """
    found = _plan(desired, actual, now, bounds)
    if not desired.start_untold or actual.invocation is None:
        return found
    # Before whatever ends it; but what is to be suspended is not kept waiting.
    first = sum(step.kind is Kind.FREEZE for step in found.steps[:1])
    telling = Step(Kind.REPORT_START, "it was started, and hived died before it could tell")
    return Plan((*found.steps[:first], telling, *found.steps[first:]), Again(0))


def _plan(desired: Desired, actual: Actual, now: float, bounds: Bounds) -> Plan:
    if desired.state is Want.DESTROYED:
        return _plan_away(desired, actual, "the agent is destroyed")
    deployment = desired.deployment
    if desired.state is Want.STOPPED and deployment is None:
        return _plan_away(desired, actual, "the operator stopped the agent")
    if desired.held:
        return _plan_held(desired, actual)
    if actual.frozen:
        return Plan((Step(Kind.THAW, "the operator released it"),), Again(0))
    if deployment is not None:
        return _plan_deployment(desired, deployment, actual, now, bounds)
    return _plan_running(desired, actual, now, bounds)


def _plan_held(desired: Desired, actual: Actual) -> Plan:
    """It stays as it is, and suspended if it runs: nothing is built, started, stopped or mended meanwhile."""
    steps = []
    if actual.phase == "running" and (not actual.frozen or actual.restless):
        steps.append(Step(Kind.FREEZE, "the operator holds it"))
    if actual.phase == "exited" and not _is_expected(desired, actual):
        steps.append(_report(actual))
    return Plan(tuple(steps), Waiting("the operator to release it"))


def _prepare(actual: Actual) -> list[Step]:
    steps = []
    if not actual.directories:
        steps.append(Step(Kind.MAKE_DIRECTORIES, "its directories are missing or have another owner"))
    if not actual.sockets:
        steps.append(Step(Kind.SERVE_SOCKETS, "its sockets are not served"))
    return steps


def _plan_away(desired: Desired, actual: Actual, reason: str) -> Plan:
    steps = []
    if desired.deployment is not None:
        steps.append(Step(Kind.ABANDON, reason))
    if actual.alive:
        steps.append(Step(Kind.STOP, reason))
    if actual.alive or actual.phase == "exited":
        steps.append(Step(Kind.CLEAR, reason))
    if actual.sockets or actual.socket_left:
        steps.append(Step(Kind.DROP_SOCKETS, reason))
    if desired.state is Want.DESTROYED and desired.purge:
        steps.append(Step(Kind.PURGE, "the operator purged what was kept of it"))
    return Plan(tuple(steps), Settled())


def _plan_deployment(
    desired: Desired, deployment: Deployment, actual: Actual, now: float, bounds: Bounds
) -> Plan:
    label = f"proposal {deployment.proposal}"
    if deployment.toplevel is not None and not actual.stored:
        return _plan_rebuild(actual, f"the root of {label}")
    if deployment.state in {ProposalState.APPROVED, ProposalState.BUILDING} and deployment.toplevel is None:
        if deployment.building:
            return _keep_running(desired, actual, now, bounds, Waiting(f"the build of {label}"))
        return Plan((Step(Kind.BUILD, f"{label} is approved"),), Waiting(f"the build of {label}"))
    if deployment.state is not ProposalState.ACTIVATING:
        if (actual.busy or actual.attached) and actual.alive and not deployment.now:
            wait = Waiting(f"the end of the running turn, to activate {label}", turn_end=True)
            return Plan(tuple(_prepare(actual)), wait)  # whose harness must be able to say that it ends
        # No turn begins between here and the end of its container.
        return Plan((Step(Kind.ACTIVATE, f"{label} is built"),), Again(0, turn_end=True))
    return _plan_probe(desired, deployment, actual, now, bounds)


def _plan_in_place(
    desired: Desired, deployment: Deployment, actual: Actual, since: float, now: float, bounds: Bounds
) -> Plan | None:
    """The container that runs serves the new generation, once its harness has taken it up between two
    turns. None: it has to be started anew, because it cannot, does not in time, or is not to be waited
    for."""
    label = f"proposal {deployment.proposal}"
    able = actual.phase == "running" and not desired.restart_wanted and (actual.started_at or now) < since
    if not able or not actual.can_serve(deployment.toplevel) or (actual.busy and deployment.now):
        return None
    speaks = actual.hello and actual.ready
    if speaks and actual.generation == deployment.generation:
        return Plan((Step(Kind.CONFIRM, f"its harness has taken up {label}"),), Again(0))
    steps = _prepare(actual)
    if speaks and actual.asked != deployment.generation:
        steps.append(Step(Kind.TAKE_UP, f"{label} needs no other container"))
        return Plan(tuple(steps), Again(0, turn_end=True))
    if actual.busy:
        return Plan(tuple(steps), Waiting(f"the end of the running turn, to take up {label}", turn_end=True))
    # A hived that has just begun has not heard of it yet; a turn that has just ended has kept it from it.
    deadline = max(since, actual.idle_since) + (bounds.hello_s if speaks else bounds.ready_s)
    return Plan(tuple(steps), Again(deadline - now, turn_end=True)) if now < deadline else None


def _plan_probe(desired: Desired, deployment: Deployment, actual: Actual, now: float, bounds: Bounds) -> Plan:
    label = f"proposal {deployment.proposal}"
    since = deployment.activating_at if deployment.activating_at is not None else now
    is_candidate = actual.toplevel == deployment.toplevel and (actual.started_at or 0.0) >= since
    # Neither says anything about the commit.
    is_candidate = is_candidate and not actual.host_restarted
    is_candidate = is_candidate and not (actual.phase == "exited" and actual.stop_asked)
    if not is_candidate:
        if actual.phase == "exited" and not _is_expected(desired, actual):
            return Plan((_report(actual),), Again(0))  # the generation before it ended by itself
        if (in_place := _plan_in_place(desired, deployment, actual, since, now, bounds)) is not None:
            return in_place
        steps = []
        if actual.alive:
            steps.append(Step(Kind.STOP, f"activating {label}"))
        if actual.phase != "absent":
            steps.append(Step(Kind.CLEAR, f"activating {label}"))
        steps += _prepare(actual)
        steps.append(Step(Kind.START, f"activating {label}", deployment.toplevel))
        return Plan(tuple(steps), Again(0, turn_end=actual.alive))
    if actual.phase == "exited":
        return Plan((Step(Kind.ROLL_BACK, "its container ended before the harness was ready"),), Again(0))
    if actual.hello and actual.ready:
        return Plan((Step(Kind.CONFIRM, f"{label} came up and its harness takes messages"),), Again(0))
    limit_s, missing = (bounds.ready_s, "take messages") if actual.hello else (bounds.hello_s, "say hello")
    deadline = (actual.started_at or now) + limit_s
    if now >= deadline:
        reason = f"its harness did not {missing} within {limit_s:g} s"
        return Plan((Step(Kind.ROLL_BACK, reason),), Again(0))
    steps = _prepare(actual)
    return Plan(tuple(steps), Again(deadline - now))


def _keep_running(desired: Desired, actual: Actual, now: float, bounds: Bounds, rest: Outcome) -> Plan:
    """While a build goes on, the running generation is kept as it is and served, but not restarted for
    drift."""
    if desired.state is Want.RUNNING and desired.current is not None and not actual.alive:
        below = _plan_running(desired, actual, now, bounds)
        return below if below.steps else Plan((), rest)
    return Plan(tuple(_prepare(actual)) if actual.alive else (), rest)


def _plan_running(desired: Desired, actual: Actual, now: float, bounds: Bounds) -> Plan:
    target = desired.current
    if target is None:
        if actual.alive or actual.phase == "exited":
            return _plan_away(desired, actual, "no generation of it was ever deployed")
        return Plan((), Waiting("an approved proposal that deploys"))
    if actual.phase == "exited":
        return _plan_exited(desired, actual, now, bounds)
    steps = _prepare(actual) + _repair(actual)
    if not actual.stored:
        below = _plan_rebuild(actual, f"the root of generation {target.generation}")
        return Plan((*steps, *below.steps), below.outcome)
    if not actual.alive:
        delay = _delay_left(desired, now, bounds)
        if desired.crashes.count >= bounds.crashloop:
            return Plan(tuple(steps), Waiting("the operator: it crashed too often, start it to try again"))
        if delay > 0:
            return Plan(tuple(steps), Again(delay))
        return Plan(
            (*steps, Step(Kind.START, f"generation {target.generation} should run", target.toplevel)),
            Again(0),
        )
    return _plan_alive(desired, target, actual, steps)


def _plan_alive(desired: Desired, target: Target, actual: Actual, steps: list[Step]) -> Plan:
    """It runs; whether what should. `steps` are the mendings that come first."""
    again: list[Step] = [
        Step(Kind.CLEAR, "restarting"),
        Step(Kind.START, f"generation {target.generation} should run", target.toplevel),
    ]
    if desired.restart_wanted:
        return Plan((*steps, Step(Kind.STOP, "a restart was asked for"), *again), Again(0))
    if actual.can_serve(target.toplevel):
        speaks = actual.phase == "running" and actual.hello and actual.generation is not None
        if speaks and target.generation not in {actual.generation, actual.asked}:
            return Plan((*steps, Step(Kind.TAKE_UP, "its harness serves another generation")), Again(0))
    else:
        if actual.busy or actual.attached:
            return Plan(tuple(steps), Waiting("the end of the running turn, to repair drift", turn_end=True))
        return Plan((*steps, Step(Kind.STOP, "another generation runs than should"), *again), Again(0))
    return Plan(tuple(steps), Settled())


def _plan_rebuild(actual: Actual, what: str) -> Plan:
    """What should run is not in the store: a restored hive's, or somebody collected it."""
    if actual.rebuild:
        return Plan(tuple(_prepare(actual)) if actual.alive else (), Waiting(actual.rebuild))
    return Plan(
        (Step(Kind.REBUILD, f"{what} is not in the store"),), Waiting(f"{what}, which is built again")
    )


def _plan_exited(desired: Desired, actual: Actual, now: float, bounds: Bounds) -> Plan:
    if actual.host_restarted:
        return Plan((Step(Kind.CLEAR, "the host was started again"),), Again(0))
    if actual.invocation == desired.stop_intent:
        return Plan((Step(Kind.CLEAR, "it was stopped on purpose"),), Again(0))
    if not _is_expected(desired, actual):
        return Plan((_report(actual),), Again(0))
    return Plan((Step(Kind.CLEAR, "its end is told"),), Again(max(0.0, _delay_left(desired, now, bounds))))


def _is_expected(desired: Desired, actual: Actual) -> bool:
    """Whether an end needs no words: hived asked for it, the host went with it, or it was told."""
    known = {desired.stop_intent, desired.crashes.told}
    return actual.host_restarted or actual.invocation in known


def _report(actual: Actual) -> Step:
    if actual.stop_asked:
        return Step(Kind.REPORT_STOP, "somebody stopped its unit by hand")
    return Step(Kind.REPORT_CRASH, "its container ended and nobody asked for it")


def _repair(actual: Actual) -> list[Step]:
    """What somebody else changed and can be mended in place."""
    steps = [Step(Kind.REFRESH_UNIT, reason) for reason in actual.drift[:1]]
    if not actual.pinned and actual.stored:
        steps.append(
            Step(Kind.PIN_GENERATION, "its profile does not point to the generation that should run")
        )
    if not actual.tagged:
        steps.append(Step(Kind.RESTORE_TAGS, "tags of its proposals are missing in its repository"))
    return steps


def _delay_left(desired: Desired, now: float, bounds: Bounds) -> float:
    crashes = desired.crashes
    if crashes.last_at is None:
        return 0.0
    return crashes.last_at + bounds.restart_delay_s(crashes.count) - now
