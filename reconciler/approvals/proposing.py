"""How commits of agents become proposals: bundles, drafts and spawns of the manager; and what all makers of
proposals have in common.

The row comes first, so that whatever arrives afterwards has an id and an end; the tag `proposal/<id>`
comes last and says that all of it has arrived. A request that is repeated after a lost answer finds its
own proposal.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from harness import wire
from reconciler.approvals.examination import Examiner
from reconciler.approvals.voice import Voice
from reconciler.config import Config
from reconciler.effects.protocols import Git, HostFiles
from reconciler.errors import AgentError, DiskFullError, HiveError, InvalidError, PermanentError, disk_full
from reconciler.model.names import OPERATOR, AgentName, Commit, agent_name
from reconciler.model.names import commit as commit_id
from reconciler.model.states import ProposalKind, ProposalState, Role
from reconciler.model.template import template_files
from reconciler.store import drafts, proposals
from reconciler.store.db import Store, Tx
from reconciler.store.proposals import AgentRow

log = structlog.get_logger("approvals")

OPEN_MAX = 20
HOURLY_MAX = 60
DESCRIPTION_MAX = 2000
HOUR_S = 3600


class Proposing:
    """Makes proposals and drafts; what they mean is the examiner's work."""

    def __init__(
        self,
        *,
        store: Store,
        git: Git,
        host_files: HostFiles,
        broker: Voice,
        config: Config,
        examiner: Examiner,
    ) -> None:
        self._store = store
        self._git = git
        self._host_files = host_files
        self._broker = broker
        self._config = config
        self._examiner = examiner
        self._staged = Path(config.state_dir) / "staged"
        self._arriving: set[int] = set()

    def staged(self, proposal: int) -> Path:
        """Where the frozen state of a proposal lies."""
        return self._staged / f"{proposal}.tar"

    # ------------------------------------------------------------------------------------------- agents
    async def bundle(
        self, agent: AgentName, target: str, commit: str, description: str, bundle: Path
    ) -> wire.Proposed:
        """A commit for an existing agent."""
        name, wanted, text = agent_name(target), commit_id(commit), clean_description(description)
        async with self._store.state.transaction() as tx:
            asking = await self._asking(tx, agent)
            if name != agent and asking.role is not Role.MANAGER:
                raise AgentError(
                    f"{agent} may propose for itself only, not for {name}",
                    code="forbidden",
                    hint="ask the manager",
                )
            there = await proposals.agent(tx, name)
            if there is None or there.destroyed:
                raise AgentError(
                    f"there is no agent {name}",
                    code="not-found",
                    hint="a new agent is requested with a spawn",
                )
            number, fresh = await self.row(tx, ProposalKind.APPLY, name, wanted, agent, text)
        if fresh or not await self.has_arrived(number, name):
            await self.arrive(number, name, wanted, lambda: self._git.import_bundle(name, bundle, wanted))
        return await self._proposed(number)

    async def draft(
        self, agent: AgentName, target: str, commit: str, description: str, bundle: Path, state: Path
    ) -> wire.Proposed:
        """The commit of a draft, with the state that its agent begins with."""
        name, wanted, text = agent_name(target), commit_id(commit), clean_description(description)
        digest = await self._digest(state)
        async with self._store.state.transaction() as tx:
            await self.require_manager(tx, agent, "propose a draft")
            await self.require_new(tx, name, agent)
            if await drafts.get(tx, name) is None:
                raise AgentError(
                    f"there is no draft {name}: it was never begun, or the operator discarded it",
                    code="not-found",
                    hint="start it with request_spawn_draft",
                )
            number, fresh = await self.row(tx, ProposalKind.SPAWN, name, wanted, agent, text, digest)
            await drafts.proposed(tx, name, number)

        async def take() -> None:
            await self._stage(number, state)
            await self._git.import_bundle(name, bundle, wanted)

        if fresh or not await self.has_arrived(number, name):
            await self.arrive(number, name, wanted, take)
        return await self._proposed(number)

    async def spawn(self, agent: AgentName, request: wire.Spawn) -> wire.Proposed:
        """A new agent from the template, at the manager's request."""
        name, text = agent_name(request.name), clean_description(request.description)
        async with self._store.state.transaction() as tx:
            await self.require_manager(tx, agent, "request a new agent")
            open_one = await proposals.open_spawn(tx, name)
            if open_one is not None and open_one.requested_by == agent:
                return wire.Proposed(proposal=open_one.id, state=open_one.state)
            await self.require_new(tx, name, agent)
            await self._refuse_flood(tx, agent)
        commit = await self.template(name, Role.AGENT, None, (), agent)
        async with self._store.state.transaction() as tx:
            await self.require_new(tx, name, agent)
            number, _ = await self.row(tx, ProposalKind.SPAWN, name, commit, agent, text)
        await self.arrive(number, name, commit, None)
        return await self._proposed(number)

    def discard_staged(self, proposal: int) -> None:
        """The proposal ended without an agent: its staged state is of no use."""
        self.staged(proposal).unlink(missing_ok=True)

    def is_arriving(self, proposal: int) -> bool:
        """Whether its commit is being taken in just now."""
        return proposal in self._arriving

    # ------------------------------------------------------------------------------------------- inner
    async def _asking(self, tx: Tx, agent: AgentName) -> AgentRow:
        row = await proposals.agent(tx, agent)
        if row is None or row.destroyed:
            raise AgentError(f"there is no agent {agent}", code="not-found")
        return row

    async def require_manager(self, tx: Tx, agent: AgentName, act: str) -> None:
        """`AgentError` code `forbidden` for everybody else."""
        if (await self._asking(tx, agent)).role is not Role.MANAGER:
            raise AgentError(f"only the manager may {act}", code="forbidden", hint="ask the manager")

    async def require_new(
        self, tx: Tx, name: AgentName, by: str | None = None, *, decides: bool = False
    ) -> None:
        """Nobody has the name, and no proposal (but those of `by`) is about to take it. `decides`: the one
        who asks can clear it away."""
        there = await proposals.agent(tx, name)
        if there is not None:
            what = "was destroyed, but not purged" if there.destroyed else "exists already"
            raise AgentError(f"the agent {name} {what}", code="conflict", hint="choose another name")
        waiting = await proposals.open_spawn(tx, name)
        if waiting is not None and waiting.requested_by != by:
            number = waiting.id
            theirs = "wait for its end, or ask the operator to cancel it"
            own = f"`hive approve {number}`, or `hive cancel-proposal {number}` first"
            raise AgentError(
                f"proposal {number} for a new agent {name} is {waiting.state}",
                code="conflict",
                hint=own if decides else theirs,
            )

    async def _refuse_flood(self, tx: Tx, by: str) -> None:
        if by == OPERATOR:
            return
        unfinished, recent = await proposals.load_of(tx, by, tx.now - HOUR_S * 1_000_000)
        if unfinished >= OPEN_MAX:
            raise AgentError(
                f"{by} has {unfinished} proposals that wait for their end, {OPEN_MAX} are allowed",
                code="conflict",
                hint="wait for the operator's decisions",
            )
        if recent >= HOURLY_MAX:
            raise AgentError(
                f"{by} has made {recent} proposals within an hour, {HOURLY_MAX} are allowed",
                code="conflict",
                hint="check with `nix flake check` before you propose",
            )

    async def row(
        self,
        tx: Tx,
        kind: ProposalKind,
        name: AgentName,
        commit: Commit,
        by: str,
        description: str,
        state_digest: str | None = None,
    ) -> tuple[int, bool]:
        """The id of the proposal, and whether it is a new one."""
        same = await proposals.same_open(tx, name, commit, by)
        if same is not None and same.state_digest in {None, state_digest}:
            return same.id, False
        await self._refuse_flood(tx, by)
        turn = None if by == OPERATOR else await proposals.open_turn(tx, AgentName(by))
        number = await proposals.insert(
            tx, kind=kind, agent=name, commit=commit, requested_by=by, description=description, turn=turn
        )
        return number, True

    async def has_arrived(self, number: int, name: AgentName) -> bool:
        """Whether a proposal needs nothing more, or somebody else is bringing it."""
        row = await proposals.get(self._store.state, number)
        if row.state is not ProposalState.EXAMINING or number in self._arriving:
            return True
        return f"proposal/{number}" in await self._git.tags(name)

    async def arrive(
        self, number: int, name: AgentName, commit: Commit, take: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Take the commit in, pin it, and begin its examination; what cannot be taken ends as invalid.
        Without room for it the proposal stays as it is: who asks again goes on with it; if nobody does,
        `Resuming`."""
        self._arriving.add(number)
        try:
            if take is not None:
                await take()
            await self._git.pin(name, f"proposal/{number}", commit)
        except DiskFullError:
            raise
        except HiveError as error:
            await self._examiner.invalidate(number, error, tell=False)
            self.discard_staged(number)
            raise
        except OSError as error:
            if full := disk_full(error):
                raise full from error
            failure = PermanentError(f"the proposal could not be stored: {error.strerror}")
            await self._examiner.invalidate(number, failure, tell=False)
            raise failure from error
        finally:
            self._arriving.discard(number)
        self._examiner.begin(number)

    async def _digest(self, state: Path) -> str | None:
        """Which state is offered; None if it is refused, which its proposal will say."""
        try:
            return (await self._host_files.freeze_state(state))[0]
        except InvalidError:
            return None

    async def _stage(self, number: int, state: Path) -> None:
        """Freeze the state: copied, digested, and the digest kept in the row."""
        target = self.staged(number)

        def copy() -> None:
            self._staged.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = target.with_suffix(".tar.part")
            private = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            try:
                with state.open("rb") as source, os.fdopen(private, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                    sink.flush()
                    os.fsync(sink.fileno())
                part.rename(target)
            except OSError:
                part.unlink()  # where there was no room it must not take any
                raise

        await asyncio.to_thread(copy)
        digest, files = await self._host_files.freeze_state(target)
        async with self._store.state.transaction() as tx:
            await proposals.stage(tx, number, digest, files)

    async def template(
        self, name: AgentName, role: Role, model: str | None, bash_allow: Sequence[str], by: AgentName
    ) -> Commit:
        """A commit of the template on `main`, marked as hived's own. A repository that an earlier, denied
        request left behind is gone on with; a commit that nobody proposed yet (hived died in between) is
        taken as it is."""
        files = template_files(role, model, list(bash_allow))
        message = f"{name}: a new {role}"
        before = await self._git.main(name)
        if before is None:
            commit = await self._git.create(name, files, author=by, message=message)
        elif await self._is_unused(name, before, files):
            commit = before
        else:
            commit = await self._git.commit(name, files, parent=before, author=by, message=message)
            await self._git.set_main(name, commit, expected=before)
        await self._git.pin(name, f"template/{commit[:12]}", commit)
        return commit

    async def _is_unused(self, name: AgentName, commit: Commit, files: Mapping[str, str]) -> bool:
        """Whether a commit holds exactly these files and was never proposed."""
        if await proposals.has_commit(self._store.state, name, commit):
            return False
        paths = {entry.path: entry.size for entry in await self._git.check_tree(name, commit)}
        if paths.keys() != files.keys():
            return False
        found = {path: await self._git.read(name, commit, path, size) for path, size in paths.items()}
        return found == dict(files)

    async def _proposed(self, number: int) -> wire.Proposed:
        row = await proposals.get(self._store.state, number)
        return wire.Proposed(proposal=number, state=row.state)


def clean_description(text: str) -> str:
    """What a proposer says about a proposal."""
    if len(text) > DESCRIPTION_MAX:
        raise AgentError(
            f"the description has {len(text)} characters, {DESCRIPTION_MAX} are allowed", code="too-large"
        )
    return text.replace("\0", "").strip()
