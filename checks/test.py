"""`make test`: linters, then all tests, then one summary of what ran and what was left out.

Tests run even when a linter fails, so that one run tells everything. The throw-away hosts, and hived dying at
every call, have runs of their own beside the rest: they wait more than they compute. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

from checks import lint

_TESTS_FAILED = 1
_NO_TESTS_COLLECTED = 5
_AGAIN_MAX = 2
_BESIDE = {"throw-away hosts": "tests/system", "hived dying at every call": "tests/crash"}


@dataclass
class Run:
    """One run of pytest. `cache`: where it remembers what failed."""

    title: str
    arguments: list[str]
    cache: str
    status: int = 0
    again: tuple[str, ...] = ()

    def argv(self, *more: str) -> list[str]:
        """Its command line."""
        return [lint.PYTHON, "-m", "pytest", "-q", "-o", f"cache_dir={self.cache}", *more]

    def start(self, output: IO[bytes] | None) -> subprocess.Popen[bytes]:
        """Begin, from a clean memory of failures."""
        return subprocess.Popen(
            self.argv("--cache-clear", *self.arguments),
            cwd=lint.CLONE,
            env=_environment(),
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )

    def end(self, status: int) -> None:
        """A race of this machine and a defect look alike once; twice in a row, alone, only a defect does."""
        self.status = status
        failed = self._last_failed() if status == _TESTS_FAILED else []
        if 0 < len(failed) <= _AGAIN_MAX:
            done = subprocess.run(self.argv(*failed), cwd=lint.CLONE, env=_environment(), check=False)
            self.status, self.again = done.returncode, tuple(failed)

    def _last_failed(self) -> list[str]:
        """Ids of the tests that failed in the run before, as pytest remembers them."""
        try:
            found = json.loads((lint.CLONE / self.cache / "v/cache/lastfailed").read_text())
        except (OSError, ValueError):
            return []
        return sorted(found)


def main(arguments: list[str]) -> int:
    """Further arguments go to pytest, which then runs once. Exit status 1 when anything failed."""
    print("lint", flush=True)
    findings = lint.run()
    runs = [Run("tests", arguments, ".pytest_cache")]
    if not arguments:
        runs = [
            Run("tests", ["tests", *(f"--ignore={folder}" for folder in _BESIDE.values())], ".pytest_cache"),
            *(Run(title, [folder], f".pytest_cache/{folder}") for title, folder in _BESIDE.items()),
        ]
    _run(runs)
    print("\nlinters")
    for name, outcome in findings.items():
        print(f"  {name:<22} {outcome}")
    for run in runs:
        if run.again and run.status == 0:
            print("\n".join(["", *(f"passed only when run again: {name}" for name in run.again)]))
    failed = [name for name, outcome in findings.items() if outcome == lint.FAILED]
    failed += [run.title for run in runs if run.status not in {0, _NO_TESTS_COLLECTED}]
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\neverything that ran is well")
    return 1 if failed else 0


def _run(runs: list[Run]) -> None:
    """All at once; what the second one says is shown when it is over."""
    first, *others = runs
    outputs = [tempfile.TemporaryFile() for _ in others]  # noqa: SIM115 - closed when they were shown
    started = [(run, output, run.start(output)) for run, output in zip(others, outputs, strict=True)]
    print(first.title, flush=True)
    statuses = [first.start(None).wait()]
    for run, output, process in started:
        statuses.append(process.wait())
        print(f"\n{run.title}", flush=True)
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
        output.close()
    for run, status in zip(runs, statuses, strict=True):  # one after the other, with nothing beside them
        run.end(status)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(lint.CLONE), "HIVE_ALL_TESTS": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
