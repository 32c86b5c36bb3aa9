"""Fixtures over `checks.bed`: throw-away hosts with systemd for tests, and pytest run inside of them.

`bed` runs a test once per suite on a host that all tests of the session share, so a test leaves it as it was;
`fresh_bed` is a host of the test's own. `bookworm` and `trixie` are the shared ones by name. What a failed
test's hosts have in their journals is written to test-results/bed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from checks.bed import images
from checks.bed.guest import SOURCE, Bed, BedCommandError
from checks.bed.images import SUITES, Suite

_RESULTS = Path(__file__).parents[2] / "test-results/bed"
_runs = itertools.count(1)
FAILED = pytest.StashKey[bool]()  # set on a test's node when a phase of it failed


@dataclass(frozen=True, slots=True)
class Inner:
    """What became of one test that ran inside: `passed`, `failed`, `error` or `skipped`, and why."""

    name: str
    outcome: str
    detail: str


@dataclass(slots=True)
class Beds:
    """The session's shared hosts, each booted when it is first asked for."""

    stack: ExitStack = field(default_factory=ExitStack)
    booted: dict[Suite, Bed] = field(default_factory=dict)

    def of(self, suite: Suite) -> Bed:
        """The shared host of a suite; booted again should a test have left it dead."""
        if suite not in self.booted:
            self.booted[suite] = self.stack.enter_context(Bed(images.ensure(suite)))
        bed = self.booted[suite]
        if not bed.is_running():
            bed.cut()
            bed.boot()
        return bed


@pytest.fixture(scope="session")
def beds() -> Iterator[Beds]:
    """Boots shared hosts on demand, and ends them with the session."""
    with ExitStack() as stack:
        yield Beds(stack)


@pytest.fixture(params=SUITES)
def bed(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Bed]:
    """The shared host of each suite in turn."""
    yield from watched(request, beds.of(request.param))


@pytest.fixture
def bookworm(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Bed]:
    """The shared host with systemd 252."""
    yield from watched(request, beds.of("bookworm"))


@pytest.fixture
def trixie(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Bed]:
    """The shared host with systemd 257."""
    yield from watched(request, beds.of("trixie"))


@pytest.fixture(params=SUITES)
def fresh_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """A host of the test's own, once per suite."""
    with Bed(images.ensure(request.param)) as own:
        yield from watched(request, own)


def pytest_in_bed(
    bed: Bed, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 280.0
) -> list[Inner]:
    """Run pytest on files of the repository inside, as a unit with a delegated control group.

    `arguments` are pytest's (`tests/contract/test_containers.py`, `-k`, `systemd`). It uses the guest's own
    environment, with its files below /bed/tmp (a real file system). A failure of the test, with the inner
    failures in its message, when one did not pass or was skipped, or when there were none at all.
    """
    run = next(_runs)
    report = f"/bed/report-{run}.xml"
    python = f"{SOURCE}/.venv/bin/python"
    done = bed.unit(
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"),
        *(f"--rootdir={SOURCE}", f"--basetemp=/bed/tmp/{run}", f"--junitxml={report}", *arguments),
        env={"HIVE_ALL_TESTS": "1", "HYPOTHESIS_STORAGE_DIRECTORY": "/bed/tmp/hypothesis", **(env or {})},
        properties=("Delegate=yes", f"WorkingDirectory={SOURCE}", "TimeoutStopSec=5"),
        timeout_s=timeout_s,
        check=False,
    )
    if not bed.path(report).exists():
        raise BedCommandError(f"pytest in the bed ended with {done.status}\n{done.stdout}{done.stderr}")
    results = _read(bed.path(report))
    if not results:
        raise BedCommandError(f"no tests ran in the bed of {bed.image.suite}\n{done.stdout}{done.stderr}")
    bad = [result for result in results if result.outcome != "passed"]
    if bad or done.status != 0:
        told = "\n".join(f"\n{result.outcome}: {result.name}\n{result.detail}" for result in bad)
        raise BedCommandError(f"in the bed of {bed.image.suite}: {told or done.stdout + done.stderr}")
    return results


def _read(report: Path) -> list[Inner]:
    results = []
    for case in ET.parse(report).getroot().iter("testcase"):
        outcome, detail = "passed", ""
        for kind, called in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            if (found := case.find(kind)) is not None:
                outcome, detail = called, (found.text or found.get("message") or "")
        results.append(Inner(f"{case.get('classname')}::{case.get('name')}", outcome, detail))
    return results


def watched(request: pytest.FixtureRequest, bed: Bed) -> Iterator[Bed]:
    """For a fixture of one test: hand the host to it; afterwards write down its journal if it failed."""
    yield bed
    if request.node.stash.get(FAILED, False):
        _RESULTS.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "-", request.node.name)
        (_RESULTS / f"{name}.journal").write_text(bed.journal())
