"""The seats of resident sessions: who gets one, who gives one up, and that nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from reconciler.broker.residency import LONG_S, PARK_S, PIN_S, PLACE_S, Count, Residency


@dataclass
class Host:
    """Seats with a clock of its own. `rung` are the agents that may ask again."""

    cap: int
    idle_s: float = 900.0
    now: float = 0.0
    rung: list[str] = field(default_factory=list)
    orders: int = 0

    def __post_init__(self) -> None:
        self.seats = Residency(
            self.cap, lambda: self.now, self.rung.append, lambda _: None, self._ordered, self.idle_s
        )

    def _ordered(self) -> None:
        self.orders += 1

    def wants(self, *agents: str, urgent: bool = False) -> list[str]:
        """Who of them gets a seat; the others wait with a poll of theirs."""
        for agent in agents:
            self.seats.poll_begins(agent)
        return [agent for agent in agents if self.seats.ask(agent, urgent=urgent)]

    def told(self) -> list[str]:
        """Who is told to park; it is not told twice."""
        told, self.seats.to_park = list(self.seats.to_park), {}
        return told

    def waits(self, *agents: str, urgent: bool = False) -> list[str]:
        """Who of those that wait already gets a seat when all ask again."""
        return [agent for agent in agents if self.seats.ask(agent, urgent=urgent)]


def test_as_many_as_there_are_seats_work_and_the_next_ones_wait_in_order() -> None:
    host = Host(2)
    assert host.wants("a", "b", "c", "d") == ["a", "b"]
    assert host.seats.count() == Count(cap=2, taken=2, busy=2, waiting=2)
    assert host.told() == [], "both are at work"
    host.seats.gone("a")
    assert host.rung == ["c"]
    assert host.waits("d", "c") == ["c"]


def test_who_has_had_its_turn_is_told_to_park_for_one_that_waits() -> None:
    host = Host(1)
    host.wants("a", "b")
    host.seats.busy("a", turn=7)
    host.seats.rest("a")
    assert host.seats.to_park == {"a": 7}
    assert host.waits("a") == [], "it goes behind those that wait"
    host.seats.parked("a")
    assert host.rung == ["b"]
    assert host.waits("a", "b") == ["b"]


def test_the_longest_idle_gives_its_seat_up() -> None:
    host = Host(3)
    host.wants("a", "b", "c")
    for agent in ("b", "c", "a"):
        host.now += 1
        host.seats.rest(agent)
    host.wants("d", "e")
    assert host.told() == ["b", "c"]
    assert host.waits("a") == ["a"], "nobody needs its seat"


def test_nobody_is_told_to_park_while_a_seat_is_free_or_on_its_way() -> None:
    host = Host(2)
    host.wants("a", "b")
    host.seats.rest("a")
    host.seats.rest("b")
    host.wants("c")
    assert host.told() == ["a"]
    host.waits("c")
    host.seats.tick()
    assert host.told() == []


def test_an_idle_cli_is_ended_after_its_time_and_a_busy_one_is_not() -> None:
    host = Host(9, idle_s=60)
    host.wants("a", "b")
    host.seats.rest("a")
    host.now = 59
    assert host.seats.tick() == pytest.approx(1)
    assert host.told() == []
    host.now = 60
    host.seats.tick()
    assert host.told() == ["a"]
    host.seats.parked("a")
    assert host.seats.count().taken == 1


def test_an_order_to_park_is_not_given_to_who_was_given_work_meanwhile() -> None:
    host = Host(1)
    host.wants("a", "b")
    host.seats.rest("a")
    assert host.seats.to_park == {"a": 0}
    host.seats.busy("a", turn=3)
    assert host.told() == []
    host.seats.parked("a")
    assert host.seats.is_resident("a"), "a late answer takes the seat from nobody at work"


def test_a_harness_that_does_not_park_loses_its_seat_all_the_same() -> None:
    host = Host(1)
    host.wants("a", "b")
    host.seats.rest("a")
    host.now = PARK_S
    host.seats.tick()
    assert host.rung == ["b"]
    assert host.waits("b", "a") == ["b"]


def test_an_older_harness_is_not_told_but_passed_over() -> None:
    host = Host(1)
    host.seats.greeted("old", None, busy=True)
    host.wants("b")
    host.seats.rest("old")
    assert (host.told(), host.rung) == ([], ["b"])


def test_urgent_messages_go_first_but_not_for_ever() -> None:
    host = Host(1)
    host.wants("busy", "plain")
    urgent = [f"u{number}" for number in range(9)]
    host.wants(*urgent, urgent=True)
    served: list[str] = []
    for _ in range(10):
        host.seats.gone(served[-1] if served else "busy")
        served += [host.rung[-1]]
        assert host.waits(*({"plain", *urgent} - set(served[:-1]))) == served[-1:]
    assert served.index("plain") == 3
    assert [name for name in served if name != "plain"] == urgent


def test_a_place_is_kept_while_a_poll_is_renewed_and_blocks_nobody_meanwhile() -> None:
    host = Host(1)
    host.wants("a", "b", "c")
    host.seats.poll_ends("b")
    host.now += PLACE_S / 2
    host.seats.rest("a")
    host.seats.parked("a")
    assert host.rung == ["c"], "b could not take it at this instant"
    host.wants("b")
    assert host.waits("b", "c") == ["b"], "it came back in time"


def test_a_place_lapses_when_nobody_asks_any_more() -> None:
    host = Host(1)
    host.wants("a", "b")
    host.seats.poll_ends("b")
    host.now += PLACE_S
    host.seats.tick()
    assert host.seats.count().waiting == 0


def test_a_turn_without_messages_waits_for_a_seat_like_all_others() -> None:
    host = Host(1)
    host.wants("a")
    host.seats.poll_begins("b")
    assert not host.seats.ask_for_turn("b")
    host.seats.withdraw("b")  # its poll finds no message
    assert host.seats.is_waiting("b")
    host.seats.rest("a")
    assert host.told() == ["a"]
    host.seats.parked("a")
    assert host.seats.ask_for_turn("b")
    host.now += 2 * PIN_S
    host.seats.withdraw("b")
    assert not host.seats.is_waiting("b")


def test_seats_are_known_again_from_what_harnesses_say() -> None:
    host = Host(2)
    host.seats.busy("at-work", turn=4)
    host.seats.greeted("at-work", True, busy=True)
    host.seats.greeted("idle", True, busy=False)
    host.seats.greeted("parked", False, busy=False)
    assert host.seats.count() == Count(cap=2, taken=2, busy=1, waiting=0)
    host.seats.greeted("one-more", True, busy=False)
    assert len(host.told()) == 1, "there are more than the host has seats for"


def test_who_never_ends_its_turn_keeps_nobody_from_working() -> None:
    host = Host(1)
    host.wants("hog", "b", "c")
    host.now = LONG_S - 1
    assert host.seats.tick() == pytest.approx(1)
    assert host.rung == []
    host.now = LONG_S
    host.seats.tick()
    assert host.rung == ["b"]
    assert host.waits("b", "c") == ["b"], "one more, and not everybody"
    host.seats.rest("hog")
    assert host.told() == ["hog"], "it has no seat any more"
    host.seats.rest("b")
    assert host.told() == ["b"], "the hog's seat is none that c could get"
    host.seats.parked("hog")
    host.seats.parked("b")
    assert host.waits("c") == ["c"]


def test_a_long_turn_is_let_alone_while_nobody_waits() -> None:
    host = Host(1)
    host.wants("a")
    host.now = 10 * LONG_S
    assert host.seats.tick() is None
    host.seats.rest("a")
    assert host.told() == []


def test_harnesses_that_say_again_and_again_that_they_have_a_cli_keep_nobody_from_a_seat() -> None:
    host = Host(1)
    liars = ["x", "y", "z"]
    host.seats.poll_begins("honest")
    for second in range(200):
        host.now = float(second)
        for number, liar in enumerate(liars):
            if second >= number * 10:  # never all of them are told to park at once
                host.seats.greeted(liar, True, busy=False)
        host.seats.tick()
        if second >= 40 and host.seats.ask("honest", urgent=False):
            break
    else:
        pytest.fail(f"it waits for ever: {host.seats.count()}")
    assert host.now <= 40 + 2 * PARK_S


def test_residents_beyond_the_cap_are_told_to_park_when_they_greet() -> None:
    host = Host(1)
    host.seats.greeted("a", True, busy=False)
    host.seats.greeted("b", True, busy=False)
    assert host.told() == ["b"]
    host.seats.parked("b")
    assert host.seats.count() == Count(cap=1, taken=1, busy=0, waiting=0)
