"""What all tests share: kinds by folder, hypothesis profiles, and an honest summary."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.report import NAME, pytest_configure, pytest_sessionfinish

__all__ = ["pytest_configure", "pytest_sessionfinish"]

_TESTS = Path(__file__).parent
_MARKED = {
    "integration": pytest.mark.integration,
    "crash": pytest.mark.integration,
    "security": pytest.mark.integration,
    "system": pytest.mark.system,
    "e2e": pytest.mark.e2e,
}

settings.register_profile("default", deadline=None, max_examples=100)
# `make test-full`: more of the same, and time for it.
settings.register_profile(
    "full", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """Programs that set it for themselves are called within tests, too: the next test has it as it was."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def _kind(path: Path) -> str:
    return path.relative_to(_TESTS).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their folder."""
    for item in items:
        kind = _kind(item.path)
        if kind in _MARKED:
            item.add_marker(_MARKED[kind])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests of each kind ran, and names every one that was left out, with the reason; under
    `make test`, that does so for all of them."""
    if terminalreporter.config.pluginmanager.has_plugin(NAME):
        return
    ran: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if isinstance(report, pytest.TestReport):
                ran[report.nodeid.split("/")[1]] += 1
    terminalreporter.section("what ran")
    terminalreporter.line(", ".join(f"{kind} {count}" for kind, count in sorted(ran.items())) or "nothing")
    for report in terminalreporter.stats.get("passed", []):
        for key, value in report.user_properties:
            if key == "figure":  # `record_property("figure", …)`: what a test measured
                terminalreporter.line(f"{report.nodeid.split('::')[0]}: {value}")
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        terminalreporter.line(f"left out: {report.nodeid}: {reason.removeprefix('Skipped: ')}")
    for item in terminalreporter.stats.get("deselected", []):
        terminalreporter.line(f"left out: {item.nodeid}: deselected")
