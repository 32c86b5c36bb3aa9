"""The link and the turn loop against a played host on a real unix socket; the session is played, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from harness.buffer import Emit
from harness.link import HostAway, Link, LinkError, Refused
from harness.outcomes import Facts, Verdict
from harness.turn import Orders, TurnLoop
from harness.wire import Agents, Directive, Done, EndTurn, Nap, Napping, Proposed, SendMessage, Sent, Welcome
from tests.fakes.agenthost import FakeHost, Refusal, welcome
from tests.fakes.session import GOOD, TOO_LONG, FakeBetween, FakeSession, compacts, well

pytestmark = pytest.mark.asyncio

BOOT = "0123456789abcdef" * 2


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    played = FakeHost(tmp_path, welcome())
    await played.start()
    yield played
    await played.stop()


@contextlib.asynccontextmanager
async def linked(host: FakeHost, heard: Callable[[Welcome], None] = lambda _: None) -> AsyncIterator[Link]:
    """A link that has said hello, with pauses that take no time."""
    link = Link(host.path, BOOT, host.told, on_welcome=heard, sleep=_no_pause)
    try:
        await link.hello()
        yield link
    finally:
        await link.close()


async def _no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


class Running:
    """A turn loop at work."""

    def __init__(self, host: FakeHost, link: Link, session: FakeSession, idle_park_s: float) -> None:
        self.session = session
        self.between = FakeBetween()
        self.orders = Orders()
        self.loop = TurnLoop(
            link, session, self.between, self.orders, agent="scout", idle_park_s=idle_park_s, sleep=_no_pause
        )


@contextlib.asynccontextmanager
async def looping(
    host: FakeHost, session: FakeSession, *, idle_park_s: float = 900.0
) -> AsyncIterator[Running]:
    holder: list[Running] = []
    async with linked(host, lambda told: holder[0].orders.heard_welcome(told) if holder else None) as link:
        running = Running(host, link, session, idle_park_s)
        holder.append(running)
        task = asyncio.create_task(running.loop.run())
        try:
            yield running
        finally:
            task.cancel()
            await asyncio.wait([task])


# -------------------------------------------------------------------------------------------------- link


async def test_a_host_that_does_not_know_us_any_more_gets_a_hello_and_then_the_call(host: FakeHost) -> None:
    heard: list[Welcome] = []
    async with linked(host, heard.append) as link:
        link.enter_turn(5)
        await host.stop()
        await host.start()
        host.told = welcome(model="opus")
        assert (await link.get("agents", Agents)).agents == []
        assert host.hellos[-1].turn == 5
        assert [told.model for told in heard] == ["claude-sonnet-5", "opus"]


async def test_a_call_that_may_be_repeated_waits_for_the_host_to_come_back(host: FakeHost) -> None:
    async with linked(host) as link:
        await host.stop()
        call = asyncio.create_task(link.post("nap", Nap(seconds=5), Napping))
        await host.start()
        assert (await call).ok


async def test_a_call_that_may_not_be_repeated_tells_that_its_effect_is_unknown(host: FakeHost) -> None:
    async with linked(host) as link:
        host.lose_answers_to = {"agents/{name}/{verb}"}
        with pytest.raises(HostAway, match="is unknown"):
            await link.post("agents/smith/restart", None, Done, repeatable=False)
        assert host.calls == [("restart", "smith")]


async def test_a_lost_answer_to_a_message_does_not_send_it_twice(host: FakeHost) -> None:
    async with linked(host) as link:
        host.lose_answers_to = {"messages"}
        message = SendMessage(to="operator", body="once", key="k" * 16)
        assert (await link.post("messages", message, Sent)).ids == [1]
        assert len(host.sent) == 1


async def test_a_call_with_a_deadline_gives_up_in_words(host: FakeHost) -> None:
    async with linked(host) as link:
        await host.stop()
        with pytest.raises(HostAway, match="does not answer"):
            await link.get("agents", Agents, deadline_s=0.1)


async def test_a_refusal_carries_code_message_and_hint(host: FakeHost) -> None:
    async with linked(host) as link:
        host.refuse["nap"] = Refusal(409, "conflict", "not now", "later")
        with pytest.raises(Refused) as refused:
            await link.post("nap", Nap(seconds=5), Napping)
        assert (refused.value.code, refused.value.message, refused.value.hint) == (
            "conflict",
            "not now",
            "later",
        )
        assert str(refused.value) == "not now (later)"


async def test_a_busy_host_is_asked_again(host: FakeHost) -> None:
    async with linked(host) as link:
        host.refuse["nap"] = Refusal(503, "busy", "too much")
        call = asyncio.create_task(link.post("nap", Nap(seconds=5), Napping))
        await host.until(lambda: host.asked["nap"] > 2)
        assert not call.done()
        host.refuse.clear()
        assert (await call).ok


async def test_bytes_are_uploaded_plain_or_as_a_form(host: FakeHost) -> None:
    async with linked(host) as link:
        await link.upload("proposals", {"bundle": b"abc"}, Proposed, {"agent": "scout", "commit": "c"})
        await link.upload("drafts/scribe/commit", {"bundle": b"x", "state": b"y"}, Proposed, {"commit": "c"})
        assert host.calls[0] == ("proposals", ({"agent": "scout", "commit": "c"}, b"abc"))
        assert host.calls[1][1] == ("scribe", {"commit": "c"}, {"bundle": b"x", "state": b"y"})


async def test_an_answer_of_another_shape_is_an_error_that_says_where(host: FakeHost) -> None:
    async with linked(host) as link:
        with pytest.raises(LinkError, match="is no Done"):
            await link.get("agents", Done)


async def test_further_messages_need_an_open_turn_and_their_leases_are_named_at_its_end(
    host: FakeHost,
) -> None:
    async with linked(host) as link:
        with pytest.raises(Refused, match="no turn"):
            await link.more(0, 10)
        begun = await link.begin_turn(None, "k" * 16)
        link.enter_turn(begun.turn)
        await host.deliver("more")
        inbox = await link.more(0, 10)
        assert [message.body for message in inbox.messages] == ["more"]
        await link.end_turn(begun.turn, Verdict("ok"))
        end = host.turns[1].end
        assert isinstance(end, EndTurn)
        assert end.leases == [inbox.lease]
        assert host.acked == [1]


# -------------------------------------------------------------------------------------------------- loop


async def test_every_message_is_acked_by_the_turn_that_ended_well(host: FakeHost) -> None:
    async with looping(host, FakeSession()) as running:
        await host.deliver("one")
        await host.ended(1)
        await host.deliver("two")
        turn = await host.ended(2)
        assert host.acked == [1, 2]
        assert "| two" in running.session.prompts[1]
        assert [event.kind for event in turn.events.values()] == ["prompt", "text"]
        assert ("model", "claude-sonnet-5") in running.between.asked


async def test_a_failed_turn_returns_its_messages_which_come_again(host: FakeHost) -> None:
    async def crash(_emit: Emit) -> Facts:
        return Facts(None, gone="killed")

    async with looping(host, FakeSession(crash)) as running:
        await host.deliver("one")
        await host.ended(2)
        assert host.turns[1].end is not None
        assert host.turns[1].end.outcome == "crashed"
        assert host.acked == [1]
        assert "redelivered" in running.session.prompts[1]


async def test_a_bug_in_a_turn_is_a_crash_of_the_turn_and_not_of_the_harness(host: FakeHost) -> None:
    async def bug(_emit: Emit) -> Facts:
        raise RuntimeError("oops")

    async with looping(host, FakeSession(bug)):
        await host.deliver("one")
        await host.ended(2)
        assert host.turns[1].end is not None
        assert "RuntimeError: oops" in host.turns[1].end.error
        assert host.acked == [1]


async def test_a_cancel_of_this_turn_interrupts_and_one_of_another_does_not(host: FakeHost) -> None:
    session = FakeSession()
    session.plays = [session.until_interrupted]
    async with looping(host, session) as running:
        await host.deliver("one")
        await host.until(lambda: session.prompts)
        await running.loop.obey(Directive(id=1, kind="cancel", data={"turn": 99}))
        assert not session.interrupted.is_set()
        await running.loop.obey(Directive(id=2, kind="cancel", data={"turn": 1}))
        turn = await host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "cancelled"
        assert host.acked == [1]


async def test_orders_wait_for_the_end_of_the_turn(host: FakeHost) -> None:
    session = FakeSession()
    session.plays = [session.until_interrupted]
    async with looping(host, session) as running:
        await host.deliver("one")
        await host.until(lambda: session.prompts)
        running.between.asked.clear()
        for number, kind in enumerate(("session", "repos", "spec"), 1):
            order = {"id": number, "kind": kind, "data": {"session_id": "new"}}
            await running.loop.obey(Directive.model_validate(order))
        assert running.between.asked == []
        host.told = welcome(model="opus")
        await session.interrupt()
        await host.until(lambda: len(running.between.asked) >= 3)
        assert running.between.asked == [("session", "new"), ("welcome", "opus"), ("repos", "")]


async def test_a_full_context_is_compacted_in_a_turn_of_its_own(host: FakeHost) -> None:
    session = FakeSession()

    async def fills(emit: Emit) -> Facts:
        session.context = (80, 100)
        return GOOD

    session.plays = [fills]
    async with looping(host, session):
        await host.deliver("one")
        turn = await host.ended(2)
        assert turn.lease is None
        assert session.prompts[1] == "/compact"
        await host.deliver("two")
        await host.ended(3)
        assert len(session.prompts) == 3


async def test_a_prompt_that_is_too_long_is_tried_once_more_after_compacting(host: FakeHost) -> None:
    async def too_long(_emit: Emit) -> Facts:
        return TOO_LONG

    async with looping(host, FakeSession(too_long, compacts, well)) as running:
        await host.deliver("one")
        turn = await host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "ok"
        assert [prompt[:10] for prompt in running.session.prompts] == ["hyperhive:", "/compact", "hyperhive:"]


async def test_a_prompt_that_stays_too_long_ends_the_turn_and_says_what_helps(host: FakeHost) -> None:
    async def too_long(_emit: Emit) -> Facts:
        return TOO_LONG

    async with looping(host, FakeSession(too_long, compacts, too_long)) as running:
        await host.deliver("one")
        turn = await host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "prompt_too_long"
        assert "/new-session" in turn.end.error
        assert len(running.session.prompts) == 3, "one retry, and no more"
        assert host.queued or host.leases, "the message is kept"


async def test_a_prompt_is_not_tried_again_when_nothing_was_summed_up(host: FakeHost) -> None:
    async def too_long(_emit: Emit) -> Facts:
        return TOO_LONG

    async def fails(emit: Emit) -> Facts:
        emit("compaction", {"before_tokens": 9})
        emit("compaction", {"before_tokens": 9, "error": "API Error: 400 no"})
        return GOOD  # as the CLI does it

    async with looping(host, FakeSession(too_long, fails)) as running:
        await host.deliver("one")
        turn = await host.ended(1)
        assert turn.end is not None
        assert turn.end.outcome == "prompt_too_long"
        assert running.session.prompts[1:2] == ["/compact"]


async def test_an_order_to_park_ends_the_cli_between_turns_and_tells_so(host: FakeHost) -> None:
    async with looping(host, FakeSession()) as running:
        await host.deliver("one")
        await host.ended(1)
        await host.until(lambda: not host.leases)
        await running.loop.obey(Directive(id=1, kind="park", data={"after": 1}))
        await host.until(lambda: ("parked", None) in host.calls)
        assert not running.session.is_open
        await host.deliver("two")
        await host.ended(2)
        await running.loop.obey(Directive(id=2, kind="park", data={"after": 1}))
        await host.deliver("three")
        await host.ended(3)
        assert running.session.closed == 1, "an order of before that turn is no order any more"


async def test_notes_that_outgrow_their_limit_are_rewritten_in_a_turn_of_their_own(host: FakeHost) -> None:
    async with looping(host, FakeSession()) as running:
        running.between.notes_due = True
        await host.deliver("one")
        turn = await host.ended(2)
        assert (turn.purpose, turn.lease) == ("notes", None)
        assert turn.of("notes") == [{"before_bytes": 9, "after_bytes": 5}]
        await host.until(lambda: ("parked", None) in host.calls)
        assert running.session.closed == 1, "there is never more than one CLI"


async def test_a_message_that_follows_an_order_finds_it_carried_out(host: FakeHost) -> None:
    async with looping(host, FakeSession()) as running:
        await host.deliver("one")
        await host.ended(1)
        running.loop.orders.session_id = "fresh"  # taken, and the loop not woken yet
        await host.deliver("two")
        await host.ended(2)
        assert ("session", "fresh") in running.between.asked[
            : running.between.asked.index(("model", "claude-sonnet-5"), 1)
        ]


async def test_a_lease_that_the_host_forgot_is_not_worked_on(host: FakeHost) -> None:
    host.refuse["turns"] = Refusal(409, "conflict", "that lease is over")
    async with looping(host, FakeSession()) as running:
        await host.deliver("one")
        await host.until(lambda: host.queued and host.queued[0].redelivered)
        assert running.session.prompts == []
        host.refuse.clear()
        await host.ended(1)
        assert len(running.session.prompts) == 1


async def test_events_go_out_while_the_turn_is_going_on(host: FakeHost) -> None:
    session = FakeSession()

    async def talks(emit: Emit) -> Facts:
        emit("text", {"text": "at work"})
        return await session.until_interrupted(emit)

    session.plays = [talks]
    async with looping(host, session):
        await host.deliver("one")
        await host.until(lambda: host.turns and host.turns[1].of("text"))
        assert host.turns[1].end is None
        await session.interrupt()
        await host.ended(1)


async def test_events_that_the_host_refuses_do_not_hold_up_the_end(host: FakeHost) -> None:
    host.refuse["turns/{id}/events"] = Refusal(400, "invalid", "no")
    async with looping(host, FakeSession()):
        await host.deliver("one")
        turn = await host.ended(1)
        assert turn.events == {}
        assert host.acked == [1]


async def test_an_idle_session_is_closed(host: FakeHost) -> None:
    async with looping(host, FakeSession(), idle_park_s=0.05) as running:
        await host.deliver("one")
        await host.ended(1)
        await host.until(lambda: running.session.closed)
        assert not running.session.is_open


async def test_a_stop_interrupts_the_turn_and_tells_that_it_crashed(host: FakeHost) -> None:
    session = FakeSession()
    session.plays = [session.until_interrupted]
    async with looping(host, session) as running:
        await host.deliver("one")
        await host.until(lambda: session.prompts)
        await running.loop.stop()
        end = host.turns[1].end
        assert end is not None
        assert (end.outcome, end.error) == ("crashed", "the container was stopped during the turn")
        await host.deliver("two")
        assert len(host.turns) == 1, "no new turn is begun"
