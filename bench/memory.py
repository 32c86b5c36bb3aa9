"""Resident memory of each process of an idle hive, in MiB."""

from __future__ import annotations

from pathlib import Path

from bench.figures import Figure
from tests.support.demohive import DemoHive

SERVICES = {
    "hived": "reconciler",
    "hive-gateway": "reconciler.gateway",
    "hive-ui": "ui",
    "scripted model": "reconciler.scripted",
    "harness (each process)": "harness",
    "shim (each)": "reconciler.effects.containers.shim",
}


def resident_mib(pid: int) -> float:
    """Proportional set size from smaps_rollup: shared pages counted once over all who share them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return kib / 1024


def measure(demo: DemoHive) -> list[Figure]:
    """One figure for each kind of process; its samples are the processes."""
    figures = []
    for label, module in SERVICES.items():
        found = [resident_mib(pid) for pid in demo.pids_of(module)]
        if found:
            figures.append(Figure(f"memory (PSS) of {label}, idle", "MiB", found))
    return figures
