"""`make test`: linters, then all tests, then one summary of what ran and what was left out.

Tests run even when a linter fails, so that one run tells everything. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys

import lint

_NO_TESTS_COLLECTED = 5


def main(arguments: list[str]) -> int:
    """Further arguments go to pytest. Exit status 1 when anything failed."""
    print("lint", flush=True)
    findings = lint.run()
    print("tests", flush=True)
    argv = [lint.PYTHON, "-m", "pytest", "-q", *arguments]
    environment = os.environ | {"PYTHONPATH": str(lint.CLONE)}
    status = subprocess.run(argv, cwd=lint.CLONE, env=environment, check=False).returncode
    print("\nlinters")
    for name, outcome in findings.items():
        print(f"  {name:<22} {outcome}")
    failed = [name for name, outcome in findings.items() if outcome == lint.FAILED]
    if status not in {0, _NO_TESTS_COLLECTED}:
        failed.append("pytest")
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\neverything that ran is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
