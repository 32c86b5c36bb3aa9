"""How git is run: the environment that takes away every way in which a repository could run programs.

No system or user configuration, no hooks, no filesystem monitor, no replace refs, no prompts, no
transport but local files. The same environment holds for git inside the sandbox and for the one GitPython
starts.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from reconciler.effects.process import Completed, Rlimits, run

LOCAL_S = 20.0
MIB = 1024 * 1024

_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    # above this size git streams instead of holding an object in memory
    "core.bigFileThreshold": "1m",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "protocol.allow": "never",
    "protocol.file.allow": "always",
    "safe.bareRepository": "explicit",
    "transfer.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "1",
}
ENVIRONMENT: dict[str, str] = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "GIT_SSH_COMMAND": "/bin/false",
    "GIT_PAGER": "cat",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_CONFIG_COUNT": str(len(_SETTINGS)),
    **{f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(_SETTINGS)},
    **{f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(_SETTINGS.values())},
}


async def git(
    repository: Path,
    *arguments: str,
    stdin: bytes | Path | None = None,
    accept: Container[int] = (0,),
    timeout_s: float = LOCAL_S,
    max_stdout: int = 4 * MIB,
    rlimits: Rlimits | None = None,
) -> Completed:
    """Run git on one of our own bare repositories. Raises `CommandError`."""
    return await run(
        ["git", f"--git-dir={repository}", *arguments],
        timeout_s=timeout_s,
        env=ENVIRONMENT,
        rlimits=rlimits,
        stdin=stdin,
        accept=accept,
        max_stdout=max_stdout,
        umask=0o077,
        room_in=(repository,),
    )
