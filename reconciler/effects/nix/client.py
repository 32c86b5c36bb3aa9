"""Nix: hostile `agent.nix` evaluated in a sandbox, roots built as an unprivileged user through the daemon.

What is evaluated and what is built are two things on purpose. A commit's Nix code runs only in `evaluate`:
no daemon, no store, no network, no file but its own, bounded in time, memory and output. `build` takes the
validated spec and the hive's own modules, and never sees the commit's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.config import Config
from reconciler.effects import process, sandbox
from reconciler.effects.nix.output import LINE_BYTES, BuildOutput
from reconciler.effects.nix.profiles import Profiles
from reconciler.effects.process import MIB, Rlimits
from reconciler.effects.protocols import Evaluation, LogSink, ProgressSink
from reconciler.effects.validation import evaluation, refused
from reconciler.errors import CommandError, InvalidError, PermanentError, Refusal, TemporaryError
from reconciler.model.names import AgentName

_TREE = "/hive/tree"
_MODULES = "/hive/modules"
_EXPRESSION = f"import {_MODULES}/bare/evaluate.nix {{ agent = {_TREE}/agent.nix; }}"
_EVALUATE = (
    "nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://",
    "--option", "restrict-eval", "true",  # no file but below -I, no fetcher, no environment
    "--option", "allow-import-from-derivation", "false",
    "--option", "allowed-uris", "",
    "--option", "substituters", "",
    "-I", _MODULES, "-I", _TREE, "-E", _EXPRESSION,
)  # fmt: skip
_EVALUATE_LIMITS = Rlimits(address_space=2048 * MIB, file_size=16 * MIB, nproc=256, nofile=256)
_MAX_JSON_BYTES = 4 * MIB
_MAX_MESSAGES_BYTES = MIB
_MAX_REFUSALS = 20
# A client only evaluates the hive's own modules and talks to the daemon; what is built is the daemon's.
_BUILD_LIMITS = Rlimits(
    cpu_s=600, address_space=4096 * MIB, file_size=16 * MIB, nproc=512, nofile=512
)  # fmt: skip
_MAX_PATHS_BYTES = 64 * 1024
_MAX_LOG_BYTES = 16 * MIB

_ERROR_HEAD_BYTES, _ERROR_TAIL_BYTES = 3000, 5000  # newer Nix puts the cause last, older first
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RealNix:
    """`Nix` on this machine, over the daemon that the environment names.

    `environment` goes to every client of the daemon: where it and its store are, if not in the usual places
    (NIX_REMOTE, NIX_STORE_DIR, …). At most `parallel_builds` evaluations, and as many builds, run at once.
    """

    def __init__(self, config: Config, environment: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._modules = Path(config.modules)
        self._environment = {"NIX_REMOTE": "daemon", **(environment or {})}
        self._clients = Path(config.state_dir) / "clients"
        self._profiles = Profiles(Path(config.state_dir) / "profiles", self._environment)
        self._evaluations = asyncio.Semaphore(config.parallel_builds)
        self._builds = asyncio.Semaphore(config.parallel_builds)

    async def evaluate(self, tree: Path) -> Evaluation:
        """The spec of `tree/agent.nix`; about 50 ms. `TemporaryError` if the sandbox itself could not be
        made."""
        if not (tree / "agent.nix").is_file() or (tree / "agent.nix").is_symlink():
            raise InvalidError(
                "the commit has no agent.nix", hint="every agent's repository has one at its top"
            )
        for path in (tree, tree / "agent.nix"):
            if not self._can_read(path):
                raise PermanentError(
                    f"{path} cannot be read by {self._config.build_user}, which evaluates it"
                )
        async with self._evaluations:
            text = await self._sandboxed(tree)
        try:
            result = json.loads(text)
            found, spec = result["refusals"], result["spec"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError(f"agent.nix did not evaluate to a spec: {error}") from error
        if found:
            refusals = (Refusal(entry["where"], entry["why"], entry["allowed"]) for entry in found)
            raise refused(tuple(refusals)[:_MAX_REFUSALS])
        return evaluation(spec)

    async def build(
        self,
        name: AgentName,
        tree: Path,
        spec_json: Mapping[str, Any],
        log: LogSink,
        progress: ProgressSink | None = None,
    ) -> str:
        """Build the agent's root; `tree` is not looked at on the bare platform.

        Until `set_generation` or `release` the path is held by the root `building` of its profile.
        """
        del tree
        async with self._builds:
            with self._client_directory() as (directory, environment):
                spec = directory / "spec.json"
                spec.write_text(json.dumps(spec_json, sort_keys=True))
                spec.chmod(0o644)
                command: list[str | Path] = [
                    "nix-build", self._modules / "bare/build.nix", "--argstr", "name", name,
                    "--argstr", "specFile", spec, "--out-link", directory / "result",
                    "--log-format", "internal-json", "--timeout", str(int(self._config.timeouts.build_s) + 1),
                ]  # fmt: skip
                done = await self._client(command, directory, environment, BuildOutput(log, progress))
                path = done.text.strip()
                if not re.fullmatch(rf"/\S*/[0-9a-z]{{32}}-hive-{re.escape(name)}", path):
                    raise PermanentError(
                        f"nix-build of {name} printed {path[:200]!r} instead of a store path"
                    )
                # Before the client's own root goes, so that no collection can come in between.
                await self._profiles.hold(name, path)
        return path

    async def _client(
        self,
        command: Sequence[str | Path],
        directory: Path,
        environment: Mapping[str, str],
        output: BuildOutput,
    ) -> process.Completed:
        """Run a building client within its bounds; its error ends with what a person would have read."""
        try:
            return await process.run(
                command,
                timeout_s=self._config.timeouts.build_s,
                env=environment,
                cwd=directory,
                user=self._config.build_user,
                rlimits=_BUILD_LIMITS,
                max_stdout=_MAX_PATHS_BYTES,
                max_stderr=_MAX_LOG_BYTES,
                log=output.take,
                line_max=LINE_BYTES,
                room_in=(directory, *self._store_places()),
            )
        except CommandError as error:
            if error.code == "output-too-large":
                output.tail.append(f"the build printed more than {_MAX_LOG_BYTES // MIB} MiB")
            record = replace(error.record, stderr_tail="\n".join(output.tail))
            raise CommandError(record, code=error.code) from error
        finally:
            await output.end()

    async def release(self, name: AgentName, keep: str | None) -> None:
        """Remove the root `building`, unless it holds `keep`."""
        await self._profiles.release(name, keep)

    async def sweep(self) -> None:
        """Remove directories of clients that a killed hived left."""
        for left in await asyncio.to_thread(lambda: list(self._clients.glob("*"))):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)

    async def set_generation(self, name: AgentName, number: int, store_path: str) -> None:
        """Pin the path in the agent's profile; `CommandError` if it is not in the store."""
        await self._profiles.pin(name, number, store_path)

    async def generations(self, name: AgentName) -> dict[int, str]:
        """Pinned generations, by number."""
        return await self._profiles.pinned(name)

    async def select(self, name: AgentName, number: int) -> None:
        """Point the agent's profile to a pinned generation."""
        await self._profiles.select(name, number)

    async def selected(self, name: AgentName) -> int | None:
        """The generation that the agent's profile points to."""
        return await self._profiles.selected(name)

    async def runs(self, name: AgentName, number: int, store_path: str) -> bool:
        """A few looks at links."""
        return await self._profiles.runs(name, number, store_path)

    async def drop_generations(self, name: AgentName) -> None:
        """Remove the agent's roots; the store forgets them at its next collection."""
        await self._profiles.drop(name)

    async def exists(self, store_path: str) -> bool:
        """Whether the store has that path, valid and on the disk."""
        return await self._profiles.exists(store_path)

    # ------------------------------------------------------------------------------------------- inside
    def _can_read(self, path: Path) -> bool:
        """By mode and owner; else the agent would be blamed for what hived did wrong."""
        found, (uid, gid) = path.stat(), process.identity(self._config.build_user)
        bits = 0o500 if found.st_uid == uid else 0o050 if found.st_gid == gid else 0o005
        needed = bits if path.is_dir() else bits & 0o444
        return found.st_mode & needed == needed

    async def _sandboxed(self, tree: Path) -> str:
        """Standard output of the evaluation; whatever the hostile code does ends as `InvalidError`."""
        program = shutil.which("nix-instantiate", path=process.PATH)
        if program is None:
            raise PermanentError(
                "cannot evaluate: nix-instantiate is not installed", hint="run `hive doctor`"
            )
        system, links = await asyncio.to_thread(sandbox.system_of, Path(program))
        state = {"NIX_STATE_DIR": "/tmp/nix", "NIX_CONF_DIR": "/tmp/none", "NIX_STORE_DIR": "/nix/store"}  # noqa: S108
        box = sandbox.Sandbox(
            read_only={_MODULES: self._modules, _TREE: tree}, system=system, links=links, environment=state
        )
        deadline = self._config.timeouts.examine_s
        limits = Rlimits(
            cpu_s=int(deadline) + 1,
            address_space=_EVALUATE_LIMITS.address_space,
            file_size=_EVALUATE_LIMITS.file_size,
            nproc=_EVALUATE_LIMITS.nproc,
            nofile=_EVALUATE_LIMITS.nofile,
        )
        try:
            done = await process.run(
                sandbox.command(box, [program, *_EVALUATE[1:]]),
                timeout_s=deadline,
                user=self._config.build_user,
                rlimits=limits,
                max_stdout=_MAX_JSON_BYTES,
                max_stderr=_MAX_MESSAGES_BYTES,
                room_in=(),  # it can write nothing but a scratch file system of its own
            )
        except CommandError as error:
            raise _evaluation_error(error, deadline) from error
        return done.text

    def _store_places(self) -> Sequence[Path]:
        """Where the daemon writes for a build: the store, its database, and where it builds."""
        store = self._environment.get("NIX_STORE_DIR", "/nix/store")
        state = self._environment.get("NIX_STATE_DIR", "/nix/var/nix")
        return (Path(store), Path(state), Path("/tmp"))  # noqa: S108 - the daemon's default

    @contextlib.contextmanager
    def _client_directory(self) -> Iterator[tuple[Path, dict[str, str]]]:
        """A home for one Nix client run as the build user: its directory and environment."""
        self._clients.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=self._clients))
        try:
            os.chown(directory, *process.identity(self._config.build_user))
            home = str(directory)
            yield directory, {**self._environment, "HOME": home, "XDG_CACHE_HOME": home, "TMPDIR": home}
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _evaluation_error(error: CommandError, deadline: float) -> InvalidError | TemporaryError:
    """What went wrong, in the proposer's words."""
    record = error.record
    if error.code == "command-timeout":
        return InvalidError(f"evaluating agent.nix took longer than {deadline:g} s", hint="does it loop?")
    if error.code == "output-too-large":
        return InvalidError(
            f"evaluating agent.nix printed more than {_MAX_MESSAGES_BYTES} bytes of messages "
            f"or {_MAX_JSON_BYTES} bytes of result"
        )
    # bwrap speaks first or not at all: nothing of the agent ran before this could be written.
    if record.stderr_tail.startswith("bwrap: "):
        return TemporaryError(
            f"the evaluation sandbox could not be made: {_bounded(record.stderr_tail)}", after_s=30
        )
    if record.exit_code is not None and (record.exit_code < 0 or record.exit_code > 128):
        what = _bounded(record.stderr_tail) or "it was killed"
        return InvalidError(f"evaluating agent.nix ran out of its memory or processor time: {what}")
    return InvalidError(f"agent.nix does not evaluate: {_bounded(record.stderr_tail)}")


def _bounded(text: str) -> str:
    """Nix's messages without colours and our own paths, 8 KiB at most."""
    plain = _COLOUR.sub("", text).replace(f"{_TREE}/", "").strip()
    if len(plain) <= _ERROR_HEAD_BYTES + _ERROR_TAIL_BYTES:
        return plain
    return f"{plain[:_ERROR_HEAD_BYTES]}\n…\n{plain[-_ERROR_TAIL_BYTES:]}"
