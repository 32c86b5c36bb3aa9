"""Figures of agents and of the hive."""

from __future__ import annotations

from typing import Literal

from reconciler.control.models.base import Model


class StatSeries(Model):
    """One figure over time. `agent` None: the whole hive's. `values`: one for each of `Stats.times`, null
    where there is nothing to tell; `total`: the same for the whole span, as if it were one bucket.
    `aggregate` and `unit` say what a value is, `told_by` whose word it is: container figures are only as true
    as the agent."""

    agent: str | None
    key: str
    unit: str
    aggregate: str
    told_by: Literal["host", "gateway", "container"]
    meaning: str
    values: list[float | None]
    total: float | None


class Stats(Model):
    """Figures between two instants: `times` are the begins of buckets of `bucket_s` seconds; the last one
    ends at `until`. `since` is where the first bucket begins, which may be earlier than what was asked
    for."""

    since: str
    until: str
    bucket_s: float
    times: list[str]
    series: list[StatSeries]


class Sample(Model):
    """One value of a metric. `suffix`: of the name, for parts of a histogram."""

    suffix: str = ""
    labels: dict[str, str]
    value: float


class Metric(Model):
    """One metric for a monitor, as Prometheus calls it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[Sample]


class MetricList(Model):
    """All that a monitor is told: what was ever counted, and what is now, of agents that are not
    destroyed."""

    items: list[Metric]


class Scrape(Model):
    """Who reads metrics without a session says the token of the host's configuration."""

    token: str
