"""Many values in a few counts: bins whose edges grow by 2 %, so that a percentile read from them is wrong by
1 % at most. Sketches add up. Pure.

A sketch is a mapping from the number of a bin to how many values lie in it; zero and less have the bin
`ZERO`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping

GROWTH = 1.02
ZERO = -100_000
_LOG = math.log(GROWTH)
_SMALLEST = 1e-6

Sketch = Mapping[int, int]


def bin_of(value: float) -> int:
    """The bin of a value."""
    return ZERO if value < _SMALLEST else math.ceil(math.log(value) / _LOG - 1e-9)


def middle(number: int) -> float:
    """The value that stands for a bin: within 1 % of all that lie in it."""
    return 0.0 if number == ZERO else 2 * GROWTH**number / (1 + GROWTH)


def of(values: Iterable[float]) -> Sketch:
    """The sketch of these values."""
    return Counter(bin_of(value) for value in values)


def dumps(sketch: Sketch) -> str:
    """As a database keeps it."""
    return json.dumps(dict(sorted(sketch.items())), separators=(",", ":"))


def loads(text: str) -> Sketch:
    """The reverse; empty text is an empty sketch."""
    return {int(number): int(count) for number, count in json.loads(text).items()} if text else {}


def add(*sketches: Sketch) -> Sketch:
    """As if their values had been one list."""
    total: Counter[int] = Counter()
    for sketch in sketches:
        total.update(sketch)
    return total


def percentile(share: float, values: Iterable[float], sketch: Sketch) -> float | None:
    """The smallest value such that `share` (0 to 1) of all are no larger (nearest rank): exact while there
    are only `values`. None without any."""
    weighted = [(value, 1) for value in values] + [(middle(n), count) for n, count in sketch.items()]
    weighted.sort()
    rank = math.ceil(share * sum(count for _, count in weighted))
    for value, count in weighted:
        rank -= count
        if rank <= 0:
            return value
    return None
