"""A program killed at the entry of its n-th system call that changes something on the disk, by strace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

CLONE = Path(__file__).resolve().parents[3]
RUN_S = 120
CHANGING = (
    "write", "pwrite64", "writev", "sendfile", "copy_file_range", "ftruncate", "fallocate", "rename",
    "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "mkdir",
    "mkdirat", "chown", "lchown", "fchown", "fchownat", "chmod", "fchmod", "fchmodat", "utimensat", "fsync",
    "fdatasync",
)  # fmt: skip
_SET = ",".join(f"?{name}" for name in CHANGING)  # not every machine has all of them
_CALL = re.compile(r"(\w+)\(")

Call = tuple[str, int]
"""A system call and which of its kind, from 1."""


def calls_of(argv: Sequence[str], environment: Mapping[str, str]) -> list[Call]:
    """What the program calls on its way to its end, which must be a good one."""
    with tempfile.NamedTemporaryFile() as log:
        done = _run(["-o", log.name, "-e", f"trace={_SET}"], argv, environment)
        assert done.returncode == 0, done.stderr.decode()
        names = [found[1] for line in Path(log.name).read_text().splitlines() if (found := _CALL.match(line))]
    counts: Counter[str] = Counter()
    calls = []
    for name in names:
        counts[name] += 1
        calls.append((name, counts[name]))
    return calls


def killed_at(call: Call, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the program came to that call; it is dead before it is made."""
    name, number = call
    done = _run(
        ["-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"],
        argv,
        environment,
    )
    return done.returncode not in {0, 1, 2}


def _run(
    options: Sequence[str], argv: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["strace", *options, sys.executable, *argv],
        cwd=CLONE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CLONE),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RUN_S,
        check=False,
    )
