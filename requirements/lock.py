"""Resolves requirements/*.in into hash-pinned locks that hold for every supported Python (`make lock`).

Uses uv in a throw-away environment, because pip itself cannot lock for interpreters that it does not run on.
No address of an index is written, so a mirror configured for pip serves as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The dev group includes the host group and must pin the same versions: both live in one environment.
GROUPS = {"host": (), "harness": (), "dev": ("-c", "host.txt")}
_COMPILE = (
    *("pip", "compile", "--quiet", "--universal", "--generate-hashes", "--python-version", "3.11"),
    *("--custom-compile-command", "make lock"),
)


def main() -> int:
    """Resolves all groups; pins that are there stay unless `--upgrade` is given."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", "uv"], check=True)
        for group, constraints in GROUPS.items():
            argv = [
                f"{folder}/bin/uv",
                *_COMPILE,
                *sys.argv[1:],
                *constraints,
                "-o",
                f"{group}.txt",
                f"{group}.in",
            ]
            subprocess.run(argv, check=True, cwd=HERE, env=os.environ | {"UV_NATIVE_TLS": "1"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
