"""Nix in memory, with the contract of the real effect (`tests/contract/test_nix.py`)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.effects.protocols import BuildProgress, Evaluation, LogSink, ProgressSink
from reconciler.effects.validation import evaluation, refused
from reconciler.errors import CommandError, CommandRecord, InvalidError, PermanentError, Refusal
from reconciler.model.names import AgentName
from tests.fakes.faults import Faults
from tests.fakes.nixlang import NixError, parse


class FakeNix:
    """Evaluates the plain-value subset of Nix; store paths are made of the spec's digest.

    `broken`: names whose build fails. `profiles[name]`: number → store path; `pointers[name]`: the selected
    number; `held[name]`: a finished build that is not pinned yet. `builds`: names, in order. `store`: paths
    that exist; what is taken out of it is gone. `gates[name]`: a build of that name waits for it.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.broken: set[AgentName] = set()
        self.profiles: dict[AgentName, dict[int, str]] = {}
        self.pointers: dict[AgentName, int] = {}
        self.held: dict[AgentName, str] = {}
        self.gates: dict[AgentName, asyncio.Event] = {}
        self.builds: list[AgentName] = []
        self.store: set[str] = set()

    async def evaluate(self, tree: Path) -> Evaluation:
        async with self.faults.call("nix.evaluate", changes=False):
            try:
                value = parse((tree / "agent.nix").read_text())
            except FileNotFoundError as error:
                raise InvalidError("the commit has no agent.nix") from error
            except NixError as error:
                raise InvalidError(f"agent.nix does not evaluate: error: {error}") from error
            if not isinstance(value, dict):
                raise refused((Refusal("agent.nix", "is no set", "a set, or a function to one"),))
            others = sorted(value.keys() - {"hyperhive"})
            if others:
                raise refused(
                    tuple(Refusal(name, "needs the NixOS platform", "hyperhive.*") for name in others)
                )
            return evaluation(value.get("hyperhive", {}))

    async def build(
        self,
        name: AgentName,
        tree: Path,
        spec_json: Mapping[str, Any],
        log: LogSink,
        progress: ProgressSink | None = None,
    ) -> str:
        if progress is not None:
            progress(BuildProgress(0, 1, (f"hive-{name}",)))
        await log(f"building the root of {name}")
        if (gate := self.gates.get(name)) is not None:
            await gate.wait()
        async with self.faults.call("nix.build", name):
            if name in self.broken:
                record = CommandRecord(
                    ("nix-build",),
                    1,
                    0.1,
                    stderr_tail="error: builder for 'hive-root.drv' failed with exit code 1",
                )
                raise CommandError(record)
            text = json.dumps([name, spec_json], sort_keys=True)
            path = f"/nix/store/{hashlib.sha256(text.encode()).hexdigest()[:32]}-hive-{name}"
            self.builds.append(name)
            self.store.add(path)
            self.held[name] = path
            if progress is not None:
                progress(BuildProgress(1, 1))
            return path

    async def release(self, name: AgentName, keep: str | None) -> None:
        if self.held.get(name) not in {None, keep}:
            async with self.faults.call("nix.release", name):
                self.held.pop(name, None)

    async def sweep(self) -> None:
        """Nothing of it is on a disk."""

    async def set_generation(self, name: AgentName, number: int, store_path: str) -> None:
        async with self.faults.call("nix.set_generation", f"{name} {number}"):
            if store_path not in self.store:
                record = CommandRecord(
                    ("nix-store",), 1, 0.1, stderr_tail=f"error: path '{store_path}' is not valid"
                )
                raise CommandError(record)
            self.profiles.setdefault(name, {})[number] = store_path
            if self.held.get(name) == store_path:
                del self.held[name]

    async def generations(self, name: AgentName) -> dict[int, str]:
        async with self.faults.call("nix.generations", name, changes=False):
            return self._pinned(name)

    async def select(self, name: AgentName, number: int) -> None:
        async with self.faults.call("nix.select", f"{name} {number}"):
            if number not in self._pinned(name):
                raise PermanentError(f"cannot select generation {number} of {name}: it is not pinned")
            self.pointers[name] = number

    async def selected(self, name: AgentName) -> int | None:
        async with self.faults.call("nix.selected", name, changes=False):
            number = self.pointers.get(name)
            return number if number in self._pinned(name) else None

    async def runs(self, name: AgentName, number: int, store_path: str) -> bool:
        async with self.faults.call("nix.runs", name, changes=False):
            return self.pointers.get(name) == number and self._pinned(name).get(number) == store_path

    async def drop_generations(self, name: AgentName) -> None:
        async with self.faults.call("nix.drop_generations", name):
            self.profiles.pop(name, None)
            self.pointers.pop(name, None)
            self.held.pop(name, None)

    async def exists(self, store_path: str) -> bool:
        async with self.faults.call("nix.exists", store_path, changes=False):
            return store_path in self.store

    def lose(self, store_path: str) -> None:
        """A path is taken out of the store behind everybody's back."""
        self.store.discard(store_path)

    def _pinned(self, name: AgentName) -> dict[int, str]:
        found = self.profiles.get(name, {})
        return {number: found[number] for number in sorted(found) if found[number] in self.store}
