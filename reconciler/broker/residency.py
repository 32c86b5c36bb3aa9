"""Who may keep a Claude Code in memory: the seats of the host, and who waits for one.

A resident CLI takes a quarter of a gigabyte, so the host has a number of seats. An agent is given messages
only when it holds one; it keeps the seat (and its warm session) until the host wants it back: because it
idled for long, or because somebody waits and nobody else can give one up. The longest idle goes first, and
who has just had its turn goes behind those that wait.

All of it is memory, made anew from what harnesses say in `hello`, open turns and leases. Nothing here proves
that a harness ends its CLI when told to: one that does not gains nothing but memory of its own container,
whose limits bind, and its seat is given away all the same after `PARK_S`. Pure but for the clock passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

PARK_S = 30.0
"""How long a harness may take to end its CLI before its seat counts as free."""

PLACE_S = 10.0
"""How long a place in the line is kept for a harness whose long poll ended, until it asks again."""

LONG_S = 900.0
"""While others wait, a seat that somebody has worked on for so long is lent to them: rather one CLI too many
than agents that keep all the others from working by never ending a turn."""

PIN_S = 5.0
"""How long a place is kept for a turn that no message waits for: its harness asks again each second."""

BYPASS_MAX = 3
"""So many that came later may sit down before somebody that waits; then it goes first of all."""

CAP_DEFAULT = 64
IDLE_DEFAULT_S = 900.0


@dataclass(slots=True)
class _Seat:
    """One resident. `busy`: it has a lease or a turn; `since` (monotonic seconds): busy, idle, or told to
    park, from then on; `turn`: its last one; `obeys`: its harness knows the order to park; `lent`: somebody
    else has its seat, too."""

    since: float
    busy: bool = False
    parking: bool = False
    turn: int = 0
    obeys: bool = True
    lent: bool = False


@dataclass(slots=True)
class _Place:
    """One place in the line. Without a poll under way it lapses at `lapses_at`; before `pinned_until` it is
    that of a turn that no message waits for. `passed`: how many that came later were given a seat before."""

    number: int
    urgent: bool
    lapses_at: float
    pinned_until: float = 0.0
    passed: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """How many seats there are, are taken, are taken by someone at work, and how many agents wait for one."""

    cap: int
    taken: int
    busy: int
    waiting: int


@dataclass(slots=True)
class Residency:
    """The seats of one host. `ring(agent)`: let its waiting poll look again; `changed(agent)`: its being
    resident or waiting is another now; `look()`: `tick` is to be called, which tells when next. `to_park` are
    orders to be given, agent → its last turn."""

    cap: int
    clock: Callable[[], float]
    ring: Callable[[str], None]
    changed: Callable[[str], None]
    look: Callable[[], None]
    idle_s: float = IDLE_DEFAULT_S
    long_s: float = LONG_S
    to_park: dict[str, int] = field(default_factory=dict)
    _seats: dict[str, _Seat] = field(default_factory=dict)
    _line: dict[str, _Place] = field(default_factory=dict)
    _polls: dict[str, int] = field(default_factory=dict)
    _last_number: int = 0

    # ------------------------------------------------------------------------------------------- what is so
    def count(self) -> Count:
        """For people."""
        busy = sum(seat.busy for seat in self._seats.values())
        return Count(self.cap, len(self._seats), busy, len(self._line))

    def is_resident(self, agent: str) -> bool:
        """Whether it holds a seat."""
        return agent in self._seats

    def is_waiting(self, agent: str) -> bool:
        """Whether it would work if it had a seat."""
        return agent in self._line

    # ------------------------------------------------------------------------------------- what agents want
    def ask(self, agent: str, *, urgent: bool) -> bool:
        """Whether the agent may be given work now; it then holds a seat and counts as busy. If not, it waits
        in line, and is rung when it may ask again."""
        seat = self._seats.get(agent)
        if seat is not None and not seat.parking:
            self._leave_line(agent)
            if not seat.busy:
                seat.busy, seat.since = True, self.clock()
            return True
        self._join_line(agent, urgent=urgent)
        if seat is None and agent in self._next(self._free()):
            self._sit_down(agent)
            return True
        self._balance()
        return False

    def withdraw(self, agent: str) -> None:
        """It wants no seat (any more)."""
        place = self._line.get(agent)
        if place is not None and place.pinned_until <= self.clock():
            self._leave_line(agent)
            self._balance()

    def ask_for_turn(self, agent: str) -> bool:
        """`ask` for a turn without messages. Who is refused asks again within `PIN_S`."""
        self._join_line(agent, urgent=False)
        self._line[agent].pinned_until = self.clock() + PIN_S
        return self.ask(agent, urgent=False)

    def poll_begins(self, agent: str) -> None:
        """A call of its harness waits for work: only such agents are given seats."""
        self._polls[agent] = self._polls.get(agent, 0) + 1

    def poll_ends(self, agent: str) -> None:
        """That call was answered, or its caller has gone."""
        left = self._polls.get(agent, 0) - 1
        if left > 0:
            self._polls[agent] = left
            return
        self._polls.pop(agent, None)
        if (place := self._line.get(agent)) is not None:
            place.lapses_at = self.clock() + PLACE_S
            self._balance()  # whoever is behind need not wait for it
            self.look()

    # --------------------------------------------------------------------------------- what became of them
    def busy(self, agent: str, turn: int = 0) -> None:
        """It has a lease or a turn, however it came to it: its harness is about to run a CLI, or does."""
        seat = self._seats.get(agent)
        if seat is None:
            seat = self._seats[agent] = _Seat(self.clock())
            self.changed(agent)
        if not seat.busy:
            seat.busy, seat.since = True, self.clock()
        seat.parking, seat.turn = False, max(seat.turn, turn)
        self.to_park.pop(agent, None)
        self._leave_line(agent)

    def rest(self, agent: str) -> None:
        """It has neither lease nor turn any more; its CLI stays until somebody needs the seat."""
        seat = self._seats.get(agent)
        if seat is not None and seat.busy:
            seat.busy, seat.since = False, self.clock()
            if seat.lent:
                self._park(agent, seat)
            self._balance()
            self.look()

    def greeted(self, agent: str, resident: bool | None, *, busy: bool, last_turn: int = 0) -> None:
        """A harness process said hello, and whether it has a CLI (None: it is of an older release, does not
        say so and cannot be told to park). `last_turn`: an order to park must be later than that."""
        if busy:
            self.busy(agent)
        elif resident:
            is_over = agent not in self._seats and self._free() <= 0
            claimed = self._seats.setdefault(agent, _Seat(self.clock(), turn=last_turn))
            self.rest(agent)
            if is_over:  # that it has one is its own word, which takes no seat from those that wait
                claimed.lent = True
                self._park(agent, claimed)
        else:
            self._stand_up(agent)
        if (seat := self._seats.get(agent)) is not None:
            seat.obeys = resident is not None
        self.changed(agent)
        self._balance()

    def parked(self, agent: str) -> None:
        """Its harness has ended the CLI. Nothing if it was given work meanwhile."""
        seat = self._seats.get(agent)
        if seat is not None and not seat.busy:
            self._stand_up(agent)
            self._balance()

    def gone(self, agent: str) -> None:
        """Its harness is no more."""
        self._leave_line(agent)
        self._stand_up(agent)
        self._balance()

    def tick(self) -> float | None:
        """What follows from time alone: long idle CLIs are ended, orders that were not obeyed and places that
        lapsed are forgotten. Seconds until the next such thing, None if there is none."""
        now = self.clock()
        for agent, place in list(self._line.items()):
            if place.lapses_at <= now and not self._is_there(agent):
                self._leave_line(agent)
        for agent, seat in list(self._seats.items()):
            if seat.parking and now - seat.since >= PARK_S:
                self._stand_up(agent)
            elif not (seat.busy or seat.parking) and now - seat.since >= self.idle_s:
                self._park(agent, seat)
            elif seat.busy and self._line and now - seat.since >= self.long_s:
                seat.lent = True
        self._balance()
        lapses = [place.lapses_at for name, place in self._line.items() if not self._is_there(name)]
        ends = [s.since + (PARK_S if s.parking else self.idle_s) for s in self._seats.values() if not s.busy]
        if self._line:
            ends += [s.since + self.long_s for s in self._seats.values() if s.busy and not s.lent]
        return max(0.05, min([*lapses, *ends]) - now) if lapses or ends else None

    # ------------------------------------------------------------------------------------------- inside
    def _free(self) -> int:
        return self.cap - sum(not seat.lent for seat in self._seats.values())

    def _is_there(self, agent: str) -> bool:
        """Whether somebody takes the seat at once if it is given to this agent of the line."""
        return agent in self._polls or self._line[agent].pinned_until > self.clock()

    def _join_line(self, agent: str, *, urgent: bool) -> None:
        place = self._line.get(agent)
        if place is not None and (self._is_there(agent) or place.lapses_at > self.clock()):
            place.urgent = place.urgent or urgent
            return
        self._last_number += 1
        self._line[agent] = _Place(self._last_number, urgent, self.clock() + PLACE_S)
        self.changed(agent)
        self.look()

    def _leave_line(self, agent: str) -> bool:
        left = self._line.pop(agent, None) is not None
        if left:
            self.changed(agent)
        return left

    def _next(self, count: int) -> list[str]:
        """The first `count` of the line, of those whose harness waits for an answer now and who could sit
        down: those that were passed too often, then urgent ones, then the others, each in order."""
        able = [name for name in self._line if self._is_there(name) and name not in self._seats]
        return sorted(able, key=self._rank)[:count]

    def _rank(self, agent: str) -> tuple[int, int]:
        place = self._line[agent]
        return (0 if place.passed >= BYPASS_MAX else 1 if place.urgent else 2), place.number

    def _sit_down(self, agent: str) -> None:
        taken = self._line.pop(agent)
        for name, place in self._line.items():
            if place.number < taken.number and self._is_there(name):
                place.passed += 1
        self._seats[agent] = _Seat(self.clock(), busy=True)
        self.changed(agent)

    def _stand_up(self, agent: str) -> None:
        self.to_park.pop(agent, None)
        if self._seats.pop(agent, None) is not None:
            self.changed(agent)

    def _park(self, agent: str, seat: _Seat) -> None:
        if not seat.obeys:
            self._stand_up(agent)
            return
        seat.parking, seat.since = True, self.clock()
        self.to_park[agent] = seat.turn
        self.look()

    def _balance(self) -> None:
        """Seats for those that wait: free ones, else those of the longest idle."""
        waiting = sum(self._is_there(name) for name in self._line)
        parking = sum(seat.parking and not seat.lent for seat in self._seats.values())
        idle = sorted(
            (seat.since, name) for name, seat in self._seats.items() if not seat.busy and not seat.parking
        )
        wanted = waiting - self._free() - parking
        for _, name in idle[: max(0, wanted)]:
            self._park(name, self._seats[name])
        if (free := self._free()) > 0:
            for name in self._next(free):
                self.ring(name)
