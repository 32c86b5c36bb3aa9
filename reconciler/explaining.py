"""What an agent's Bash policy says of a command, for the operator.

The engine is the harness's own and runs as a program of its own, as the build user and in the harness's
environment: the host imports none of it, its parser (native code) reads nothing inside hived, and what is
explained is decided by exactly the code that decides inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects import process
from reconciler.errors import TemporaryError
from reconciler.model.text import visible

_DEADLINE_S = 20.0
_MEMORY_BYTES = 1024 * process.MIB


async def explain(config: Config, spec: api.SpecView, command: str, folder: str) -> api.PolicyAnswer:
    """The decision under an approved spec. `TemporaryError` if the engine did not answer."""
    answer = await _asked(config, spec.spec, command, folder)
    bash: Mapping[str, Any] = spec.spec.get("bash", {})
    return api.PolicyAnswer(
        agent=spec.agent,
        generation=spec.generation,
        command=visible(command),
        folder=folder,
        allowed=answer.get("allowed") is True,
        reason=visible(str(answer.get("reason", ""))),
        allow=list(bash.get("allow", [])),
        deny=list(bash.get("deny", [])),
    )


async def _asked(config: Config, spec: Mapping[str, Any], command: str, folder: str) -> dict[str, Any]:
    asked = {"spec": spec, "role": spec.get("role", "agent"), "command": command, "folder": folder}
    done = await process.run(
        [Path(config.harness.venv) / "bin/python", "-s", "-B", "-m", "harness.policy"],
        timeout_s=_DEADLINE_S,
        env={"PYTHONPATH": str(Path(config.harness.package).parent), "HOME": "/nonexistent"},
        stdin=json.dumps(asked).encode(),
        user=config.build_user,
        rlimits=process.Rlimits(cpu_s=10, address_space=_MEMORY_BYTES),
        max_stdout=process.MIB,
    )
    try:
        answer = json.loads(done.text)
    except ValueError as error:
        raise TemporaryError("the policy's engine did not answer", hint="run `hive doctor`") from error
    return answer if isinstance(answer, dict) else {}
