"""`make bench`: measures, and prints one line per figure; ARGS="starts crashes" makes it only these parts.
What needs systemd as PID 1 runs in a throw-away host (`checks/bed/`).

message → request at the model, warm session   against a bare `claude --print` of the same version
container start → harness hello                in milliseconds, and against a bare Python in the same root
model request → first byte, end                through the gateway, against the model itself
durable messages, and how soon they arrive     against Redis Streams and NATS JetStream
container killed → event of its crash          against its end seen through a pidfd; both drivers
approved → hello, nothing to build             against `systemctl start` of the unit, or the driver alone
full read of agents with units, nothing to do  against one ListUnitsByPatterns
300 agents: list, plans, full read, decision   against one SELECT of their rows
databases of a tenth of that after 45 days     MiB, with the host's pruning
decisions of the Bash policy                   a second, and p99
20 busy agents and six seats                   fairness, waits, memory; turns warm and parked, against the CLI
no-op pass of one agent                        against reading the same rows and records without planning
resident memory of each process, idle          MiB
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import (
    bare,
    broker,
    containers,
    crashes,
    fleet,
    gateway,
    inbed,
    latency,
    memory,
    month,
    noop,
    passes,
    policy,
    residency,
    starts,
    stats,
)
from bench.figures import Figure
from checks.bed import images
from tests.support.demohive import free_port, start_demo, stop_demo

SAMPLES = 12
TAIL_FROM = 100  # fewer samples have no 99th percentile


def show(figure: Figure) -> None:
    """One figure in one or two lines."""
    median = statistics.median(figure.samples)
    low, high = min(figure.samples), max(figure.samples)
    print(
        f"{figure.name:<48} {median:9.1f} {figure.unit}   ({low:.1f} to {high:.1f}, n={len(figure.samples)})"
    )
    if figure.baseline:
        base = statistics.median(figure.baseline)
        print(
            f"{'  ratio to ' + figure.baseline_name:<48} {median / base:9.3f}     ({base:.1f} {figure.unit})"
        )
    if len(figure.samples) >= TAIL_FROM:
        worst = _percentile(figure.samples)
        print(f"{'  p99':<48} {worst:9.1f} {figure.unit}")
        if figure.baseline:
            base = _percentile(figure.baseline)
            print(f"{'  p99, ratio':<48} {worst / base:9.3f}     ({base:.1f} {figure.unit})")


def _percentile(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=100)[98]


def main(arguments: Sequence[str]) -> int:
    """Exit status 0; figures on standard output, as JSON with `--json`."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(_PARTS)}; default: all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--samples", type=int, help=f"of each; default: {SAMPLES}, {crashes.CRASHES} crashes")
    parser.add_argument("--suite", choices=images.SUITES, default="bookworm", help="of the throw-away host")
    parser.add_argument("--in-bed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"no such part: {' '.join(sorted(unknown))}")
    parts = [part for part in _PARTS if part in (options.parts or _PARTS)]
    here = [part for part in parts if part in _HERE and not options.in_bed]
    with_units = [part for part in parts if part in _WITH_UNITS]
    figures = [figure for part in here for figure in _HERE[part](options.samples)]
    if options.in_bed:
        figures = [figure for part in with_units for figure in _WITH_UNITS[part](options.samples)]
    elif with_units:
        figures += inbed.measure(with_units, options.suite, options.samples)
    if options.json:
        print(json.dumps([figure.as_json() for figure in figures], indent=1))
        return 0
    for figure in figures:
        show(figure)
    return 0


def _of_demo(samples: int | None) -> list[Figure]:
    """A whole demo hive beside a bare CLI."""
    count = samples or SAMPLES
    baseline = bare.measure(count)
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        demo = start_demo(Path(folder) / "demo", free_port())
        try:
            figures = latency.measure(demo, count, baseline)
            figures += containers.measure(demo, count)
            return figures + memory.measure(demo)
        finally:
            stop_demo(demo)


_HERE: dict[str, Callable[[int | None], list[Figure]]] = {
    "passes": lambda n: passes.measure(n or SAMPLES),
    "policy": lambda n: policy.measure(n or SAMPLES),
    "gateway": lambda n: gateway.measure(n or SAMPLES),
    "broker": lambda n: broker.measure(n or SAMPLES),
    "crashes": lambda n: crashes.measure(n or crashes.CRASHES),
    "starts": lambda n: starts.measure(n or SAMPLES),
    "fleet": lambda n: fleet.measure(n or SAMPLES),
    "month": lambda n: month.measure(n or SAMPLES),
    "residency": lambda n: residency.measure(samples=n or residency.SAMPLES),
    "stats": lambda n: stats.measure(n or SAMPLES),
    "demo": _of_demo,
}
# The same again, or only there: with real units, in a host that is thrown away.
_WITH_UNITS: dict[str, Callable[[int | None], list[Figure]]] = {
    "noop": lambda n: noop.measure(n or SAMPLES),
    "starts": lambda n: starts.measure(n or SAMPLES, "systemd"),
    "crashes": lambda n: crashes.measure(n or crashes.CRASHES, "systemd"),
}
_PARTS = tuple({**_HERE, **_WITH_UNITS})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
