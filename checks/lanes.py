"""Lanes of `make test`: parts of the tests that run beside each other, each a pytest of its own.

A file of tests belongs to the first lane with a pattern that fits it, so that none is forgotten and none runs
twice. Files stand in one lane when they would disturb each other (they count the processes of one user, or
measure memory) or share something that is slow to start. Standard library only.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checks import lint

FAILED_TESTS = 1
_NO_TESTS_COLLECTED = 5
_AGAIN_MAX = 2
RESULTS = lint.CLONE / "test-results/lanes"


@dataclass(frozen=True, slots=True)
class Lane:
    """A name for people, and patterns of paths from the clone's top, without their `.py`."""

    title: str
    patterns: tuple[str, ...]
    niceness: int = 5  # below that of the one lane that emulates a processor, and needs one for itself

    @property
    def slug(self) -> str:
        """Its name in a path."""
        return self.title.replace(" ", "-").replace(",", "")


# The longest first, on the whole: what ends last decides how long all of them take.
LANES = (
    Lane("a virtual machine", ("tests/system/test_limits",), niceness=0),
    Lane("throw-away hosts", ("tests/system/*",)),
    Lane("hives and a browser", ("tests/e2e/*",)),
    Lane(
        "containers and Nix",
        (
            *("tests/contract/test_containers", "tests/contract/test_nix", "tests/integration/test_nix_*"),
            *("tests/integration/test_containers_*", "tests/integration/test_crash_events"),
            *(
                "tests/integration/test_builds",
                "tests/integration/test_demo_*",
                "tests/crash/test_real_kills",
            ),
        ),
    ),
    Lane("hived dying at every call", ("tests/crash/*",)),
    Lane(
        "agents and the genuine CLI",
        (
            *("tests/contract/test_harness_*", "tests/contract/test_scripted_*"),
            *("tests/contract/test_scenarios_*", "tests/contract/test_gateway_*"),
            *("tests/integration/test_harness*", "tests/integration/test_gateway_*"),
        ),
    ),
    Lane("hived", ("tests/integration/*",)),
    Lane("rules, laws and contracts", ("*",)),
)


@dataclass(frozen=True, slots=True)
class Test:
    """What became of one test: its id, `passed`, `failed`, `error`, `skipped` or `deselected`, the seconds of
    all its phases, why it was left out, and figures it measured."""

    __test__ = False
    id: str
    outcome: str
    seconds: float = 0.0
    reason: str = ""
    figures: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The folder it lies in."""
        return self.id.split("/")[1] if "/" in self.id else self.id


@dataclass
class Run:
    """One pytest over some arguments, within `folder`. `shown`: it writes to the terminal, not a file."""

    title: str
    slug: str
    arguments: list[str]
    may_be_empty: bool = False
    shown: bool = False
    folder: Path = lint.CLONE
    niceness: int = 0
    status: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0  # of it and all it waited for
    again: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_well(self) -> bool:
        return self.status == 0 or (self.may_be_empty and self.status == _NO_TESTS_COLLECTED)

    @property
    def output(self) -> Path:
        """What pytest printed."""
        return RESULTS / f"{self.slug}.log"

    @property
    def report(self) -> Path:
        """One JSON line for each test, as `tests/conftest.py` writes them while it runs."""
        return RESULTS / f"{self.slug}.jsonl"

    def to_its_end(self) -> Run:
        """Run from a clean memory of failures; blocks. Safe in a thread."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.report.unlink(missing_ok=True)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            output = None if self.shown else stack.enter_context(self.output.open("wb"))
            self.process = subprocess.Popen(
                self._argv("--cache-clear", *self.arguments),
                cwd=self.folder,
                env=environment(self.report),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
            )
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, self.process.pid, min(19, own + self.niceness))
            _, status, used = os.wait4(self.process.pid, 0)  # unlike wait(), it tells the CPU time
        self.status = self.process.returncode = os.waitstatus_to_exitcode(status)
        self.wall_s, self.cpu_s = time.monotonic() - began, used.ru_utime + used.ru_stime
        return self

    def once_more(self) -> None:
        """A race of this machine and a defect look alike once; twice in a row, alone, only a defect does."""
        failed = self._last_failed() if self.status == FAILED_TESTS else []
        if 0 < len(failed) <= _AGAIN_MAX:
            done = subprocess.run(self._argv(*failed), cwd=self.folder, env=environment(), check=False)
            self.status, self.again = done.returncode, tuple(failed)

    def tests(self) -> list[Test]:
        """Those that are over, by now."""
        return list(_read(self.report))

    def _argv(self, *more: str) -> list[str]:
        return [str(lint.CLONE / lint.PYTHON), "-m", "pytest", "-q", "-o", f"cache_dir={self._cache}", *more]

    @property
    def _cache(self) -> Path:
        return RESULTS / f"{self.slug}.cache"

    def _last_failed(self) -> list[str]:
        """Ids of the tests that failed, as pytest remembers them."""
        try:
            found = json.loads((self._cache / "v/cache/lastfailed").read_text())
        except (OSError, ValueError):
            return []
        return sorted(found)

    def stop(self) -> None:
        """As Ctrl-C does; its tests clean up."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)


def test_files() -> list[str]:
    """All files of tests, from the clone's top, sorted."""
    found = {path for pattern in ("test_*.py", "*_test.py") for path in (lint.CLONE / "tests").rglob(pattern)}
    return sorted(str(path.relative_to(lint.CLONE)) for path in found)


def shared_out(files: Iterable[str], lanes: Sequence[Lane] = LANES) -> dict[str, list[str]]:
    """Files by the title of their lane, lanes in order; `ValueError` for a file that fits none."""
    shares: dict[str, list[str]] = {lane.title: [] for lane in lanes}
    for file in files:
        stem = file.removesuffix(".py")
        for lane in lanes:
            if any(fnmatch.fnmatchcase(stem, pattern) for pattern in lane.patterns):
                shares[lane.title].append(file)
                break
        else:
            raise ValueError(f"{file} is in no lane of checks/lanes.py")
    return shares


def runs() -> list[Run]:
    """One for each lane, over all tests."""
    shares = shared_out(test_files())
    return [Run(lane.title, lane.slug, shares[lane.title], niceness=lane.niceness) for lane in LANES]


def at_once() -> int:
    """How many run beside each other: two per core, since every second one waits for something."""
    return 2 * (os.cpu_count() or 1)


def environment(report: Path | None = None) -> dict[str, str]:
    """A missing tool is a failure; `report`: where to tell of each test."""
    found = {name: value for name, value in os.environ.items() if name != "HIVE_TEST_REPORT"}
    found |= {"PYTHONPATH": str(lint.CLONE), "HIVE_ALL_TESTS": "1"}
    return found | ({"HIVE_TEST_REPORT": str(report)} if report else {})


def _read(report: Path) -> Iterator[Test]:
    """A line that is still being written is left for the next look."""
    try:
        lines = report.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return
    for line in lines:
        if line.endswith("\n"):
            told: dict[str, Any] = json.loads(line)
            yield Test(**told | {"figures": tuple(told["figures"])})
