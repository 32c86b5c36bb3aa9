"""Laws of the planner, on a faithful model of the world (design section 6)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.model.names import AgentName
from reconciler.model.states import Desired as Want
from reconciler.model.states import ProposalState
from reconciler.plan.facts import Actual, Bounds, Crashes, Deployment, Desired, Target
from reconciler.plan.planner import plan
from reconciler.plan.steps import Again, Kind, Plan, Settled, Step, Waiting

BOUNDS = Bounds()
OLD, NEW, OTHER = "/nix/store/old", "/nix/store/new", "/nix/store/other"


@dataclass
class World:
    """A faithful model: applies steps as the real effects do, and lets time pass."""

    desired: Desired
    actual: Actual
    healthy: bool = True
    now: float = 10_000.0
    starts: int = 0
    kinds: list[Kind] = field(default_factory=list)
    purged: bool = False
    dies: bool = False
    takes_up: bool = True

    def apply(self, step: Step) -> None:  # noqa: C901 - one arm per kind of step
        self.kinds.append(step.kind)
        d, a = self.desired, self.actual
        match step.kind:
            case Kind.MAKE_DIRECTORIES:
                self.actual = replace(a, directories=True)
            case Kind.SERVE_SOCKETS:
                self.actual = replace(a, sockets=True, socket_left=True)
            case Kind.DROP_SOCKETS:
                self.actual = replace(a, sockets=False, socket_left=False)
            case Kind.BUILD:
                assert d.deployment is not None
                built = replace(d.deployment, state=ProposalState.BUILDING, toplevel=NEW, building=False)
                self.desired, self.actual = replace(d, deployment=built), replace(a, stored=True)
            case Kind.ACTIVATE:
                assert d.deployment is not None
                going = replace(
                    d.deployment, state=ProposalState.ACTIVATING, generation=99, activating_at=self.now
                )
                self.desired = replace(d, deployment=going)
            case Kind.START:
                assert a.phase == "absent", "a container is started only where none is"
                assert a.stored, "nothing is started that is not in the store"
                self.starts += 1
                hello = step.toplevel != NEW or self.healthy
                self.actual = replace(
                    a, phase="running", toplevel=step.toplevel, invocation=f"start-{self.starts}",
                    started_at=self.now, hello=hello, ready=hello, busy=False, attached=False,
                    generation=self.serving(step.toplevel) if hello else None, asked=a.asked,
                )  # fmt: skip
                # hived may die here: then the next pass tells the start
                self.desired = replace(self.desired, restart_wanted=False, start_untold=self.dies)
            case Kind.TAKE_UP:
                self.take_up()
            case Kind.STOP:
                assert a.alive, "only what lives is stopped"
                self.desired = replace(d, stop_intent=a.invocation)
                self.actual = replace(
                    a,
                    phase="exited",
                    busy=False,
                    attached=False,
                    hello=False,
                    ready=False,
                    frozen=False,
                    restless=False,
                    generation=None,
                )
            case Kind.CLEAR:
                assert a.phase == "exited", "only an ended container is cleared"
                self.actual = Actual(
                    directories=a.directories, sockets=a.sockets, pinned=a.pinned, tagged=a.tagged,
                    stored=a.stored, socket_left=a.socket_left, asked=a.asked,
                )  # fmt: skip
            case Kind.REPORT_CRASH:
                crashes = Crashes(d.crashes.count + 1, self.now, a.invocation)
                self.desired = replace(d, crashes=crashes)
            case Kind.CONFIRM:
                assert d.deployment is not None
                assert a.hello
                assert a.ready
                self.desired = replace(
                    d, deployment=None, current=Target(99, NEW), crashes=Crashes(), restart_wanted=False
                )
            case Kind.ROLL_BACK:
                self.desired = replace(d, deployment=None, stop_intent=a.invocation)
                self.actual = replace(
                    a, phase="absent", toplevel=None, invocation=None, started_at=None,
                    busy=False, hello=False, ready=False, host_restarted=False, stop_asked=False,
                    generation=None,
                )  # fmt: skip
            case Kind.ABANDON:
                self.desired = replace(d, deployment=None)
            case _:
                self.mend(step)

    def serving(self, toplevel: str | None) -> int | None:
        """The generation that a hello of a container just started is answered with."""
        d = self.desired
        if d.deployment is not None and d.deployment.state is ProposalState.ACTIVATING:
            return d.deployment.generation
        return d.current.generation if d.current is not None else None

    def take_up(self) -> None:
        """The harness is asked; it says hello between two turns, if it ever does."""
        a = self.actual
        assert a.hello, "only a harness that speaks is asked"
        assert a.phase == "running"
        wanted = self.serving(a.toplevel)
        told = wanted if self.takes_up and not a.busy else a.generation
        self.actual = replace(a, asked=wanted, generation=told)

    def mend(self, step: Step) -> None:
        """Steps that are about an agent as a whole."""
        d, a = self.desired, self.actual
        match step.kind:
            case Kind.REPORT_START:
                assert d.start_untold, "a start is told once"
                assert a.phase != "absent", "what was not made is not told"
                self.desired = replace(d, start_untold=False)
            case Kind.REPORT_STOP:
                assert a.stop_asked, "only what somebody stopped"
                self.desired = replace(d, crashes=replace(d.crashes, told=a.invocation))
            case Kind.FREEZE:
                assert a.phase == "running", "only what runs is frozen"
                assert d.held, "only what is held is frozen"
                self.actual = replace(a, frozen=True, restless=False)
            case Kind.THAW:
                assert not d.held, "what is held is not let go on"
                self.actual = replace(a, frozen=False, restless=False)
            case Kind.REFRESH_UNIT:
                self.actual = replace(a, drift=())
            case Kind.REBUILD:
                self.actual = replace(a, stored=True)
            case Kind.PIN_GENERATION:
                assert a.stored, "what is not in the store cannot be pinned"
                self.actual = replace(a, pinned=True)
            case Kind.RESTORE_TAGS:
                self.actual = replace(a, tagged=True)
            case Kind.PURGE:
                assert d.purge, "state is destroyed only by a purge"
                assert d.state is Want.DESTROYED
                assert a.phase == "absent", "nothing of it runs any more"
                self.purged = True

    def look(self) -> Plan:
        return plan(self.desired, self.actual, self.now, BOUNDS)

    def run(self, limit: int = 100) -> Plan:
        """Passes until nothing is to be done; turns end and builds finish while it waits."""
        for _ in range(limit):
            seen = self.look()
            if self.purged:  # its row is gone
                return Plan((), Settled())
            if seen.steps:
                self.apply(seen.steps[0])
            elif isinstance(seen.outcome, Again):
                self.now += max(seen.outcome.after_s, 0.01)
            elif (
                isinstance(seen.outcome, Waiting)
                and (self.actual.busy or self.actual.attached)
                and not self.actual.frozen
            ):
                self.actual = replace(self.actual, busy=False, attached=False)
                if self.takes_up and self.actual.asked is not None and self.actual.hello:
                    self.actual = replace(self.actual, generation=self.serving(self.actual.toplevel))
            else:
                return seen
        raise AssertionError(f"no rest after {limit} passes: {self.kinds[-10:]}")


phases: st.SearchStrategy[Literal["absent", "starting", "running", "exited"]] = st.sampled_from(
    ["absent", "starting", "running", "exited"]
)
targets = st.sampled_from([None, Target(1, OLD), Target(2, OTHER)])


@st.composite
def deployments(draw: st.DrawFn) -> Deployment | None:
    state = draw(st.sampled_from([None, "approved", "building", "built", "activating"]))
    now = draw(st.booleans())
    if state is None:
        return None
    if state == "activating":
        at = draw(st.floats(9_000, 10_000))
        return Deployment(7, ProposalState.ACTIVATING, now, NEW, 99, at, building=False)
    toplevel = NEW if state == "built" else None
    real = ProposalState.APPROVED if state == "approved" else ProposalState.BUILDING
    return Deployment(7, real, now, toplevel, None, None, building=False)


@st.composite
def actuals(draw: st.DrawFn) -> Actual:
    phase = draw(phases)
    directories, sockets = draw(st.booleans()), draw(st.booleans())
    pinned, tagged = draw(st.booleans()), draw(st.booleans())
    if phase == "absent":
        return Actual(
            directories=directories,
            sockets=sockets,
            socket_left=draw(st.booleans()),
            pinned=pinned,
            tagged=tagged,
            stored=draw(st.booleans()),
        )
    alive = phase in {"starting", "running"}
    frozen = phase == "running" and draw(st.booleans())
    return Actual(
        phase=phase, toplevel=draw(st.sampled_from([OLD, NEW, OTHER])), invocation="start-0",
        started_at=draw(st.floats(8_000, 10_000)), hello=alive and draw(st.booleans()),
        ready=alive and draw(st.booleans()),
        busy=alive and draw(st.booleans()), attached=alive and draw(st.booleans()),
        directories=directories, sockets=sockets, host_restarted=not alive and draw(st.booleans()),
        stop_asked=not alive and draw(st.booleans()), frozen=frozen, restless=frozen and draw(st.booleans()),
        drift=draw(st.sampled_from([(), ("its unit file was changed",)])), pinned=pinned, tagged=tagged,
        generation=draw(st.sampled_from([None, 1, 2, 99])) if alive else None,
        asked=draw(st.sampled_from([None, 1, 2, 99])),
        serves=draw(st.sampled_from([frozenset(), frozenset({NEW}), frozenset({OLD, NEW, OTHER})])),
        stored=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    crashes = draw(
        st.one_of(
            st.just(Crashes()),
            st.builds(
                Crashes, st.integers(0, 8), st.floats(9_000, 10_000), st.sampled_from(["start-0", None])
            ),
        )
    )
    desired = Desired(
        name=AgentName("smith"),
        state=draw(st.sampled_from(Want)),
        current=draw(targets),
        deployment=draw(deployments()),
        restart_wanted=draw(st.booleans()),
        stop_intent=draw(st.sampled_from([None, "start-0"])),
        crashes=crashes,
        held=draw(st.booleans()),
        purge=draw(st.booleans()),
        start_untold=draw(st.booleans()),
    )
    return World(
        desired, draw(actuals()), healthy=draw(st.booleans()), dies=draw(st.booleans()),
        takes_up=draw(st.booleans()),
    )  # fmt: skip


@given(worlds())
@settings(max_examples=300)
def test_applying_plans_reaches_what_is_desired(world: World) -> None:
    world.run()
    desired, actual = world.desired, world.actual
    if desired.held and desired.state is Want.RUNNING:
        assert actual.frozen == (actual.phase == "running")
        assert not actual.restless
        return
    if desired.state is Want.DESTROYED:
        assert world.purged == desired.purge
    if desired.held and desired.deployment is not None:
        return  # it waits for the release, like everything of a held agent
    assert desired.deployment is None
    if desired.state is Want.RUNNING and desired.current is not None:
        if desired.crashes.count < BOUNDS.crashloop:
            assert actual.alive
            assert actual.can_serve(desired.current.toplevel)
            assert actual.directories
            assert actual.sockets
            assert not actual.frozen
            assert actual.pinned
            assert actual.tagged
            assert not actual.drift
    else:
        assert actual.phase == "absent"


@given(worlds())
@settings(max_examples=300)
def test_a_held_agent_is_left_as_it_is_but_suspended(world: World) -> None:
    world.desired = replace(world.desired, held=True, state=Want.RUNNING)
    world.run()
    reports = {Kind.REPORT_START, Kind.REPORT_CRASH, Kind.REPORT_STOP}
    assert set(world.kinds) <= {Kind.FREEZE, *reports}
    world.desired = replace(world.desired, held=False)
    world.run()
    assert not world.actual.frozen


@given(worlds())
@settings(max_examples=200)
def test_state_is_destroyed_only_by_a_purge_of_a_destroyed_agent(world: World) -> None:
    asked = world.desired.purge and world.desired.state is Want.DESTROYED
    world.run()
    assert (Kind.PURGE in world.kinds) == asked


@given(worlds())
@settings(max_examples=200)
def test_a_stop_by_hand_is_told_but_is_no_crash(world: World) -> None:
    by_hand = world.actual.phase == "exited" and world.actual.stop_asked
    before = world.desired.crashes.count
    world.run()
    if by_hand:
        assert Kind.REPORT_CRASH not in world.kinds
        assert world.desired.crashes.count in {before, 0}


@given(worlds())
@settings(max_examples=300)
def test_whoever_is_at_work_is_served_whatever_it_waits_for(world: World) -> None:
    seen, desired, actual = world.look(), world.desired, world.actual
    if seen.steps == () and actual.alive and desired.state is Want.RUNNING and not desired.held:
        assert actual.sockets, seen.outcome
        assert actual.directories


@given(worlds())
@settings(max_examples=200)
def test_a_second_plan_is_empty(world: World) -> None:
    world.run()
    again = world.look()
    assert again.steps == () or world.purged, "what is purged has no row to plan for"
    assert isinstance(again.outcome, Settled | Waiting)


@given(worlds())
@settings(max_examples=200)
def test_a_live_turn_is_ended_only_by_the_operators_own_act(world: World) -> None:
    seen = world.look()
    if not (world.actual.alive and (world.actual.busy or world.actual.attached)):
        return
    d = world.desired
    asked = (
        d.state is not Want.RUNNING
        or d.restart_wanted
        or d.current is None
        or (d.deployment is not None and (d.deployment.now or d.deployment.state is ProposalState.ACTIVATING))
    )
    if not asked:
        assert not any(s.kind in {Kind.STOP, Kind.ROLL_BACK, Kind.ACTIVATE} for s in seen.steps)


@given(worlds())
@settings(max_examples=200)
def test_nothing_new_is_built_activated_or_started_without_a_decision(world: World) -> None:
    had = world.desired.deployment
    current = world.desired.current
    world.run()
    if had is None:
        assert not {Kind.BUILD, Kind.ACTIVATE, Kind.CONFIRM, Kind.ROLL_BACK} & set(world.kinds)
        assert world.desired.current == current


@given(worlds())
@settings(max_examples=200)
def test_what_never_says_hello_is_rolled_back(world: World) -> None:
    world.healthy = False
    before = world.desired.current
    running_new = world.actual.toplevel == NEW and world.actual.hello and world.actual.ready
    if world.desired.deployment is None or running_new or world.desired.held:
        return
    world.run()
    assert world.desired.current == before
    assert Kind.CONFIRM not in world.kinds


@given(worlds(), st.integers(0, 12))
@settings(max_examples=200)
def test_after_a_crash_of_hived_at_any_point_the_next_pass_converges(world: World, steps: int) -> None:
    for _ in range(steps):
        seen = world.look()
        if seen.steps:
            world.apply(seen.steps[0])
    # hived dies: what it kept in memory is gone, harnesses say hello again when it is back
    d = world.desired
    if d.deployment is not None:
        world.desired = replace(d, deployment=replace(d.deployment, building=False))
    if world.actual.alive and not (world.actual.toplevel == NEW and not world.healthy):
        world.actual = replace(world.actual, hello=True, ready=True)
    world.run()
    assert world.look().steps == () or world.purged


@given(worlds())
@settings(max_examples=300)
def test_each_end_that_nobody_asked_for_is_told_once(world: World) -> None:
    phase, had = world.actual.phase, world.desired.deployment
    intended = world.desired.stop_intent == world.actual.invocation
    told = world.desired.crashes.told == world.actual.invocation
    nobodys_fault = world.actual.host_restarted
    world.run()
    reports = world.kinds.count(Kind.REPORT_CRASH) + world.kinds.count(Kind.REPORT_STOP)
    assert reports <= 1
    if intended or told or nobodys_fault or phase != "exited":
        assert reports == 0
    elif world.desired.state is Want.RUNNING and had is None and world.desired.current is not None:
        assert reports == 1


@given(worlds())
@settings(max_examples=300)
def test_each_start_is_told_once_before_its_end_also_when_hived_dies_in_between(world: World) -> None:
    world.dies = True
    untold = world.desired.start_untold and world.actual.invocation is not None
    world.run()
    told = world.kinds.count(Kind.REPORT_START)
    assert told == world.starts + untold
    assert not (world.desired.start_untold and world.actual.invocation)
    for before, after in itertools.pairwise(world.kinds):
        assert before is not Kind.START or after is Kind.REPORT_START


def test_what_is_to_be_suspended_does_not_wait_for_words() -> None:
    held = Desired(AgentName("smith"), Want.RUNNING, Target(1, OLD), held=True, start_untold=True)
    running = Actual(phase="running", toplevel=OLD, invocation="i", started_at=1.0)
    seen = plan(held, running, 2.0, BOUNDS)
    assert [step.kind for step in seen.steps] == [Kind.FREEZE, Kind.REPORT_START]


def test_restart_delays_double_and_are_bounded() -> None:
    delays = [BOUNDS.restart_delay_s(n) for n in range(10)]
    assert delays[:4] == [0.0, 1.0, 2.0, 4.0]
    assert delays[-1] == BOUNDS.longest_delay_s


@given(worlds())
@settings(max_examples=300)
def test_what_a_container_can_take_up_restarts_it_only_if_its_harness_does_not(world: World) -> None:
    d, a = world.desired, world.actual
    able = a.phase == "running" and a.hello and a.ready and not a.frozen and not a.host_restarted
    asked = d.restart_wanted or d.held or d.state is not Want.RUNNING or (d.deployment and d.deployment.now)
    before = d.current is not None and a.can_serve(d.current.toplevel)
    late = d.deployment is not None and d.deployment.activating_at is not None
    if d.deployment is None or d.current is None or not able or asked or not before or late or not a.stored:
        return
    world.actual = replace(a, serves=a.serves | {NEW})
    world.run()
    if world.takes_up:
        assert not {Kind.STOP, Kind.START} & set(world.kinds)
        assert world.actual.invocation == a.invocation
        assert world.actual.generation == 99
    elif a.generation != 99:
        assert Kind.STOP in world.kinds, "what is not taken up in time needs a container of its own"
