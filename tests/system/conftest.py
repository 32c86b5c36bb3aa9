"""The test beds, and a note on each test that failed so that its fixture keeps the journal."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.support.bed import FAILED, bed, beds, bookworm, fresh_bed, trixie

__all__ = ["bed", "beds", "bookworm", "fresh_bed", "trixie"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
