"""Money: figures agree with a computation of their own, and no order of events gets past a budget."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.gateway.catalog import FILE, Catalog, Worst
from reconciler.gateway.screening import Rules, screen
from reconciler.gateway.usage import Meter
from reconciler.model.days import local_day
from reconciler.store.ledger import Allowed, Ceilings, Cost, Entry, Ledger, Tokens

CATALOG = Catalog.load()
TABLE = json.loads(FILE.read_text())
MODELS = st.sampled_from([model["id"] for model in TABLE["models"]])
COUNTS = st.integers(0, 400_000)


# ---------------------------------------------------------------------------------- the price of an answer
def dollars(model: str, usage: dict[str, Any]) -> Fraction:
    """What an answer costs by the price list, computed from the list itself, in fractions."""
    row = next(row for row in TABLE["models"] if row["id"] == model)
    written = usage["cache_creation_input_tokens"]
    long = usage["cache_creation"]["ephemeral_1h_input_tokens"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + written
    bands = [band for band in row["bands"] if band["prompt_up_to"] is None or prompt <= band["prompt_up_to"]]
    price = {key: Fraction(str(value)) for key, value in bands[0].items() if key != "prompt_up_to"}
    million = (
        price["input"] * usage["input_tokens"]
        + price["output"] * usage["output_tokens"]
        + price["cache_read"] * usage["cache_read_input_tokens"]
        + price["cache_write_5m"] * (written - long)
        + price["cache_write_1h"] * long
    )
    searches = usage["server_tool_use"]["web_search_requests"]
    search = Fraction(str(TABLE["web_search_usd_per_1000"]))
    return Fraction(million / 1_000_000 + search * searches / 1000)


@st.composite
def usages(draw: st.DrawFn) -> dict[str, Any]:
    """What the API says of an answer."""
    written = draw(COUNTS)
    return {
        "input_tokens": draw(COUNTS),
        "output_tokens": draw(st.integers(0, 128_000)),
        "cache_read_input_tokens": draw(COUNTS),
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_1h_input_tokens": draw(st.integers(0, written))},
        "server_tool_use": {"web_search_requests": draw(st.integers(0, 5))},
    }


def streamed(usage: dict[str, Any]) -> bytes:
    """The answer as a stream: its start knows the input, its end the output."""
    start = {"type": "message_start", "message": {"usage": {**usage, "output_tokens": 1}}}
    end = {
        "type": "message_delta",
        "usage": {key: usage[key] for key in ("output_tokens", "server_tool_use")},
    }
    return b"".join(
        b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, end, {"type": "message_stop"})
    )


@given(MODELS, usages(), st.booleans())
def test_what_an_answer_costs_is_its_price_to_the_micro_dollar_and_its_tokens_to_the_token(
    model: str, usage: dict[str, Any], stream: bool
) -> None:
    meter = Meter()
    meter.feed(streamed(usage)) if stream else meter.read_whole(json.dumps({"usage": usage}).encode())
    facts = CATALOG.get(model)
    assert facts is not None
    cost = CATALOG.cost(facts, meter.usage)
    assert 0 <= cost.usd_micro - dollars(model, usage) * 1_000_000 < 1
    assert cost.tokens == Tokens(
        usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"],
        usage["cache_creation_input_tokens"],
    )  # fmt: skip


# ---------------------------------------------------------------------------------- the bound of a request
BLOCKS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=40)),
    st.builds(lambda data: {"type": "image", "source": {"type": "base64", "data": data}}, st.just("AA==")),
)
CONTENT = st.one_of(st.text(max_size=60), st.lists(BLOCKS, max_size=4))


def counted(body: dict[str, Any]) -> int:
    """The most that the API could count: a token for each byte of text, what it adds of its own to a message,
    a picture of the largest size, and the longest of the texts that go with tools."""
    tokens = 530 if body.get("tools") else 0
    for message in body["messages"]:
        tokens += 8
        content = message["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in blocks:
            tokens += len(block["text"].encode()) if block["type"] == "text" else 4784
    return tokens


@given(st.lists(CONTENT, min_size=1, max_size=5), st.booleans())
def test_the_bound_of_a_request_is_no_less_than_what_the_api_could_count(
    contents: list[Any], tools: bool
) -> None:
    body: dict[str, Any] = {
        "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": one} for one in contents],
    }  # fmt: skip
    if tools:
        body["tools"] = [{"name": "t", "input_schema": {"type": "object"}}]
    found = screen(json.dumps(body, ensure_ascii=False).encode(), Rules(frozenset({"m"})), counting=False)
    assert found.input_tokens is not None
    assert found.input_tokens >= counted(body)


def test_of_a_document_only_the_api_knows_how_large_it_is() -> None:
    document = {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="},
    }
    for content in ([document], [{"type": "tool_result", "tool_use_id": "t", "content": [document]}]):
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
        raw = json.dumps(body).encode()
        assert screen(raw, Rules(frozenset({"m"})), counting=False).input_tokens is None


# ---------------------------------------------------------------------------------------- budgets over time
AGENTS = ("scout", "smith")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(AGENTS), st.integers(1, 400), st.integers(1, 3)),
        st.tuples(
            st.sampled_from(["settle", "forfeit", "release", "again"]), st.integers(0, 9), st.integers(0, 100)
        ),
        st.tuples(st.just("die")),
        st.tuples(st.just("midnight")),
        st.tuples(st.just("raise"), st.sampled_from((*AGENTS, "*")), st.integers(1, 300)),
    ),
    max_size=25,
)


def run(work: Callable[[Path], Coroutine[None, None, None]]) -> None:
    """In an event loop and a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))
    try:
        asyncio.run(work(folder))
    finally:
        shutil.rmtree(folder)


class Model:
    """A ledger, and what should be in it: what each agent paid today, and who reserved how much."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger: Ledger
        self.base = {"scout": 700, "smith": 500, "*": 900}
        self.added = dict.fromkeys(self.base, 0)
        self.paid = dict.fromkeys(AGENTS, 0)
        self.under_way: list[tuple[int, str, int]] = []
        self.ended: list[int] = []
        self.day = 1

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("ask", agent, most, turn):
                await self.ask(agent, most, turn)
            case (("settle" | "forfeit" | "release") as how, which, share) if self.under_way:
                await self.end(how, which, share)
            case ("again", which, _) if self.ended:
                number = self.ended[which % len(self.ended)]
                assert await self.ledger.settle(number, Cost(Tokens(), 1)) is None
            case ("die",):
                await self.die()
            case ("midnight",) if not self.under_way:
                self.day += 1
                self.paid, self.added = dict.fromkeys(AGENTS, 0), dict.fromkeys(self.added, 0)
            case ("raise", scope, more):
                self.added[scope] += more
            case _:
                pass

    async def ask(self, agent: str, most: int, turn: int) -> None:
        """Reserve: it is let through exactly if it fits."""
        own, hive = (Allowed(self.base[scope], self.added[scope]) for scope in (agent, "*"))
        entry = Entry(agent, f"2026-01-{self.day:02}", "m", f"turn {turn}")
        worst = Cost(Tokens(most // 2, most - most // 2), most)
        found = await self.ledger.reserve(entry, worst, Ceilings(own, hive, tokens_turn=500))
        held = {name: sum(m for _, a, m in self.under_way if a == name) for name in AGENTS}
        fits = self.paid[agent] + held[agent] + most <= own.ceiling
        fits = fits and sum(self.paid.values()) + sum(held.values()) + most <= hive.ceiling
        if isinstance(found, int):
            assert fits
            self.under_way.append((found, agent, most))
        elif all(room.budget != "turn" or room.left >= most for room in found.rooms):
            assert not fits

    async def end(self, how: str, which: int, share: int) -> None:
        number, agent, most = self.under_way.pop(which % len(self.under_way))
        spent = {"settle": most * share // 100, "forfeit": most, "release": 0}[how]
        if how == "release":
            await self.ledger.release(number)
        else:
            cost = Cost(Tokens(output=spent), spent) if how == "settle" else None
            assert await self.ledger.settle(number, cost) is not None
        self.paid[agent] += spent
        self.ended.append(number)

    async def die(self) -> None:
        """The gateway begins anew: what was under way is paid at its worst."""
        await self.ledger.close()
        self.ledger = await Ledger.open(self.folder)
        for number, agent, most in self.under_way:
            self.paid[agent] += most
            self.ended.append(number)
        self.under_way = []

    async def check(self) -> None:
        """No ceiling is exceeded, and the ledger says what was paid."""
        for agent in AGENTS:
            assert self.paid[agent] <= self.base[agent] + self.added[agent]
        assert sum(self.paid.values()) <= self.base["*"] + self.added["*"]
        rows = await self.ledger.spending(since=f"2026-01-{self.day:02}", after=("", "", ""), limit=9)
        assert {row.agent: row.usd_micro for row in rows if row.usd_micro} == {
            agent: amount for agent, amount in self.paid.items() if amount
        }


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_whatever_happens_in_whatever_order_no_budget_is_exceeded(steps: list[tuple[Any, ...]]) -> None:
    """Requests at once, ends of every kind, repeated ends, deaths of the gateway, midnights, raises: what is
    spent and reserved never exceeds any ceiling, and each request is paid once, by what it cost."""

    async def work(folder: Path) -> None:
        model = Model(folder)
        model.ledger = await Ledger.open(folder)
        for step in steps:
            await model.step(step)
            await model.check()
        await model.ledger.close()

    run(work)


@given(MODELS, st.integers(0, 900_000), st.integers(0, 128_000), st.booleans())
def test_the_worst_case_of_every_model_is_its_dearest_price(
    model: str, prompt: int, output: int, hour: bool
) -> None:
    facts = CATALOG.get(model)
    assert facts is not None
    worst = CATALOG.worst_cost(facts, Worst(prompt, output, hour)).usd_micro
    for kind in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        usage = {
            "input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
            "output_tokens": output, "cache_creation": {"ephemeral_1h_input_tokens": 0},
            "server_tool_use": {"web_search_requests": 0}, kind: prompt,
        }  # fmt: skip
        if hour and kind == "cache_creation_input_tokens":
            usage["cache_creation"] = {"ephemeral_1h_input_tokens": prompt}
        assert worst >= dollars(model, usage) * 1_000_000 - 1


def test_a_copy_out_of_a_backup_leaves_only_what_is_added_afterwards() -> None:
    async def work(folder: Path) -> None:
        day = local_day(time.time())
        ledger = await Ledger.open(folder)
        entry = Entry("scout", day, "m", "turn 1")
        first = await ledger.reserve(entry, Cost(Tokens(), 300), Ceilings())
        assert isinstance(first, int)
        await ledger.settle(first, Cost(Tokens(), 300))
        async with ledger._database.transaction() as tx:  # what `ledgercopy` writes
            await tx.run("INSERT INTO unknown_days VALUES ('restored', 0)")
        await ledger.close()
        ledger = await Ledger.open(folder)
        for added, most, fits in ((0, 1, False), (50, 51, False), (50, 50, True)):
            found = await ledger.reserve(entry, Cost(Tokens(), most), Ceilings(Allowed(1000, added)))
            assert isinstance(found, int) is fits
        await ledger.close()

    run(work)
