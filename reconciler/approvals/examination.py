"""Examine proposals before anybody is asked to decide: the tree's rules, evaluation, the host's rules,
meaning.

Nothing of the commit is built or run here. An examination ends as `pending` or `invalid`; killed
anywhere, it is begun again from the row. A few run at a time, in tasks of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog
from pydantic import ValidationError

from reconciler.approvals import hostids, rules, views
from reconciler.config import Config
from reconciler.effects.protocols import Clock, Evaluation, Git, Nix
from reconciler.errors import (
    CommandError,
    DiskFullError,
    HiveError,
    InvalidError,
    OperatorError,
    TemporaryError,
    disk_full,
)
from reconciler.gateway.catalog import known
from reconciler.model.changes import Change, FileId, file_changes, overall, setting_changes
from reconciler.model.names import AgentName, Commit
from reconciler.model.spec import Spec
from reconciler.model.states import ProposalKind, ProposalState, Risk, Role
from reconciler.store import proposals
from reconciler.store.db import Reader, Store
from reconciler.store.proposals import Findings, ProposalRow

log = structlog.get_logger("approvals")

PARALLEL = 2
ATTEMPTS = 3
ERROR_MAX_BYTES = 8192
FILES_LISTED = 500
# What a whole examination may take beyond the evaluation's own deadline.
SLACK_S = 60.0


class Examiner:
    """Runs examinations in the background; `run` does one in the foreground."""

    def __init__(
        self,
        *,
        store: Store,
        git: Git,
        nix: Nix,
        config: Config,
        clock: Clock,
        etc: Path = Path("/etc"),
    ) -> None:
        self._store = store
        self._git = git
        self._nix = nix
        self._config = config
        self._clock = clock
        self._etc = etc
        self._trees = Path(config.state_dir) / "trees"
        self._slots = asyncio.Semaphore(PARALLEL)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._running: set[int] = set()

    # ------------------------------------------------------------------------------------------- running
    def begin(self, proposal: int) -> None:
        """Examine in the background, unless that is under way."""
        if proposal not in self._tasks:
            task = asyncio.create_task(self.run(proposal), name=f"examine-{proposal}")
            self._tasks[proposal] = task
            task.add_done_callback(lambda _: self._tasks.pop(proposal, None))

    def is_running(self, proposal: int) -> bool:
        """Whether this process examines it now."""
        return proposal in self._tasks or proposal in self._running

    async def settled(self) -> None:
        """Wait until nothing is being examined."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Stop all; the next hived begins them again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, proposal: int) -> None:
        """Examine to the end. Does not raise for what is wrong with the proposal: that is its outcome. A full
        disk says nothing about it: it waits for room."""
        self._running.add(proposal)
        try:
            while True:
                try:
                    return await self._run(proposal)
                except DiskFullError as error:
                    log.warning("examination.later", proposal=proposal, error=error.message)
                    await self._clock.sleep(error.after_s)
        finally:
            self._running.discard(proposal)

    async def _run(self, proposal: int) -> None:
        try:
            async with self._slots:
                await self._attempt(proposal)
        except DiskFullError:
            raise
        except HiveError as error:
            await self.invalidate(proposal, error)
        except Exception as error:  # a worker's loop: the proposal must end in a state, and hived goes on
            if full := disk_full(error):
                raise full from error
            log.exception("examination.bug", proposal=proposal)
            await self.invalidate(proposal, ExaminationError(error))

    async def _attempt(self, proposal: int) -> None:
        left = ATTEMPTS
        while left:
            left -= 1
            try:
                async with asyncio.timeout(self._config.timeouts.examine_s + SLACK_S):
                    await self._examine(proposal)
                left = 0
            except TimeoutError as error:
                raise InvalidError("the examination took too long") from error
            except TemporaryError as error:
                if not left or isinstance(error, DiskFullError):
                    raise
                log.warning("examination.again", proposal=proposal, error=error.message)
                await self._clock.sleep(error.after_s)

    async def invalidate(self, proposal: int, error: HiveError, *, tell: bool = True) -> None:
        """Examining → invalid with the error, told to the proposer. Nothing if it was cancelled meanwhile."""
        text = describe(error)
        try:
            async with self._store.state.transaction() as tx:
                row = await proposals.get(tx, proposal)
                moved = await tx.move_proposal(proposal, ProposalState.INVALID, error=text)
                if moved and tell:
                    await proposals.tell(tx, row, ProposalState.INVALID, f":\n{text}")
        except OperatorError as conflict:
            log.info("examination.outrun", proposal=proposal, why=conflict.message)
            return
        log.info("proposal.invalid", proposal=proposal, agent=row.agent, error=text[:200])

    async def rehearse(self, row: ProposalRow, template: Mapping[str, str] | None) -> Findings:
        """What an examination of `row` would find, without writing anything; raises what it would end with.

        `template`: the files of a commit that hived would only now make.
        """
        try:
            async with self._slots, asyncio.timeout(self._config.timeouts.examine_s + SLACK_S):
                return await self._look(row, template)
        except TimeoutError as error:
            raise InvalidError("the examination took too long") from error

    # ------------------------------------------------------------------------------------------- one
    async def _examine(self, proposal: int) -> None:
        row = await proposals.get(self._store.state, proposal)
        if row.state is not ProposalState.EXAMINING:
            return
        findings = await self._look(row)
        try:
            async with self._store.state.transaction() as tx:
                await proposals.found(tx, proposal, findings)
        except OperatorError as conflict:
            log.info("examination.outrun", proposal=proposal, why=conflict.message)

    async def _look(self, row: ProposalRow, template: Mapping[str, str] | None = None) -> Findings:
        if template is None:
            entries = await self._git.check_tree(row.agent, row.commit)
            if not any(entry.path == "agent.nix" for entry in entries):
                raise InvalidError("the commit has no agent.nix", hint="put the agent's settings there")
        evaluation = await self._evaluate(row, template)
        prompt, path = None, evaluation.spec.prompt
        if path is not None and template is not None:
            prompt = template.get(path)
        elif path is not None:
            prompt = await self._git.read(row.agent, row.commit, path, rules.PROMPT_MAX_BYTES + 1)
        facts = await self.facts(self._store.state, row, prompt)
        refused = rules.refusals(evaluation.spec, facts)
        if refused:
            raise InvalidError("agent.nix is refused:\n" + rules.explain(refused), refused)
        spec = json.dumps(evaluation.spec_json, sort_keys=True, separators=(",", ":"))
        return await self._meaning(row, evaluation.spec, spec, evaluation.digest, template is not None)

    async def _evaluate(self, row: ProposalRow, template: Mapping[str, str] | None) -> Evaluation:
        # others may pass through, so that the build user reaches its tree; they cannot list
        self._trees.mkdir(parents=True, exist_ok=True, mode=0o711)
        tree = Path(tempfile.mkdtemp(prefix=f"examine-{row.id}-", dir=self._trees))
        try:
            if template is None:
                await self._git.extract(row.agent, row.commit, tree)
            else:
                await asyncio.to_thread(_write, tree, template)
            return await self._nix.evaluate(tree)
        finally:
            await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)

    async def facts(self, db: Reader, row: ProposalRow, prompt: str | None) -> rules.Facts:
        """What the host's rules need to know now."""
        bases = await proposals.uid_bases(db)
        uids = self._config.uid_range
        return rules.Facts(
            agent=row.agent,
            uid_base=bases.get(row.agent),
            taken=frozenset(base for name, base in bases.items() if name != row.agent),
            uids=(uids.start, uids.end),
            reserved=hostids.reserved(self._etc),
            other_manager=await proposals.other_manager(db, row.agent),
            allowed_models=known().names(self._config.gateway.allowed_models),
            prompt=prompt,
        )

    # ------------------------------------------------------------------------------------------- meaning
    async def refresh(self, row: ProposalRow) -> ProposalRow:
        """A pending proposal's meaning against the generation that runs now; the row as it is afterwards.

        Its digest changes with it, so what was shown before cannot be approved any more.
        """
        running = await proposals.running(self._store.state, row.agent)
        if (
            row.state is not ProposalState.PENDING
            or row.kind is not ProposalKind.APPLY
            or (running.commit if running else None) == row.base
        ):
            return row
        assert row.spec is not None, "a pending proposal was examined"
        assert row.spec_digest is not None, "a pending proposal was examined"
        spec = Spec.model_validate(json.loads(row.spec))
        findings = await self._meaning(row, spec, row.spec, row.spec_digest)
        async with self._store.state.transaction() as tx:
            await proposals.found_again(tx, row, findings)
        return await proposals.get(self._store.state, row.id)

    async def _meaning(
        self, row: ProposalRow, spec: Spec, text: str, spec_digest: str, is_template: bool = False
    ) -> Findings:
        running = await proposals.running(self._store.state, row.agent)
        base = running.commit if running is not None else None
        before = _spec(running.spec) if running is not None else None
        settings = setting_changes(before, spec)
        files_before: dict[str, FileId] = {}
        files_after: dict[str, FileId] = {}
        if not is_template:  # what stands in it needs no judging
            files_before = await self._files(row.agent, base or await self._template(row))
            files_after = await self._files(row.agent, row.commit)
        files = file_changes(
            files_before,
            files_after,
            prompt=spec.prompt,
            settings_changed=bool(settings),
            platform=self._config.platform,
        )
        changes = (*_birth(row), *settings, *files)
        touched = [
            p for p in sorted({*files_before, *files_after}) if files_before.get(p) != files_after.get(p)
        ]
        return Findings(
            base=base,
            risk=overall(changes),
            changes=views.changes_json(changes),
            files=json.dumps(touched[:FILES_LISTED]),
            spec=text,
            spec_digest=spec_digest,
            role=Role(spec.role),
            digest=approval_digest(row, spec_digest, base),
        )

    async def _files(self, agent: AgentName, commit: Commit | None) -> dict[str, FileId]:
        if commit is None:
            return {}
        return {e.path: FileId(e.mode, e.blob) for e in await self._git.check_tree(agent, commit)}

    async def _template(self, row: ProposalRow) -> Commit | None:
        """The commit that hived itself made for a new agent and that this one goes on from: what stands in it
        needs no judging."""
        tags = await self._git.tags(row.agent)
        own = {commit for tag, commit in tags.items() if tag.startswith("template/")}
        if row.commit in own:
            return row.commit
        for commit in sorted(own):
            if await self._git.is_ancestor(row.agent, commit, row.commit):
                return commit
        return None


class ExaminationError(HiveError):
    """A fault of ours while examining: the details are in the journal."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"the examination failed inside hived ({type(error).__name__}); its journal has more"
        )


def approval_digest(row: ProposalRow, spec_digest: str, base: Commit | None) -> str:
    """What an approval binds to: the commit, the spec it evaluates to, the staged state, and what it was
    compared with."""
    parts = ["proposal", row.id, row.kind, row.agent, row.commit, spec_digest, row.state_digest, base]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def describe(error: HiveError) -> str:
    """An error in full, bounded to `ERROR_MAX_BYTES`."""
    lines = [error.message]
    if isinstance(error, InvalidError):
        lines += [line for line in rules.explain(error.refusals).splitlines() if line not in error.message]
    if isinstance(error, CommandError):
        lines.append(error.record.stderr_tail.strip())
    if error.hint:
        lines.append(f"hint: {error.hint}")
    text = "\n".join(line for line in lines if line)
    cut = text.encode("utf-8", "replace")[:ERROR_MAX_BYTES].decode("utf-8", "ignore")
    return cut.replace("\0", "")


def _write(tree: Path, files: Mapping[str, str]) -> None:
    """Files of one folder, readable by the build user."""
    tree.chmod(0o755)
    for name, text in files.items():
        (tree / name).write_text(text, encoding="utf-8")
        (tree / name).chmod(0o644)


def _spec(text: str) -> Spec | None:
    """The running spec; None when this version cannot read it, so that everything is shown as new."""
    try:
        return Spec.model_validate(json.loads(text))
    except ValidationError:
        return None


def _birth(row: ProposalRow) -> Iterable[Change]:
    if row.kind is ProposalKind.SPAWN:
        yield Change(
            "agent", None, json.dumps(row.agent), Risk.ELEVATED, "a new agent with a container of its own"
        )
