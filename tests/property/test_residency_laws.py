"""Laws of the seats: never more are given than there are, and whoever waits is served."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reconciler.broker.residency import BYPASS_MAX, PARK_S, Residency

AGENTS = tuple("abcdefg")
Op = tuple[str, str, bool]
ops = st.lists(
    st.tuples(
        st.sampled_from(("want", "want", "rest", "rest", "parked", "gone", "withdraw", "late")),
        st.sampled_from(AGENTS),
        st.booleans(),
    ),
    max_size=60,
)


class World:
    def __init__(self, cap: int) -> None:
        self.now = 0.0
        self.seats = Residency(
            cap, lambda: self.now, lambda _: None, lambda _: None, lambda: None, long_s=float("inf")
        )
        self.working: set[str] = set()
        self.polling: set[str] = set()

    def want(self, agent: str, *, urgent: bool) -> bool:
        if agent in self.working:
            return True
        if agent not in self.polling:
            self.polling.add(agent)
            self.seats.poll_begins(agent)
        if self.seats.ask(agent, urgent=urgent):
            self.working.add(agent)
            self.answered(agent)
            return True
        return False

    def answered(self, agent: str) -> None:
        if agent in self.polling:
            self.polling.discard(agent)
            self.seats.poll_ends(agent)

    def do(self, op: Op) -> None:
        kind, agent, urgent = op
        match kind:
            case "want":
                self.want(agent, urgent=urgent)
            case "rest" if agent in self.working:
                self.working.discard(agent)
                self.seats.rest(agent)
            case "parked" if agent in self.seats.to_park:
                self.seats.parked(agent)
            case "gone":
                self.working.discard(agent)
                self.seats.gone(agent)
                self.answered(agent)
            case "withdraw" if agent not in self.working:
                self.seats.withdraw(agent)
                self.answered(agent)
            case "late":
                self.now += PARK_S / 2
                self.seats.tick()


@given(cap=st.integers(1, 4), script=ops)
def test_no_more_agents_work_than_there_are_seats(cap: int, script: list[Op]) -> None:
    world = World(cap)
    for op in script:
        world.do(op)
        count = world.seats.count()
        assert len(world.working) == count.busy <= count.taken <= cap
        assert all(world.seats.is_resident(agent) for agent in world.working)


@given(cap=st.integers(1, 4), script=ops, urgent=st.sets(st.sampled_from(AGENTS)))
def test_whoever_waits_is_served_after_a_bounded_number_of_turns(
    cap: int, script: list[Op], urgent: set[str]
) -> None:
    world = World(cap)
    for op in script:
        world.do(op)
    # From here on all want to work all the time, and each turn comes to an end.
    turns: Counter[str] = Counter()
    rounds = 3 * len(AGENTS) * (BYPASS_MAX + 1)
    for _ in range(rounds):
        for agent in AGENTS:
            if agent not in world.working and world.want(agent, urgent=agent in urgent):
                turns[agent] += 1
        for agent in sorted(world.working):
            world.working.discard(agent)
            world.seats.rest(agent)
        for agent in list(world.seats.to_park):
            world.seats.parked(agent)
    assert all(turns[agent] > 0 for agent in AGENTS), turns
