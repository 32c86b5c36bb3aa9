"""What `make test` asks of pytest: a JSON line for each test that ended, in the file that HIVE_TEST_REPORT
names, and that nothing is left out for want of a tool (HIVE_ALL_TESTS)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAME = "hive-reporter"


def pytest_configure(config: pytest.Config) -> None:
    """Under `make test`, a line for each test."""
    if path := os.environ.pop("HIVE_TEST_REPORT", ""):  # not for a pytest that a test starts
        config.pluginmanager.register(Reporter(Path(path)), NAME)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under `make test` a missing tool is a failure, not a skip; only what no such machine has may be left
    out."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or "HIVE_ALL_TESTS" not in os.environ:
        return
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if any("HIVE_NIXPKGS_LIB" not in reason for reason in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@dataclass(eq=False)  # a plugin is asked for its hash
class Reporter:
    """A plugin. The keys of a line are the fields of `checks.lanes.Test`."""

    path: Path
    outcomes: dict[str, str] = field(default_factory=dict)  # of the phases so far, by id
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The three phases of a test come one after the other; the first that is not well decides."""
        name = report.nodeid
        outcome = report.outcome if report.outcome != "failed" or report.when == "call" else "error"
        if self.outcomes.get(name, "passed") == "passed":
            self.outcomes[name] = outcome
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[name] = report.longrepr[2].removeprefix("Skipped: ")
        if report.when == "teardown":
            # `record_property("figure", …)`: what a test measured
            figures = [value for key, value in report.user_properties if key == "figure"]
            self._tell(name, figures=figures)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Left out, too."""
        for item in items:
            self.outcomes[item.nodeid] = "deselected"
            self.reasons[item.nodeid] = "deselected"
            self._tell(item.nodeid)

    def _tell(self, name: str, *, figures: Sequence[object] = ()) -> None:
        told = {
            "id": name,
            "outcome": self.outcomes.pop(name),
            "seconds": round(self.seconds.pop(name, 0.0), 3),
            "reason": self.reasons.pop(name, ""),
            "figures": [str(figure) for figure in figures],
        }
        with self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")
