"""One decision for people: the engine itself, outside of any container.

Reads `{"spec": …, "role": …, "command": …, "folder": …}` from standard input and writes `{"allowed": …,
"reason": …}`. The host runs it as an unprivileged user (`hive policy`). Links in paths are not followed
here, for the agent's files are in its container.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import sys
from collections.abc import Sequence

from harness.config import Config
from harness.policy.engine import Policy
from harness.spec import AgentSpec


async def _normal(paths: Sequence[str]) -> Sequence[str]:
    return [posixpath.normpath(path) for path in paths]


def main() -> int:
    """Status 0 if it was decided, whatever the decision."""
    asked = json.load(sys.stdin)
    rules = AgentSpec.model_validate(asked["spec"]).rules(asked["role"], Config())
    decision = asyncio.run(
        Policy(rules, _normal).decide("Bash", {"command": asked["command"]}, asked["folder"])
    )
    json.dump({"allowed": decision.allowed, "reason": decision.reason}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
