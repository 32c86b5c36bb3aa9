"""`make test`: linters, then all tests, then one summary of what ran and what was left out.

Tests run even when a linter fails, so that one run tells everything. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from checks import lint

_TESTS_FAILED = 1
_NO_TESTS_COLLECTED = 5
_AGAIN_MAX = 2


def main(arguments: list[str]) -> int:
    """Further arguments go to pytest. Exit status 1 when anything failed."""
    print("lint", flush=True)
    findings = lint.run()
    print("tests", flush=True)
    argv = [lint.PYTHON, "-m", "pytest", "-q", *arguments]
    environment = os.environ | {"PYTHONPATH": str(lint.CLONE), "HIVE_ALL_TESTS": "1"}
    status = subprocess.run([*argv, "--cache-clear"], cwd=lint.CLONE, env=environment, check=False).returncode
    again = _last_failed() if status == _TESTS_FAILED else []
    if 0 < len(again) <= _AGAIN_MAX:
        # A race of this machine and a defect look alike once; twice in a row, alone, only a defect does.
        status = subprocess.run([*argv, *again], cwd=lint.CLONE, env=environment, check=False).returncode
    print("\nlinters")
    for name, outcome in findings.items():
        print(f"  {name:<22} {outcome}")
    if again and status == 0:
        print("\n".join(["", *(f"passed only when run again: {name}" for name in again)]))
    failed = [name for name, outcome in findings.items() if outcome == lint.FAILED]
    if status not in {0, _NO_TESTS_COLLECTED}:
        failed.append("pytest")
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\neverything that ran is well")
    return 1 if failed else 0


def _last_failed() -> list[str]:
    """Ids of the tests that failed in the run before, as pytest remembers them."""
    try:
        found = json.loads((lint.CLONE / ".pytest_cache/v/cache/lastfailed").read_text())
    except (OSError, ValueError):
        return []
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
