"""The models that the gateway knows: which alias means which id, how large they are, what they cost. Pure.
 The figures are data (`models.json`, with source and date). A model that is not in it is not served:
nobody could say what it costs.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reconciler.gateway.usage import Usage
from reconciler.store.ledger import Cost, Tokens

_PRICES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
FILE = Path(__file__).with_name("models.json")
_NANO_PER_USD_MTOK = 1000  # 1 USD per million tokens = 1000 nano-dollars per token


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Price = Annotated[float, Field(ge=0, le=10_000)]


class Band(_Part):
    """Prices in USD per million tokens for prompts of up to so many tokens (None: any)."""

    prompt_up_to: int | None
    input: Price
    output: Price
    cache_read: Price
    cache_write_5m: Price
    cache_write_1h: Price


class ModelFacts(_Part):
    """One model. `bands` in growing order; the last has no bound."""

    id: str
    alias: str | None
    window: Annotated[int, Field(gt=0)]
    max_output: Annotated[int, Field(gt=0)]
    bands: Annotated[list[Band], Field(min_length=1)]

    @model_validator(mode="after")
    def _bands_grow(self) -> Self:
        """A longer prompt is never cheaper: what a request may cost at most is computed from its longest."""
        for low, high in itertools.pairwise(self.bands):
            if low.prompt_up_to is None or (high.prompt_up_to or self.window) < low.prompt_up_to:
                raise ValueError(f"{self.id}: the bands are not in growing order")
            if any(getattr(low, price) > getattr(high, price) for price in _PRICES):
                raise ValueError(f"{self.id}: a longer prompt is cheaper than a shorter one")
        if self.bands[-1].prompt_up_to is not None:
            raise ValueError(f"{self.id}: the last band has a bound")
        dearest = all(band.cache_write_1h >= band.cache_write_5m >= band.input for band in self.bands)
        if not dearest or any(band.cache_read > band.input for band in self.bands):
            raise ValueError(f"{self.id}: to write to the cache is not the dearest way of input")
        return self


class _File(_Part):
    source: str
    as_of: dt.date
    unit: str
    web_search_usd_per_1000: Price
    models: Annotated[list[ModelFacts], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the prices are from, and of which day they are."""

    text: str
    as_of: dt.date


@dataclass(frozen=True, slots=True)
class Worst:
    """The most that a request can cost: `input_tokens` at the dearest way of putting them in."""

    input_tokens: int
    output_tokens: int
    long_cache: bool


class Catalog:
    """The models by id, and what requests to them cost."""

    def __init__(self, models: Iterable[ModelFacts], web_search_usd_per_1000: float, source: Source) -> None:
        self.source = source
        self._models = {model.id: model for model in models}
        self._ids = {model.alias: model.id for model in self._models.values() if model.alias}
        self._search_nano = round(web_search_usd_per_1000 * 1_000_000)

    @classmethod
    def load(cls, path: Path = FILE) -> Catalog:
        """The checked-in catalogue."""
        found = _File.model_validate(json.loads(path.read_text()))
        return cls(found.models, found.web_search_usd_per_1000, Source(found.source, found.as_of))

    def get(self, model: str) -> ModelFacts | None:
        """The model of an id (no alias), None if it is unknown."""
        return self._models.get(model)

    def id(self, name: str) -> str:
        """The id that a name means: of an alias the known one's, else the name itself."""
        plain = name.removesuffix("[1m]")
        return self._ids.get(plain, plain)

    def ids(self, names: Iterable[str]) -> frozenset[str]:
        """The known ids that aliases and ids mean; the CLI's suffix `[1m]` asks for a window, not for a
        model."""
        return frozenset(found for name in names if (found := self.id(name)) in self._models)

    def names(self, allowed: Iterable[str]) -> tuple[str, ...]:
        """All names of the known models that these names mean: the names first, then their ids."""
        known = [name for name in allowed if self.id(name) in self._models]
        return tuple(dict.fromkeys([*known, *(self.id(name) for name in known)]))

    def cost(self, model: ModelFacts, usage: Usage) -> Cost:
        """What a request cost, rounded up to a micro-dollar."""
        band = _band(model, usage.prompt_tokens)
        nano = self._search_nano * usage.web_searches + sum(
            round(price * _NANO_PER_USD_MTOK) * tokens
            for price, tokens in (
                (band.input, usage.input),
                (band.output, usage.output),
                (band.cache_read, usage.cache_read),
                (band.cache_write_5m, max(usage.cache_write - usage.cache_write_1h, 0)),
                (band.cache_write_1h, usage.cache_write_1h),
            )
        )
        tokens = Tokens(usage.input, usage.output, usage.cache_read, usage.cache_write)
        return Cost(tokens, -(-nano // 1000))

    def worst_cost(self, model: ModelFacts, worst: Worst) -> Cost:
        """What a request costs at most, on the side of tokens: all of its input newly written to the
        cache."""
        written = Usage(
            cache_write=worst.input_tokens,
            cache_write_1h=worst.input_tokens if worst.long_cache else 0,
            output=worst.output_tokens,
        )
        dearest = self.cost(model, written).usd_micro
        return Cost(Tokens(input=worst.input_tokens, output=worst.output_tokens), dearest)

    def output_within(
        self, model: ModelFacts, worst: Worst, *, usd_micro: int | None, tokens: int | None
    ) -> int:
        """How many tokens of output a budget leaves room for beside the input; negative if not even that
        fits."""
        room = worst.output_tokens
        if tokens is not None:
            room = min(room, tokens - worst.input_tokens)
        if usd_micro is not None:
            alone = self.worst_cost(model, Worst(worst.input_tokens, 0, worst.long_cache)).usd_micro
            nano = round(_band(model, worst.input_tokens).output * _NANO_PER_USD_MTOK)
            left = usd_micro - alone
            room = min(room, left * 1000 // nano if nano else room) if left >= 0 else -1
        return room


@functools.cache
def known() -> Catalog:
    """The checked-in catalogue, read once."""
    return Catalog.load()


def _band(model: ModelFacts, prompt_tokens: int) -> Band:
    for band in model.bands:
        if band.prompt_up_to is None or prompt_tokens <= band.prompt_up_to:
            return band
    return model.bands[-1]
