"""The pure parts of statistics: words of tools, what is counted of a turn and of the ledger, buckets,
sketches, metrics."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import OperatorError
from reconciler.model.instants import MICRO
from reconciler.stats import catalogue, exposition, reference, series, sketch
from reconciler.stats.catalogue import BY_NAME, KEYS, TOOLS_MAX, tool_word
from reconciler.stats.counting import (
    DURATIONS_S,
    EndedTurn,
    Levels,
    Row,
    Spent,
    exit_key,
    fold_tools,
    spent_rows,
    totals,
    turn_rows,
)  # fmt: skip
from reconciler.stats.series import Cell, Grid, Rows

NOW = 1_700_000_000 * MICRO
HOUR = 3600 * MICRO


# ------------------------------------------------------------------------------------------------ catalogue
def test_every_key_of_the_design_is_in_the_catalogue() -> None:
    wanted = [
        "turns_per_min",
        "tool_calls_per_turn",
        "turn_duration_p50",
        "turn_duration_p95",
        "exit_ok",
        "exit_compact_retry",
        "exit_failure",
        "inbox_depth",
        "inbox_depth_max",
        "approvals_pending",
        "since_last_turn",
        "notes_bytes",
        "tokens_in",
        "tokens_out",
        "tokens_cache_read",
        "tokens_cache_write",
        "usd",
        "context_used",
        "restarts",
        "rss",
    ]
    wanted += [
        f"{way}_per_turn_{who}"
        for way in ("sent", "received")
        for who in ("peer", "operator", "manager", "system")
    ]
    assert set(wanted) - set(BY_NAME) == set()


def test_the_page_is_made_from_the_catalogue() -> None:
    wanted = "python -m reconciler.stats.reference"
    text = reference.PAGE.read_text()
    assert text == reference.page(text), wanted
    for key in KEYS:
        assert f"| `{key.name}` |" in text


@given(st.text(max_size=200))
def test_whatever_a_container_calls_a_tool_its_key_is_a_short_word_that_is_no_other_key(told: str) -> None:
    key = f"tool_{tool_word(told)}"
    assert re.fullmatch(r"tool_[A-Za-z0-9_]{1,48}", key)
    assert key not in BY_NAME
    assert key != "tool_calls"
    assert tool_word(tool_word(told)) == tool_word(told), "a word stays itself"


@given(
    st.lists(st.tuples(st.text(max_size=12), st.integers(1, 9)), max_size=200),
    st.sets(st.text("ab", min_size=1)),
)
def test_no_agent_has_more_tools_than_allowed_and_no_call_is_lost(
    calls: list[tuple[str, int]], known: set[str]
) -> None:
    told: Counter[str] = Counter()
    for name, count in calls:
        told[name] += count
    known = set(sorted(known)[:TOOLS_MAX])
    folded = fold_tools(told, known)
    assert sum(folded.values()) == sum(told.values())
    assert len(set(folded) - {"other"} | known) <= TOOLS_MAX
    again = fold_tools(told, known | (set(folded) - {"other"}))
    assert again == folded, "counted again, it is the same"


def test_a_thousand_names_are_sixty_four_and_one() -> None:
    folded = fold_tools({f"tool{n}": 1000 - n for n in range(1000)}, known=[])
    assert len(folded) == TOOLS_MAX + 1
    assert folded["tool0"] == 1000, "those that are called most have the names"
    assert folded["other"] == sum(1000 - n for n in range(TOOLS_MAX, 1000))


@pytest.mark.parametrize(
    "keys", ["nothing", "usd,,nothing", "tool_", "tool_a b", "tool_calls", "usd;rss", "tool_" + "x" * 49]
)
def test_what_is_no_key_is_named(keys: str) -> None:
    with pytest.raises(OperatorError, match="there is no key"):
        catalogue.chosen(keys, [], of_agent=True)


def test_keys_of_the_hive_are_of_no_agent() -> None:
    with pytest.raises(OperatorError, match="of the whole hive"):
        catalogue.chosen("approvals_pending", [], of_agent=True)
    assert "approvals_pending" not in [key.name for key in catalogue.chosen(None, [], of_agent=True)]
    names = [key.name for key in catalogue.chosen("rss, tool_*,usd", ["Bash"], of_agent=False)]
    assert names == ["rss", "tool_Bash", "usd"]


# ------------------------------------------------------------------------------------------------- counting
def test_a_turn_that_did_nothing_has_the_rows_that_make_it_a_turn() -> None:
    rows = turn_rows(EndedTurn(7, "scout", "ok", NOW, NOW), {})
    assert rows == [Row("scout", NOW, "exit_ok", 1, 7), Row("scout", NOW, "turn_duration", 0, 7)]


@pytest.mark.parametrize(
    ("outcome", "compacted", "key"),
    [
        ("ok", False, "exit_ok"),
        ("ok", True, "exit_compact_retry"),
        ("cancelled", False, "exit_cancelled"),
        ("crashed", False, "exit_failure"),
        ("prompt_too_long", True, "exit_failure"),
        ("an outcome of a later version", False, "exit_failure"),
    ],
)
def test_every_end_is_one_of_four(outcome: str, compacted: bool, key: str) -> None:
    assert exit_key(outcome, compacted=compacted) == key


def test_a_clock_that_went_back_gives_no_negative_duration() -> None:
    [row] = [r for r in turn_rows(EndedTurn(1, "a", "ok", NOW + 5, NOW), {}) if r.key == "turn_duration"]
    assert row.value == 0


def test_what_was_spent_yesterday_is_of_yesterday_and_a_new_ledger_takes_nothing_back() -> None:
    old = Spent("a", "2023-11-10", "haiku", 10, 0, 0, 0, 500_000)
    today = Spent("a", "2099-01-01", "haiku", 3, 1, 0, 0, 100)
    rows = {(r.key, r.ts): r.value for r in spent_rows([old, today], {}, NOW)}
    [yesterday] = {ts for _, ts in rows if ts != NOW}
    assert rows == {
        ("tokens_in", yesterday): 10, ("usd", yesterday): 0.5,
        ("tokens_in", NOW): 3, ("tokens_out", NOW): 1, ("usd", NOW): 0.0001,
    }  # fmt: skip
    assert 3 * 24 * HOUR < NOW - yesterday < 6 * 24 * HOUR
    counted = {("a", "2099-01-01", "haiku"): today._replace(input=50)}
    assert spent_rows([today], counted, NOW) == [], "what is less than before is no spending"


def test_a_level_is_written_when_it_changes_and_now_and_then() -> None:
    levels = Levels(every=900 * MICRO)

    def due(at_s: int, key: str, value: float) -> bool:
        return bool(levels.due([Row("a", at_s * MICRO, key, value)]))

    assert due(1000, "inbox_depth", 3)
    assert not due(1060, "inbox_depth", 3)
    assert due(1120, "inbox_depth", 4)
    assert not due(2019, "inbox_depth", 4)
    assert due(2020, "inbox_depth", 4)
    assert due(1000, "rss", 1600)
    assert not due(1060, "rss", 1700), "memory always moves a little"
    assert due(1120, "rss", 1701)


# --------------------------------------------------------------------------------------------------- sketch
@given(st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=200), st.sampled_from((0.5, 0.95)))
def test_a_percentile_of_a_sketch_is_within_one_percent_of_the_true_one(
    values: list[float], share: float
) -> None:
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    assert sketch.percentile(share, values, {}) == true
    half = len(values) // 2
    stored = sketch.loads(sketch.dumps(sketch.add(sketch.of(values[:half]), sketch.of(values[half:]))))
    found = sketch.percentile(share, [], stored)
    assert found is not None
    assert found == pytest.approx(true, rel=0.0101)


def test_percentiles_of_nothing_are_nothing_and_of_zeros_zero() -> None:
    assert sketch.percentile(0.5, [], {}) is None
    assert sketch.percentile(0.95, [], sketch.of([0.0, 0.0])) == 0


# ---------------------------------------------------------------------------------------------------- series
@given(
    st.integers(1, 40 * 365 * 86_400), st.integers(1, series.SPAN_MAX_S), st.integers(2, 500), st.booleans()
)
def test_a_grid_covers_the_span_within_the_points_at_even_places(
    begin_s: int, length_s: int, points: int, rolled: bool
) -> None:
    since, until = begin_s * MICRO, (begin_s + length_s) * MICRO
    grid = series.grid(since, until, points, hours_before=until if rolled else 0)
    assert grid.begin <= since < grid.begin + grid.width
    assert grid.until == until
    assert 1 <= grid.count <= points
    assert grid.end(grid.count - 1) == until
    if grid.count > 1:
        assert grid.begin % grid.width == 0
        assert not rolled or grid.width % HOUR == 0


def test_one_point_is_the_span_as_it_is() -> None:
    assert series.grid(NOW, NOW + 7 * MICRO, 1, hours_before=0) == Grid(NOW, NOW + 7 * MICRO, 7 * MICRO)


@pytest.mark.parametrize(
    ("since", "until"), [("0s", "0s"), ("1h", "2h"), ("30000d", "1h"), ("2w", "2026-01-01T00:00:00Z")]
)
def test_a_span_of_nothing_or_of_for_ever_is_refused(since: str, until: str) -> None:
    begin, end = series.instant(since, NOW, "since"), series.instant(until, NOW, "until")
    if since == "2w":
        assert series.grid(begin, end, 10, hours_before=0).count <= 10
        return
    with pytest.raises(OperatorError, match="since"):
        series.grid(begin, end, 10, hours_before=0)


@pytest.mark.parametrize("text", ["", "yesterday", "24", "1y", "-1h", "2026-01-31T12:00:00", "9999999d"])
def test_what_is_no_instant_is_named(text: str) -> None:
    with pytest.raises(OperatorError, match=r"since: .* is no instant"):
        series.instant(text, NOW, "since")


def _level(values: dict[int, float], earlier: tuple[int, float] | None = None) -> Rows:
    cells = {("a", "inbox_depth", n): Cell(1, v, v, v, NOW + n * HOUR + 1) for n, v in values.items()}
    return Rows(cells, {("a", "inbox_depth"): earlier} if earlier else {})


def test_a_level_holds_until_nobody_has_seen_it_for_long() -> None:
    grid = Grid(NOW, NOW + 4 * HOUR, HOUR)
    depth, most = BY_NAME["inbox_depth"], BY_NAME["inbox_depth_max"]
    rows = _level({1: 5.0}, (NOW - 60 * MICRO, 9.0))
    assert series.values(depth, ["a"], rows, grid) == [None, 5.0, None, None]
    assert series.values(most, ["a"], rows, grid) == [9.0, 5.0, None, None]
    fine = Grid(NOW, NOW + 40 * 60 * MICRO, 10 * 60 * MICRO)
    assert series.values(depth, ["a"], _level({}, (NOW - 1, 9.0)), fine) == [9.0, 9.0, None, None]
    assert series.values(depth, ["a", "b"], _level({0: 2.0}), Grid(NOW, NOW + HOUR, HOUR)) == [2.0]


def test_since_the_last_turn_grows_until_the_next_and_is_unknown_before_the_first() -> None:
    grid = Grid(NOW, NOW + 3 * HOUR, HOUR)
    cells = {("a", "turn_duration", 1): Cell(1, 5, 5, 5, NOW + HOUR + 60 * MICRO, [5.0])}
    found = series.values(BY_NAME["since_last_turn"], ["a"], Rows(cells, {}), grid)
    assert found == [None, 3540.0, 7140.0]
    both = Rows(cells, {("b", "turn_duration"): (NOW - HOUR, 1.0)})
    assert series.values(BY_NAME["since_last_turn"], ["a", "b"], both, grid) == [7200.0, 3540.0, 7140.0]


def test_a_rate_is_by_the_length_that_the_last_bucket_really_has() -> None:
    grid = Grid(NOW, NOW + 90 * 60 * MICRO, HOUR)
    cells = {("a", "turn_duration", n): Cell(6, 6, 1, 1, NOW + n * HOUR) for n in (0, 1)}
    assert series.values(BY_NAME["turns_per_min"], ["a"], Rows(cells, {}), grid) == [0.1, 0.2]


# --------------------------------------------------------------------------------------------------- metrics
def test_metrics_are_whole_from_the_first_moment_and_bounded() -> None:
    chance = random.Random(1)
    rows = [
        row
        for n in range(50)
        for row in turn_rows(
            EndedTurn(n, "a", "ok", NOW, NOW + chance.randrange(5000 * MICRO)), {"Bash": 2, "other": 1}
        )
    ]
    sums: dict[str, dict[str, float]] = {}
    for (agent, key), value in totals(rows).items():
        sums.setdefault(agent, {})[key] = value
    found = exposition.metrics(
        ["a", "new"], sums, {("a", "rss"): (NOW, 5.0), ("new", "rss"): (NOW - HOUR, 5.0)},
        pending=2, depths={"a": 3}, now=NOW,
    )  # fmt: skip
    by_name = {metric.name: metric for metric in found}
    assert all(re.fullmatch(r"hyperhive_[a-z_]+", name) for name in by_name)
    assert all((metric.kind == "counter") == name.endswith("_total") for name, metric in by_name.items())
    samples = by_name["hyperhive_turns_total"].samples
    turns = {(s.labels["agent"], s.labels["outcome"]): s.value for s in samples}
    assert turns["a", "ok"] == 50
    assert sum(turns.values()) == 50
    assert len(turns) == 8, "an absent series would mean broken, not quiet"
    histogram = [s for s in by_name["hyperhive_turn_duration_seconds"].samples if s.labels["agent"] == "a"]
    edges = [s.value for s in histogram if s.suffix == "_bucket"]
    assert edges == sorted(edges)
    assert len(edges) == len(DURATIONS_S) + 1
    assert edges[-1] == 50
    assert [s.value for s in histogram if s.suffix == "_count"] == [50]
    assert {s.labels["tool"] for s in by_name["hyperhive_tool_calls_total"].samples} == {"Bash", "other"}
    assert [s.labels["agent"] for s in by_name["hyperhive_memory_bytes"].samples] == ["a"], "not of long ago"
