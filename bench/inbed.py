"""Parts of the benchmark that need systemd as PID 1, measured in a throw-away host (`checks/bed/`).

On the machine itself they would write its unit files. The host's processes run on this machine's kernel, disk
and processors: what it costs to be in a container is in both sides of each ratio.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from bench.figures import Figure
from checks.bed import images
from checks.bed.guest import SOURCE, Bed

_DEADLINE_S = 1800.0


def measure(parts: Sequence[str], suite: images.Suite, samples: int | None) -> list[Figure]:
    """The figures of these parts, as a benchmark inside of the bed has them."""
    with Bed(images.ensure(suite)) as bed:
        version = bed.run("systemctl", "--version").stdout.split()[1]
        print(
            f"{', '.join(parts)}: with real units, in a throw-away host "
            f"(Debian {suite}, systemd {version}), as they would write those of this machine",
            file=sys.stderr,
        )
        done = bed.unit(
            *(f"{SOURCE}/.venv/bin/python", "-m", "bench", "--in-bed", "--json", *parts),
            *(("--samples", str(samples)) if samples else ()),
            properties=("Delegate=yes", f"WorkingDirectory={SOURCE}", "TimeoutStopSec=5"),
            timeout_s=_DEADLINE_S,
        )
    return [Figure(**one) for one in json.loads(done.stdout)]
