"""The console of a unit's container: the last lines of one invocation, from the journal.

The writer is hostile: the number of bytes read is bounded, and lines are cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from reconciler.effects import process
from reconciler.effects.containers.console import MAX_LINE_CHARACTERS
from reconciler.errors import CommandError

_TIMEOUT_S = 10.0
_MAX_BYTES = 8 * 1024 * 1024


async def last_lines(invocation: str, lines: int, *, over: bool) -> Sequence[str]:
    """Oldest first, each cut at 2000 characters; fewer than asked for when they are very long. `over`: no
    more will come, so what is still on its way to the journal is waited for."""
    if lines <= 0:
        return []
    if over:
        with contextlib.suppress(CommandError):  # a busy journal is no reason to fail
            await process.run(["journalctl", "--sync"], timeout_s=_TIMEOUT_S)
    while True:
        try:
            done = await process.run(
                [
                    "journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}",
                    f"_SYSTEMD_INVOCATION_ID={invocation}",
                ],
                timeout_s=_TIMEOUT_S,
                max_stdout=_MAX_BYTES, room_in=(),
            )  # fmt: skip
        except CommandError as error:
            if error.code != "output-too-large" or lines <= 1:
                raise
            lines //= 2
            continue
        found = done.text.split("\n")
        if found and not found[-1]:
            found.pop()
        return [line.rstrip("\r")[:MAX_LINE_CHARACTERS] for line in found]
