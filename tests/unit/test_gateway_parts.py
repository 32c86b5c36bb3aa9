"""Prices, usage in streams, allowances, packets, addresses: the gateway's small parts."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import OperatorError
from reconciler.gateway.catalog import Catalog, Worst
from reconciler.gateway.credential import Credential, CredentialError
from reconciler.gateway.packets import PACKET_LIMIT_BYTES, Closed, Packets
from reconciler.gateway.places import Allowance
from reconciler.gateway.upstream import _parsed
from reconciler.gateway.usage import Meter, Usage, usage_of
from reconciler.model.spec import ALIASES

CATALOG = Catalog.load()
HAIKU = CATALOG.get("claude-haiku-5-5")
AMOUNTS = st.integers(0, 2_000_000)


# ---------------------------------------------------------------------------------------------- prices
def test_every_alias_of_the_spec_is_a_known_model() -> None:
    for alias in ALIASES:
        assert len(CATALOG.ids([alias])) == 1
        assert CATALOG.ids([f"{alias}[1m]"]) == CATALOG.ids([alias])
    assert CATALOG.ids(["gpt-5", "claude-opus-4-1", ""]) == frozenset()
    assert CATALOG.ids(["claude-opus-5"]) == {"claude-opus-5"}


def test_the_band_of_a_price_is_chosen_by_the_whole_prompt() -> None:
    assert HAIKU is not None
    below = CATALOG.cost(HAIKU, Usage(input=1, cache_read=99_999, output=1000))
    above = CATALOG.cost(HAIKU, Usage(input=2, cache_read=99_999, output=1000))
    assert below.usd_micro == -(-(100 + 99_999 * 10 + 1000 * 500) // 1000)
    assert above.usd_micro == -(-(2 * 500 + 99_999 * 50 + 1000 * 2500) // 1000)


def test_writing_to_the_cache_for_an_hour_and_searching_cost_more() -> None:
    sonnet = CATALOG.get("claude-sonnet-5-5")
    assert sonnet is not None
    assert CATALOG.cost(sonnet, Usage(cache_write=1_000_000)).usd_micro == 2_500_000
    assert CATALOG.cost(sonnet, Usage(cache_write=1_000_000, cache_write_1h=1_000_000)).usd_micro == 4_000_000
    assert CATALOG.cost(sonnet, Usage(web_searches=3)).usd_micro == 30_000


@given(AMOUNTS, AMOUNTS, AMOUNTS, st.integers(0, 128_000), st.booleans())
def test_the_worst_case_is_never_less_than_what_a_request_costs(
    fresh: int, read: int, written: int, output: int, hour: bool
) -> None:
    assert HAIKU is not None
    usage = Usage(fresh, output, read, written, written if hour else 0)
    worst = CATALOG.worst_cost(HAIKU, Worst(usage.prompt_tokens, output, hour))
    cost = CATALOG.cost(HAIKU, usage)
    assert worst.usd_micro >= cost.usd_micro
    assert worst.tokens.counted >= cost.tokens.counted


@given(st.integers(0, 300_000), st.integers(0, 128_000), st.integers(-10, 500_000), st.integers(-10, 500_000))
def test_the_output_that_a_budget_has_room_for_fits_and_one_more_does_not(
    prompt: int, output: int, usd_micro: int, tokens: int
) -> None:
    assert HAIKU is not None
    room = CATALOG.output_within(HAIKU, Worst(prompt, output, False), usd_micro=usd_micro, tokens=tokens)
    assert room <= output

    def fits(length: int) -> bool:
        worst = CATALOG.worst_cost(HAIKU, Worst(prompt, length, False))
        return worst.usd_micro <= usd_micro and worst.tokens.counted <= tokens

    if room >= 0:
        assert fits(room)
    if room < output:
        # the price of a token is not a whole number of micro-dollars, so a few more may still fit
        assert not fits(max(room, -1) + 3)


# ----------------------------------------------------------------------------------------------- usage
EVENTS = (
    {"type": "message_start", "message": {"usage": {
        "input_tokens": 3, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_1h_input_tokens": 200}, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"text": '\n"usage": message_stop {"usage": 7}'}},
    {"type": "message_delta", "usage": {"output_tokens": 60, "server_tool_use": {"web_search_requests": 2}}},
    {"type": "message_stop"},
)  # fmt: skip
STREAM = b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in EVENTS)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_usage_is_read_from_a_stream_in_pieces_of_any_size(cuts: list[int]) -> None:
    meter = Meter()
    places = [0, *sorted(cuts), len(STREAM)]
    for begin, end in itertools.pairwise(places):
        meter.feed(STREAM[begin:end])
    assert meter.finished
    assert meter.usage == Usage(3, 60, 40, 500, 200, 2)


@pytest.mark.parametrize("end", range(0, len(STREAM) - 3, 7))
def test_a_stream_that_is_cut_anywhere_is_not_finished(end: int) -> None:
    meter = Meter()
    meter.feed(STREAM[:end])
    assert not meter.finished


@given(st.binary(max_size=300))
def test_rubbish_is_no_usage_and_no_exception(rubbish: bytes) -> None:
    meter = Meter()
    meter.feed(b'data: {"usage"' + rubbish + b"\ndata: []\ndata: message_stop\n")
    meter.read_whole(rubbish)
    assert not meter.finished


def test_odd_numbers_count_as_absent() -> None:
    assert usage_of({"input_tokens": -1, "output_tokens": "9", "cache_read_input_tokens": True}) == Usage()
    assert usage_of([], Usage(input=5)) == Usage(input=5)


# ------------------------------------------------------------------------------------------ allowances
@pytest.mark.asyncio
async def test_whoever_waits_longest_is_served_first_even_if_a_small_one_would_fit() -> None:
    allowance = Allowance(3)
    order: list[str] = []

    async def take(name: str, amount: int) -> None:
        async with allowance.taking(amount):
            order.append(name)

    async with allowance.taking(2):
        large = asyncio.create_task(take("large", 3))
        await asyncio.sleep(0)
        small = asyncio.create_task(take("small", 1))
        await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(large, small)
    assert order == ["large", "small"]


@pytest.mark.asyncio
async def test_a_waiter_that_gives_up_leaves_nothing_taken() -> None:
    allowance = Allowance(1)
    async with allowance.taking(1):
        waiting = asyncio.create_task(allowance._take(1))
        await asyncio.sleep(0)
    waiting.cancel()  # in the very moment in which it was served
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1), allowance.taking(1):
        pass
    async with asyncio.timeout(1), allowance.taking(99):  # more than there is takes all there is
        pass


# --------------------------------------------------------------------------------------------- packets
@pytest.mark.asyncio
async def test_packets_keep_their_bounds_and_their_descriptors(tmp_path: Path) -> None:
    ends = [Packets(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    file = tmp_path / "file"
    file.write_text("content")
    with file.open() as opened:
        await ends[0].send(b"one")
        await ends[0].send(b"two", [opened.fileno()])
    assert await ends[1].receive() == (b"one", [])
    text, [fd] = await ends[1].receive()
    assert text == b"two"
    assert not os.get_inheritable(fd)
    with os.fdopen(fd) as received:
        assert received.read() == "content"
    with pytest.raises(ValueError, match="packet"):
        await ends[0].send(b"x" * (PACKET_LIMIT_BYTES + 1))
    ends[0].close()
    with pytest.raises(Closed):
        await ends[1].receive()
    ends[1].close()
    with pytest.raises(Closed):
        await ends[1].send(b"x")


@pytest.mark.asyncio
async def test_closing_an_end_wakes_who_waits_at_it() -> None:
    ends = [Packets(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    waiting = asyncio.create_task(ends[0].receive())
    await asyncio.sleep(0)
    ends[0].close()
    with pytest.raises(Closed):
        await waiting
    ends[0].close()
    ends[1].close()


@pytest.mark.asyncio
async def test_a_full_socket_makes_the_sender_wait_and_nothing_is_lost() -> None:
    ends = [Packets(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    sent = [f"{n}:".encode() + b"x" * 20_000 for n in range(100)]

    async def send() -> None:
        for text in sent:
            await ends[0].send(text)

    sending = asyncio.create_task(send())
    received = [(await ends[1].receive())[0] for _ in sent]
    await sending
    assert received == sent
    for end in ends:
        end.close()


# --------------------------------------------------------------------------- addresses and credentials
@pytest.mark.parametrize(("address", "parsed"), [
    ("https://api.anthropic.com", ("https://api.anthropic.com", "")),
    ("https://proxy.example/anthropic/", ("https://proxy.example/anthropic", "")),
    ("http://127.0.0.1:8401", ("http://127.0.0.1:8401", "")), ("http://[::1]:1", ("http://[::1]:1", "")),
    ("unix:/run/x.sock", ("http://localhost", "/run/x.sock")),
])  # fmt: skip
def test_an_upstream_is_a_url_or_a_socket(address: str, parsed: tuple[str, str]) -> None:
    assert _parsed(address) == parsed


@pytest.mark.parametrize("address", [
    "", "api.anthropic.com", "ftp://x", "http://api.anthropic.com", "https://user:pw@x", "https://x?y",
    "unix:rel",
])  # fmt: skip
def test_an_upstream_in_the_clear_or_of_no_known_kind_is_refused(address: str) -> None:
    with pytest.raises(OperatorError, match=r"gateway\.upstream"):
        _parsed(address)


def test_a_credential_is_a_line_of_printable_text_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "credential"
    file.write_text("  sk-ant-oat01-x\n")
    bearer = Credential(file, "bearer")
    assert bearer.headers() == {"authorization": "Bearer sk-ant-oat01-x"}
    assert bearer.betas() == ("oauth-2025-04-20",)
    assert "sk-ant" not in repr(bearer)
    assert Credential(file, "api-key").headers() == {"x-api-key": "sk-ant-oat01-x"}
    assert Credential(None, "api-key").headers() == {}
    for bad in ("", "two lines\nhere", "nul\0", "ü" * 3, "x" * 20_000):
        file.write_text(bad)
        with pytest.raises(CredentialError) as refused:
            Credential(file, "bearer").headers()
        assert bad == "" or bad not in str(refused.value)
