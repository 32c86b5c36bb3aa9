"""Answers made of rows: spans, buckets, and the value of each bucket by the key's aggregate. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.errors import OperatorError
from reconciler.model.instants import MICRO, parse_stamp
from reconciler.stats import sketch as sketches
from reconciler.stats.catalogue import Across, Aggregate, Key

HOUR = 3600 * MICRO
CARRY = 2 * 900 * MICRO
"""How old the last value of a level may be to hold still (levels that do not change are written every 15
minutes)."""

LADDER_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 2 * 3600, 4 * 3600, 6 * 3600, 12 * 3600),
    *(86_400, 2 * 86_400, 7 * 86_400, 14 * 86_400, 28 * 86_400, 91 * 86_400, 364 * 86_400),
)
SPAN_MAX_S = 10 * 366 * 86_400
_AGO = re.compile(r"([0-9]{1,6})(s|min|m|h|d|w)")
_UNITS_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

EVERYBODY = "*"
"""Stands for the agent where rows of all agents were read as if they were one's."""

Place = tuple[str, str, int]
"""Agent, key of rows, number of the bucket."""


@dataclass(slots=True)
class Cell:
    """What is known of the rows of one bucket. `values` and `sketch` only where a percentile is asked for."""

    count: int = 0
    sum: float = 0.0
    high: float = -math.inf
    last: float = 0.0
    last_ts: int = 0
    values: list[float] = field(default_factory=list)
    sketch: dict[int, int] = field(default_factory=dict)

    def take(self, value: float, ts: int) -> None:
        """One row more."""
        self.add(Cell(1, value, value, value, ts, [value]))

    def add(self, other: Cell) -> None:
        """The rows of another one, too."""
        self.count += other.count
        self.sum += other.sum
        self.high = max(self.high, other.high)
        if other.last_ts >= self.last_ts:
            self.last, self.last_ts = other.last, other.last_ts
        self.values += other.values
        if other.sketch:
            self.sketch = dict(sketches.add(self.sketch, other.sketch))


@dataclass(frozen=True, slots=True)
class Grid:
    """Buckets in microseconds: bucket n begins at `begin + n * width`; the last one ends at `until`."""

    begin: int
    until: int
    width: int

    @property
    def count(self) -> int:
        """How many."""
        return -(-(self.until - self.begin) // self.width)

    def end(self, number: int) -> int:
        """Where a bucket ends."""
        return min(self.until, self.begin + (number + 1) * self.width)

    @property
    def whole(self) -> Grid:
        """All of it as one bucket."""
        return Grid(self.begin, self.until, self.until - self.begin)


def instant(text: str, now: int, name: str) -> int:
    """A parameter: an RFC 3339 instant, or how long ago (`90s`, `15min`, `24h`, `7d`, `2w`), as
    microseconds."""
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _UNITS_S[match[2]] * MICRO
    try:
        return parse_stamp(text[:64])
    except (ValueError, OverflowError) as error:
        raise OperatorError(
            f"{name}: {text[:60]!r} is no instant", hint="as 24h, 7d, or 2026-01-31T12:00:00Z"
        ) from error


def grid(since: int, until: int, points: int, *, hours_before: int) -> Grid:
    """Buckets of a handy width, `points` of them at most, at multiples of it, so that two answers a moment
    apart have the same; one point: the span as it is. What was rolled up (before `hours_before`) has no finer
    bucket than an hour. `OperatorError` if there is nothing between the two instants."""
    if until - since < MICRO:
        raise OperatorError("since: it must lie at least a second before until")
    if until - since > SPAN_MAX_S * MICRO:
        raise OperatorError("since: that is longer than ten years ago")
    rolled = since < hours_before
    if points == 1:
        begin = since // HOUR * HOUR if rolled else since
        return Grid(begin, until, until - begin)
    for seconds in LADDER_S:
        width = seconds * MICRO
        if rolled and width < HOUR:
            continue
        found = Grid(since // width * width, until, width)
        if found.count <= points:
            return found
    return Grid(since, until, until - since)


Earlier = Mapping[tuple[str, str], tuple[int, float]]


def with_latest(earlier: Earlier, key: str) -> Earlier:
    """With the last row of any agent as everybody's."""
    found = [row for (_, of), row in earlier.items() if of == key]
    return {**earlier, (EVERYBODY, key): max(found)} if found else earlier


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read for one grid. `earlier`: the last row before it by agent and key."""

    cells: Mapping[Place, Cell]
    earlier: Earlier

    @property
    def merged(self) -> Rows:
        """All buckets as one."""
        found: dict[Place, Cell] = {}
        for (agent, key, _), cell in self.cells.items():
            found.setdefault((agent, key, 0), Cell()).add(cell)
        return Rows(found, self.earlier)

    def at(self, agents: Sequence[str], key: str, number: int) -> Cell:
        """The cell of all these agents together."""
        if len(agents) == 1:
            return self.cells.get((agents[0], key, number), _NOTHING)
        total = Cell()
        for agent in agents:
            if (cell := self.cells.get((agent, key, number))) is not None:
                total.add(cell)
        return total


_NOTHING = Cell()


def values(key: Key, agents: Sequence[str], rows: Rows, grid: Grid) -> list[float | None]:
    """One value for each bucket, of one agent or of many put together; None where there is none to tell."""
    match key.aggregate:
        case Aggregate.LAST | Aggregate.SINCE | Aggregate.MAX:
            each = [_levels(key, agent, rows, grid) for agent in agents]
            return [_across(key.across, [one[n] for one in each]) for n in range(grid.count)]
        case _:
            return [_added(key, agents, rows, grid, n) for n in range(grid.count)]


def _added(key: Key, agents: Sequence[str], rows: Rows, grid: Grid, number: int) -> float | None:
    cell = rows.at(agents, key.rows, number)
    match key.aggregate:
        case Aggregate.SUM:
            return cell.sum
        case Aggregate.PER_MINUTE:
            return cell.count / ((grid.end(number) - grid.begin - number * grid.width) / MICRO / 60)
        case Aggregate.PER_TURN:
            turns = rows.at(agents, "turn_duration", number).count
            return cell.sum / turns if turns else None
        case Aggregate.P50:
            return sketches.percentile(0.5, cell.values, cell.sketch)
        case _:
            return sketches.percentile(0.95, cell.values, cell.sketch)


def _levels(key: Key, agent: str, rows: Rows, grid: Grid) -> list[float | None]:
    at, value = rows.earlier.get((agent, key.rows), (None, 0.0))
    found: list[float | None] = []
    for number in range(grid.count):
        cell = rows.cells.get((agent, key.rows, number))
        held = value if at is not None and grid.begin + number * grid.width - at <= CARRY else None
        if cell is not None:
            at, value = cell.last_ts, cell.last
        end = grid.end(number)
        match key.aggregate:
            case Aggregate.SINCE:
                found.append(None if at is None else max(0, end - at) / MICRO)
            case Aggregate.MAX:
                # What held when the bucket began was so in it, too.
                highs = [held, None if cell is None else cell.high]
                found.append(_across(Across.MAX, highs))
            case _:
                found.append(value if at is not None and end - at <= max(CARRY, grid.width) else None)
    return found


def _across(across: Across, found: Sequence[float | None]) -> float | None:
    told = [value for value in found if value is not None]
    if not told:
        return None
    match across:
        case Across.MIN:
            return min(told)
        case Across.MAX:
            return max(told)
        case _:
            return sum(told)
