"""History and stream: every committed event once, in order, whoever dies or is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.broker import outbox
from reconciler.broker.events import EventLog
from reconciler.control import models as api
from reconciler.errors import PermanentError, TemporaryError
from reconciler.store import events as history
from reconciler.store import outbox as rows
from tests.support.brokers import World, until

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    yield world
    await world.close()


async def emit(world: World, *numbers: int) -> None:
    """One transaction that emits these."""
    async with world.store.state.transaction() as tx:
        for number in numbers:
            await tx.emit("tick", "smith", n=number)


async def take(stream: AsyncIterator[api.Event], count: int) -> list[api.Event]:
    return [await asyncio.wait_for(anext(stream), 5) for _ in range(count)]


def numbers(found: list[api.Event]) -> list[int]:
    return [event.data["n"] for event in found]


# ----------------------------------------------------------------------------------------------------- outbox
async def test_what_is_emitted_reaches_history_and_stream_in_order_and_leaves_the_outbox(
    world: World,
) -> None:
    async with world.running():
        stream = world.events.stream(after=0)
        await emit(world, 1, 2)
        await emit(world, 3)
        found = await take(stream, 3)
        assert numbers(found) == [1, 2, 3]
        assert [event.id for event in found] == sorted(event.id for event in found)
        await world.clock.asleep(at_least_s=outbox.SWEEP_S)
        world.clock.advance(outbox.SWEEP_S)
        await until(lambda: world.events.outbox._swept == 3)
        assert await world.scalar("SELECT COUNT(*) FROM outbox") == 0
        await stream.aclose()
    listed = await world.events.list(after=0, agent="smith", kind="tick", limit=10)
    assert numbers(listed.items) == [1, 2, 3]


async def test_a_transaction_that_is_rolled_back_tells_nothing(world: World) -> None:
    async def fail() -> None:
        async with world.store.state.transaction() as tx:
            await tx.emit("tick", "smith", n=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await emit(world, 2)
    await world.events.drain()
    assert numbers((await world.events.list(after=0, agent=None, kind=None, limit=10)).items) == [2]


async def test_a_death_between_the_copy_and_the_sweep_repeats_nothing(world: World) -> None:
    await emit(world, 1, 2)
    await world.events.drain()
    assert await world.scalar("SELECT COUNT(*) FROM outbox") == 2
    await world.restart()
    await emit(world, 3)
    await world.events.drain()
    listed = await world.events.list(after=0, agent=None, kind="tick", limit=10)
    assert numbers(listed.items) == [1, 2, 3]


async def test_a_restored_state_db_that_counts_its_outbox_again_loses_no_event(world: World) -> None:
    await emit(world, 1)
    await world.events.drain()
    async with world.store.state.transaction() as tx:
        await tx.run("DELETE FROM outbox")
        await tx.run("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'outbox'")
    world.clock.advance(1)
    await world.restart()
    await emit(world, 2)
    await world.events.drain()
    listed = await world.events.list(after=0, agent=None, kind="tick", limit=10)
    assert numbers(listed.items) == [1, 2]


async def test_many_events_are_copied_in_bounded_batches_and_swept_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BATCH", 10)
    await emit(world, *range(25))
    assert await world.events.outbox.copy_events() == 10
    assert await world.scalar("SELECT COUNT(*) FROM outbox") == 15
    await world.events.drain()
    assert (await world.events.last_id()) == 25


# ---------------------------------------------------------------------------------------------- other effects
async def put(world: World, kind: str, **data: Any) -> None:
    async with world.store.state.transaction() as tx:
        await rows.put(tx, kind, data)


async def test_an_effect_that_is_not_ready_holds_up_its_own_lane_only(world: World) -> None:
    done: list[tuple[str, int]] = []
    ready: set[str] = set()

    async def tag(data: dict[str, Any]) -> None:
        if data["agent"] not in ready:
            raise TemporaryError("its repository is busy", after_s=2.0)
        done.append((data["agent"], data["n"]))

    world.handlers["tag"] = tag
    ready.add("scout")
    for number in (1, 2):
        await put(world, "tag", agent="smith", n=number)
        await put(world, "tag", agent="scout", n=number)
    await emit(world, 1)
    assert await world.events.outbox.do_effects() == 2.0
    assert done == [("scout", 1), ("scout", 2)]
    await world.events.drain()
    assert numbers((await world.events.list(after=0, agent=None, kind="tick", limit=9)).items) == [1]
    ready.add("smith")
    assert await world.events.outbox.do_effects() == 2.0, "news do not shorten the back-off"
    world.clock.advance(2)
    assert await world.events.outbox.do_effects() is None
    assert done[2:] == [("smith", 1), ("smith", 2)]
    assert await world.scalar("SELECT COUNT(*) FROM outbox WHERE kind = 'tag'") == 0


async def test_the_delay_of_an_effect_that_keeps_failing_grows_to_a_bound(world: World) -> None:
    async def meta(_: dict[str, Any]) -> None:
        raise TemporaryError("not yet", after_s=0.1)

    world.handlers["meta"] = meta
    await put(world, "meta", agent="smith")
    delays = []
    for _ in range(9):
        delay_s = await world.events.outbox.do_effects()
        assert delay_s is not None
        delays.append(delay_s)
        world.clock.advance(delay_s)
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("error", [PermanentError("the tag is on another commit"), KeyError("a bug")])
async def test_an_effect_that_cannot_be_done_is_set_aside_told_and_tried_again_after_a_start(
    world: World, error: Exception
) -> None:
    done: list[int] = []
    broken = True

    async def tag(data: dict[str, Any]) -> None:
        if broken and data["n"] == 1:
            raise error
        done.append(data["n"])

    world.handlers["tag"] = tag
    await put(world, "tag", agent="smith", n=1)
    await put(world, "tag", agent="smith", n=2)
    await world.events.outbox.do_effects()
    assert done == [2]
    await world.events.drain()
    [told] = (await world.events.list(after=0, agent=None, kind="outbox.given_up", limit=9)).items
    assert told.data["lane"] == "tag/smith"
    broken = False
    await world.restart()
    async with world.running():
        await until(lambda: done == [2, 1])


async def test_an_effect_without_a_handler_and_one_that_hangs_hold_up_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "HANDLER_S", 0.01)

    async def hang(_: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    world.handlers["tag"] = hang
    await put(world, "tag", agent="smith")
    await put(world, "unheard-of", agent="smith")
    assert await world.events.outbox.do_effects() == 1.0
    assert await world.scalar("SELECT error FROM outbox WHERE kind = 'unheard-of'") != ""


# ----------------------------------------------------------------------------------------------------- stream
async def test_a_stream_replays_after_its_cursor_and_then_goes_on_live(world: World) -> None:
    ids = [await world.events.publish("tick", None, n=number) for number in range(3)]
    stream = world.events.stream(after=ids[0])
    assert numbers(await take(stream, 2)) == [1, 2]
    await world.events.publish("tick", None, n=3)
    assert numbers(await take(stream, 1)) == [3]
    await stream.aclose()
    assert world.events.hub.count == 0


async def test_a_stream_without_a_cursor_is_live_only(world: World) -> None:
    await world.events.publish("tick", None, n=0)
    stream = world.events.stream(after=None)
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: world.events.hub.count == 1)
    await world.events.publish("tick", None, n=1)
    assert (await asyncio.wait_for(waiting, 5)).data == {"n": 1}
    await stream.aclose()


async def test_readers_that_come_at_any_time_see_every_event_once_and_in_order(world: World) -> None:
    """Many writers of both kinds, readers that join and leave in between: no gap, no repeat, no disorder."""
    total = 120
    seen: list[list[int]] = []

    async def write(start: int) -> None:
        for number in range(start, start + total // 4):
            if number % 2:
                await world.events.publish("tick", "smith", n=number)
            else:
                await emit(world, number)

    async def read(join_at: int, leave_after: int) -> None:
        await until(lambda: world.events.hub.last >= join_at)
        cursor = 0
        got: list[int] = []
        while len(got) < total:  # leave and come back with the last id, as a browser does
            stream = world.events.stream(after=cursor)
            for event in await take(stream, min(leave_after, total - len(got))):
                got.append(event.id)
                cursor = event.id
            await stream.aclose()
        seen.append(got)

    async with world.running():
        await asyncio.gather(
            *(write(start) for start in range(0, total, total // 4)),
            *(read(join_at, leave_after) for join_at, leave_after in ((0, 7), (30, 120), (60, 1), (90, 33))),
        )
    assert await world.events.last_id() == total
    assert seen == [list(range(1, total + 1))] * 4


async def test_a_reader_that_is_too_slow_gets_a_resync_and_the_end(world: World) -> None:
    log = EventLog(world.store, world.clock, handlers={}, spending=nothing, queue_max=5)
    slow, quick = log.stream(after=0), log.stream(after=0)
    first = [asyncio.ensure_future(anext(stream)) for stream in (slow, quick)]
    await until(lambda: log.hub.count == 2)
    await log.publish("tick", None, n=0)
    await asyncio.gather(*first)
    for number in range(1, 8):
        await log.publish("tick", None, n=number)
        assert numbers(await take(quick, 1)) == [number]
    rest = [event async for event in slow]
    assert [(event.kind, event.id) for event in rest] == [("resync", 8)]
    assert log.hub.count == 1
    await quick.aclose()


async def nothing() -> list[api.Spending]:
    return []


async def test_a_reader_far_behind_gets_a_resync_and_the_last_events_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.broker.events.REPLAY_MAX", 3)
    for number in range(10):
        await world.events.publish("test.event", None, number=number)
    last = await world.events.last_id()
    stream = world.events.stream(after=0)
    found = [await anext(stream) for _ in range(4)]
    await stream.aclose()
    assert [event.kind for event in found] == ["resync", *["test.event"] * 3]
    assert [event.id for event in found[1:]] == [last - 2, last - 1, last]


@pytest.mark.parametrize("after", [2, 99], ids=["no longer kept", "of another database"])
async def test_a_cursor_that_history_does_not_know_gets_a_resync_first(world: World, after: int) -> None:
    for number in range(1, 6):
        await world.events.publish("tick", None, n=number)
    async with world.store.events.transaction() as tx:
        await tx.run("DELETE FROM events WHERE id <= 3")
    stream = world.events.stream(after=after)
    [first] = await take(stream, 1)
    assert (first.kind, first.id) == ("resync", 5)
    if after == 2:
        assert numbers(await take(stream, 2)) == [4, 5]
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: world.events.hub.count == 1)
    await world.events.publish("tick", None, n=6)
    assert (await asyncio.wait_for(waiting, 5)).data == {"n": 6}
    await stream.aclose()


async def test_streams_end_when_the_service_closes(world: World) -> None:
    stream = world.events.stream(after=0)
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: world.events.hub.count == 1)
    world.events.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, 5)
    assert [event async for event in world.events.stream(after=None)] == []


async def test_a_long_history_is_replayed_without_overflowing_the_live_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.broker.events.REPLAY_PAGE", 10)
    log = EventLog(world.store, world.clock, handlers={}, spending=nothing, queue_max=3)
    for number in range(35):
        await log.publish("tick", None, n=number)
    stream = log.stream(after=0)
    got = await take(stream, 30)
    for number in range(35, 45):  # more than the queue holds, while the reader is still in the past
        await log.publish("tick", None, n=number)
    got += await take(stream, 15)
    assert numbers(got) == list(range(45))
    await stream.aclose()


# ------------------------------------------------------------------------------------------ lists, build logs
async def test_lists_go_on_from_a_cursor_and_begin_with_the_newest_without_one(world: World) -> None:
    for number in range(5):
        await world.events.publish("tick" if number % 2 else "tock", "smith", n=number)
    newest = await world.events.list(after=None, agent=None, kind=None, limit=2)
    assert (numbers(newest.items), newest.next) == ([3, 4], newest.items[0].id)
    page = await world.events.list(after=0, agent="smith", kind="tock", limit=2)
    assert numbers(page.items) == [0, 2]
    rest = await world.events.list(after=page.next, agent="smith", kind="tock", limit=2)
    assert (numbers(rest.items), rest.next) == ([4], None)


async def test_a_build_log_is_bounded_read_after_a_cursor_and_announced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BUILD_LINES_MAX", 4)
    async with world.running():
        stream = world.events.stream(after=0)
        await world.events.append_build_log(7, ["one", "two", "x" * 5000 + "\udcff"])
        [event] = await take(stream, 1)
        await stream.aclose()
    first = await history.build_log(world.store.events, 7, 0, 2)
    assert [row["text"] for row in first] == ["one", "two"]
    [long] = await history.build_log(world.store.events, 7, first[-1]["id"], 10)
    assert len(long["text"]) == history.BUILD_LINE_MAX + 2
    assert (event.kind, event.data) == ("build.log", {"proposal": 7, "line": long["id"]})
    await world.events.append_build_log(7, ["four", "five"])
    await world.events.append_build_log(7, ["six"])
    texts = [row["text"] for row in await history.build_log(world.store.events, 7, long["id"], 10)]
    assert texts == ["four", "[the log is too long: the rest is left out]"]


async def test_that_a_turn_goes_on_is_listed_only_where_it_is_asked_for(world: World) -> None:
    for number in range(6):
        await world.events.publish("turn.event", "smith", turn=number)
        await world.events.publish("tick", "smith", number=number)
    plain = await world.events.list(after=None, agent=None, kind=None, limit=4)
    assert [event.kind for event in plain.items] == ["tick"] * 4
    older = await world.events.list(after=None, before=plain.next, agent=None, kind=None, limit=4)
    assert ([event.data["number"] for event in older.items], older.next) == ([0, 1], None)
    asked = [{"agent": "smith", "kind": None}, {"agent": None, "kind": "turn.event"}]
    for filters in asked:
        found = await world.events.list(after=0, limit=50, **filters)  # type: ignore[arg-type]
        assert "turn.event" in {event.kind for event in found.items}
    upwards = await world.events.list(after=0, agent=None, kind=None, limit=50)
    assert {event.kind for event in upwards.items} == {"tick"}
