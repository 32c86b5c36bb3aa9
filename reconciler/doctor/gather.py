"""What hived alone can tell: rows, repositories, profiles, containers, and what of them has no row."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from reconciler.approvals.projection import missing_tags
from reconciler.config import Config
from reconciler.doctor.disk import disk_facts
from reconciler.doctor.facts import AgentRow, Facts, GatewayFact, ProfileFacts, TagFacts
from reconciler.effects import process
from reconciler.effects.protocols import Containers, Git, Nix
from reconciler.errors import HiveError
from reconciler.model.instants import MICRO
from reconciler.model.names import AGENT_NAME_PATTERN, AgentName
from reconciler.store import copies, health
from reconciler.store.db import Row, Store
from reconciler.store.health import Known

META = AgentName("meta")
DEPLOYED_MAX_BYTES = 64 * 1024
_TRY_S = 10.0
_QUICK_BYTES = 256 << 20
_REPOSITORY = re.compile(rf"({AGENT_NAME_PATTERN})\.git")
_GROUP = re.compile(rf"({AGENT_NAME_PATTERN})\.[0-9a-f]{{32}}")
_TAG_NUMBER = re.compile(r"[a-z]+/([1-9][0-9]{0,18})")
_VERSIONS = {
    "git": ("git", "--version"),
    "nix": ("nix-build", "--version"),
    "systemd": ("systemd-nspawn", "--version"),
    "bubblewrap": ("bwrap", "--version"),
}


class GatewayLink(Protocol):
    """What is known of the gateway."""

    @property
    def connected(self) -> bool: ...
    @property
    def problems(self) -> Mapping[str, str]: ...


class Gathering:
    """Finds all facts. Reads only."""

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        containers: Containers,
        git: Git,
        nix: Nix,
        gateway: GatewayLink,
    ) -> None:
        self._store = store
        self._config = config
        self._containers = containers
        self._git = git
        self._nix = nix
        self._gateway = gateway

    async def facts(self) -> Facts:
        """All of them; some seconds on a large hive."""
        db = self._store.state
        rows = await health.agents(db)
        known = await health.known(db)
        agents = tuple(_agent(row) for row in rows)
        found = await asyncio.to_thread(disk_facts, self._config, agents)
        newest = await health.newest_at(db)
        strays = await asyncio.to_thread(lambda: tuple(_strays(self._config, known)))
        databases, schemas = await self._databases()
        return replace(
            found,
            agents=agents,
            databases=databases,
            schemas=schemas,
            audit=await health.audit_chain(db),
            newest_at=None if newest is None else newest / MICRO,
            given_up=tuple(await health.given_up(db)),
            tags=await self._tags(rows, known),
            deploy_log=await self._deploy_log(rows),
            profiles=await self._profiles(agents),
            strays=(*await self._stray_containers(known), *strays),
            versions=await self._versions(),
            others_may_make_them=await self._build_user_makes_namespaces(),
            enforced=await self._enforced(agents),
            gateway=GatewayFact(self._gateway.connected, dict(self._gateway.problems)),
        )

    # ------------------------------------------------------------------------------------------- rows
    async def _databases(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, int]]]:
        faults, schemas = {}, {}
        for database in (self._store.state, self._store.events):
            name = database.path.name
            async with database.picture() as picture:
                quick = database.path.stat().st_size > _QUICK_BYTES
                faults[name] = tuple(await picture.faults(quick=quick))
                schemas[name] = (await picture.schema(), copies.newest_schema(name))
        return faults, schemas

    async def _tags(self, rows: Sequence[Row], known: Known) -> dict[str, TagFacts]:
        found: dict[str, TagFacts] = {}
        for row in rows:
            name = AgentName(row["name"])
            drift = await missing_tags(self._git, self._store.state, name)
            there = await self._git.tags(name)
            unknown = [
                tag for tag in there
                if (number := _TAG_NUMBER.fullmatch(tag)) and int(number[1]) not in known.proposals
            ]  # fmt: skip
            found[name] = TagFacts(
                tuple(one.tag for one in (*drift.missing, *drift.moved)), tuple(sorted(unknown))
            )
        return found

    async def _deploy_log(self, rows: Sequence[Row]) -> dict[str, str]:
        if await health.waits(self._store.state, "meta"):
            return {}
        wrong = {}
        main = await self._git.main(META)
        for row in rows:
            if row["generation"] is None or row["desired"] == "destroyed":
                continue
            path = f"agents/{row['name']}.json"
            text = None if main is None else await self._git.read(META, main, path, DEPLOYED_MAX_BYTES)
            told = _parsed(text)
            if told is None:
                wrong[row["name"]] = "it is not in it"
            elif any(told.get(key) != value for key, value in deployed(row).items()):
                wrong[row["name"]] = f"it says generation {told.get('generation')}, not {row['generation']}"
        return wrong

    async def _profiles(self, agents: tuple[AgentRow, ...]) -> dict[str, ProfileFacts]:
        found = {}
        for agent in agents:
            if agent.generation is not None and agent.store_path is not None and agent.desired != "destroyed":
                name = AgentName(agent.name)
                found[agent.name] = ProfileFacts(
                    await self._nix.selected(name),
                    await self._nix.generations(name),
                    await self._nix.exists(agent.store_path),
                )
        return found

    # ------------------------------------------------------------------------------------------- containers
    async def _enforced(self, agents: tuple[AgentRow, ...]) -> dict[str, tuple[str, ...]]:
        found = {}
        for agent in agents:
            status = await self._containers.status(AgentName(agent.name))
            if status.phase == "running":
                found[agent.name] = status.limits_enforced
        return found

    async def _stray_containers(self, known: Known) -> list[tuple[str, str]]:
        names = await self._containers.list()
        return [("container", name) for name in names if name not in known.agents]

    # ------------------------------------------------------------------------------------------- the host
    async def _versions(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {
            "python": ".".join(map(str, sys.version_info[:3])),
            "sqlite": copies.sqlite_version(),
            "kernel": Path("/proc/sys/kernel/osrelease").read_text().strip(),
        }
        for name, argv in _VERSIONS.items():
            found[name] = await self._version(argv)
        if self._config.platform == "bare":
            found["harness CLI"] = await asyncio.to_thread(_cli_version, Path(self._config.harness.venv))
        return found

    @staticmethod
    async def _version(argv: tuple[str, ...]) -> str | None:
        try:
            done = await process.run(argv, timeout_s=_TRY_S, env={"HOME": "/nonexistent"})
        except HiveError:
            return None
        number = re.search(r"\d+(\.\d+)*", done.text)
        return number[0] if number else None

    async def _build_user_makes_namespaces(self) -> bool | None:
        try:
            await process.run(["unshare", "--user", "true"], timeout_s=_TRY_S, user=self._config.build_user)
        except HiveError as error:
            return False if error.code == "command-failed" else None
        return True


def deployed(row: Row) -> dict[str, Any]:
    """What the deploy log says of an agent's current generation."""
    return {
        "agent": row["name"],
        "generation": row["generation"],
        "commit": row["commit_id"],
        "proposal": row["proposal_id"],
        "store_path": row["store_path"],
    }


def _agent(row: Row) -> AgentRow:
    return AgentRow(
        row["name"],
        row["uid_base"],
        row["desired"],
        row["generation"],
        row["store_path"],
        bool(row["deploying"]),
    )


def _parsed(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _cli_version(venv: Path) -> str | None:
    """Of the genuine CLI that the harness's environment brings."""
    for path in venv.glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"):
        version = path.parent.parent / "_cli_version.py"
        found = re.search(r'"([0-9.]+)"', version.read_text()) if version.exists() else None
        if path.stat().st_mode & 0o111 and found:
            return found[1]
    return None


def _strays(config: Config, known: Known) -> Iterator[tuple[str, str]]:
    """Things on the disk whose names no row bears."""
    state, run = Path(config.state_dir), Path(config.run_dir)
    for path in sorted((state / "repos").glob("*.git")):
        found = _REPOSITORY.fullmatch(path.name)
        if not path.name.startswith(".") and (found is None or found[1] not in known.repositories):
            yield "repository", str(path)
    for kind, folder in (
        ("directory", state / "agents"), ("sockets", run / "agents"), ("profile", state / "profiles"),
    ):  # fmt: skip
        for path in _entries(folder):
            if path.name not in known.agents:
                yield kind, str(path)
    for path in sorted((state / "staged").glob("*")):
        if path.stem.isdecimal() and int(path.stem) not in known.staged:
            yield "staged state", str(path)
    yield from _stray_groups(known)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = Path(line.split()[4].replace("\\040", " "))
        for top in (state / "agents", run / "agents"):
            if where != top and where.is_relative_to(top):
                yield "mount", str(where)


def _stray_groups(known: Known) -> Iterator[tuple[str, str]]:
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
        for path in _entries(hierarchy / "hyperhive"):
            group = _GROUP.fullmatch(path.name)
            if path.is_dir() and group is not None and group[1] not in known.agents:
                yield "control group", str(path)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
