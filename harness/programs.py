"""Running programs as the agent's own user, never as container root.

The trees of the agent are its own: a repository there can be prepared to run anything. So git, tar and path
look-ups run as uid 1000 without capabilities, with an environment that the harness writes, a deadline, and
bounded output, which is hostile text or bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.config import AGENT_UID

_STDERR_MAX = 16 * 1024
_PATIENCE_S = 5.0
_PAUSES_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_AS_AGENT = (
    *("setpriv", f"--reuid={AGENT_UID}", f"--regid={AGENT_UID}", "--clear-groups"),
    *("--inh-caps=-all", "--pdeathsig=KILL", "--"),
)


log = logging.getLogger(__name__)


class ProgramError(Exception):
    """A program failed, ran out of time or wrote too much; the message holds the last lines of its errors."""


class AgentPrograms:
    """Starts programs as the agent. `environment` is the whole of what they get; `prefix` is for tests
    only."""

    def __init__(self, environment: Mapping[str, str], prefix: Sequence[str] = _AS_AGENT) -> None:
        self._environment = dict(environment)
        self._prefix = tuple(prefix)
        self._running = 0
        self._none_running = asyncio.Event()
        self._none_running.set()
        self._sweeping = asyncio.Lock()

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | str = "/",
        deadline_s: float = 30.0,
        output_max: int = 1 << 20,
        stdin: bytes = b"",
    ) -> bytes:
        """The program's standard output, at most `output_max` bytes; it reads `stdin`. Raises `ProgramError`;
        on cancellation it is killed."""
        async with self._sweeping:
            self._running += 1
            self._none_running.clear()
        try:
            return await self._run(self._prefix, argv, cwd, deadline_s, output_max, stdin)
        finally:
            self._running -= 1
            if self._running == 0:
                self._none_running.set()

    async def kill_all(self) -> None:
        """SIGKILL to every process of the agent's user: what a killed or closed CLI may have left behind.

        Programs of ours that are running get a little time to end first, and none begins meanwhile. One
        `kill(-1)` takes all at once, forks included; returns when none of them runs any more. Safe to repeat;
        an error means that there was nothing to kill.
        """
        async with self._sweeping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self._none_running.wait()
            for pause_s in _PAUSES_S:
                with contextlib.suppress(ProgramError):
                    # always as the agent: as anybody else this line would be a disaster
                    await self._run(_AS_AGENT, ["/bin/sh", "-c", "kill -9 -1"], "/", 10.0, 4096)
                if not await asyncio.to_thread(_any_of_agent):
                    return
                await asyncio.sleep(pause_s)
            log.error("processes of the agent go on although they were killed")

    async def _run(
        self,
        prefix: Sequence[str],
        argv: Sequence[str],
        cwd: Path | str,
        deadline_s: float,
        output_max: int,
        stdin: bytes = b"",
    ) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *("env", "-C", str(cwd)),  # the agent itself goes to the folder: container root may not enter it
            *argv,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd="/",
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(_tail(process.stderr))
        feeding = asyncio.create_task(_feed(process.stdin, stdin))
        try:
            async with asyncio.timeout(deadline_s):
                output = await _bounded(process.stdout, output_max)
                tail = await errors
                status = await process.wait()
        except TimeoutError:
            raise ProgramError(f"{argv[0]} did not end within {deadline_s:.0f} s") from None
        except ValueError:
            raise ProgramError(f"{argv[0]} wrote more than {output_max} bytes") from None
        finally:
            errors.cancel()
            feeding.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if status != 0:
            raise ProgramError(f"{argv[0]} failed ({status}): {tail.strip()[-600:] or 'no message'}")
        return output


def _any_of_agent() -> bool:
    """Whether any process of the agent's user runs; one that ended and waits for its parent does not."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (folder / "status").read_text(errors="replace")
            if re.search(rf"^Uid:\t{AGENT_UID}\t", status, re.MULTILINE) and not re.search(
                r"^State:\t[ZX]", status, re.MULTILINE
            ):
                return True
    return False


async def _feed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):  # a program need not read it
            stream.write(data)
            await stream.drain()
            stream.close()


async def _bounded(stream: asyncio.StreamReader, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while block := await stream.read(65536):
        size += len(block)
        if size > limit:
            raise ValueError
        parts.append(block)
    return b"".join(parts)


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while block := await stream.read(65536):
        kept = (kept + block)[-_STDERR_MAX:]
    return kept.decode("utf-8", "replace")
