"""`make bench`: starts a demo hive, measures, and prints one line per figure.

message → request at the model, warm session   against a bare `claude --print` of the same version
container start → harness hello                in milliseconds, and against a bare Python in the same root
model request → first byte, end                through the gateway, against the model itself
durable messages, and how soon they arrive     against Redis Streams and NATS JetStream
container killed → event of its crash          against its end seen through a pidfd
start asked of hived → payload is up            against the same container through the driver alone
300 agents: list, plans, full read, decision   against one ListUnitsByPatterns, where there is a system bus
databases of a tenth of that after 45 days     MiB, with the host's pruning
no-op pass of one agent                        against reading the same rows and records without planning
resident memory of each process, idle          MiB
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import bare, broker, containers, crashes, fleet, gateway, latency, memory, month, passes, starts
from bench.figures import Figure
from tests.support.demohive import free_port, start_demo, stop_demo

SAMPLES = 12
CRASHES = 200
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        figures += passes.measure(SAMPLES)
        figures += gateway.measure(SAMPLES)
        figures += broker.measure(SAMPLES)
        figures += crashes.measure(CRASHES)
        figures += starts.measure(SAMPLES)
        figures += fleet.measure(SAMPLES)
        figures += month.measure(SAMPLES)
        baseline = bare.measure(SAMPLES)
        demo = start_demo(Path(folder) / "demo", free_port())
        try:
            figures += latency.measure(demo, SAMPLES, baseline)
            figures += containers.measure(demo, SAMPLES)
            figures += memory.measure(demo)
        finally:
            stop_demo(demo)
    if options.json:
        print(json.dumps([figure.as_json() for figure in figures], indent=1))
        return 0
    for figure in figures:
        show(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
