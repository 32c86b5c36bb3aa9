"""Closes clone(CLONE_NEWUSER) inside a running container, for every driver."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.effects import process
from reconciler.effects.containers.proc import ProcessRef
from reconciler.errors import PermanentError, TemporaryError


async def forbid(name: str, leader: ProcessRef | None) -> None:
    """Set user.max_user_namespaces = 0 in the user namespace of the container's first process, and read it
    back; `TemporaryError` code `not-running` without a living one."""
    if leader is None or not leader.is_alive():
        raise TemporaryError(f"the container of {name} does not run", code="not-running")
    # The namespace is opened first and the pid checked after, so that a reused pid cannot mislead us.
    try:
        namespace = os.open(f"/proc/{leader.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TemporaryError(f"the container of {name} ended", code="not-running") from error
    try:
        own = Path("/proc/self/ns/user").stat().st_ino
        if not leader.is_alive() or os.fstat(namespace).st_ino == own:
            raise TemporaryError(f"the container of {name} ended", code="not-running")
        limit = "/proc/sys/user/max_user_namespaces"
        user = f"--user=/proc/{os.getpid()}/fd/{namespace}"
        done = await process.run(
            ["nsenter", user, "--", "/bin/sh", "-c", f"echo 0 > {limit} && cat {limit}"], timeout_s=5.0
        )
    finally:
        os.close(namespace)
    if done.text.strip() != "0":
        raise PermanentError(f"max_user_namespaces of {name} is {done.text.strip()!r} after writing 0")
