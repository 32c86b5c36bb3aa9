"""What git shows of `state.db`: a tag for each state of a proposal, `main` of what was approved last, and the
deploy log. Projections: idempotent, and made anew from the rows if they are lost. Called by the outbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.effects.protocols import Git
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import PROPOSAL_ENDS, ProposalState
from reconciler.store.db import Reader
from reconciler.store.projections import ExpectedTag, expected_tags

META = AgentName("meta")
REPAIRED_AT_ONCE = 200
AUTHOR = "hyperhive"
_FLAKE = """\
# Made by hived after each deployment: what runs in this hive, and from which commit. Do not edit.
{
  description = "The deploy log of a hive";

  outputs = { self }: {
    agents =
      let
        files = builtins.attrNames (builtins.readDir ./agents);
        read = file: {
          name = builtins.substring 0 (builtins.stringLength file - 5) file;
          value = builtins.fromJSON (builtins.readFile (./agents + "/${file}"));
        };
      in
      builtins.listToAttrs (map read files);
  };
}
"""


async def project_tag(git: Git, data: Mapping[str, Any]) -> None:
    """Pin `<state>/<id>` as an outbox row says: `{agent, tag, commit, message}`; ends carry reason or error.

    A commit that never arrived (an invalid bundle) has nothing to pin. An approval also moves `main`.
    """
    name, commit, tag = AgentName(data["agent"]), Commit(data["commit"]), str(data["tag"])
    state = ProposalState(tag.partition("/")[0])
    if not await git.exists(name, commit):
        return
    message = None
    if state in PROPOSAL_ENDS:
        message = str(data.get("message") or "") or str(state)
    await git.pin(name, tag, commit, message)
    if state is ProposalState.APPROVED:
        await advance_main(git, name, commit)


@dataclass(frozen=True, slots=True)
class TagDrift:
    """How the tags of one agent differ from its rows: those that are not there, and those on another
    commit."""

    missing: tuple[ExpectedTag, ...] = ()
    moved: tuple[ExpectedTag, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.moved)


async def missing_tags(git: Git, db: Reader, name: AgentName) -> TagDrift:
    """Tags that the rows ask for and git does not show."""
    return await compare_tags(git, name, await expected_tags(db, name))


async def compare_tags(git: Git, name: AgentName, expected: Sequence[ExpectedTag]) -> TagDrift:
    """Tags that are expected and git does not show. Reads only, and runs no program while the repository
    lies as it lay.

    A tag that waits in the outbox is no drift. A broken tag, or one whose commit is gone, is a missing one.
    """
    there = await git.tags(name) if expected else {}
    wanted = [one for one in expected if one.after is None or one.after in there]
    return TagDrift(
        missing=tuple(one for one in wanted if one.tag not in there),
        moved=tuple(one for one in wanted if there.get(one.tag, one.commit) != one.commit),
    )


async def repair_tags(git: Git, name: AgentName, drift: TagDrift) -> list[ExpectedTag]:
    """Make the missing and the moved tags again, some hundred at most; the rest is found by the next look.

    Returns those that cannot be: their commit is not in the repository any more. Safe to repeat.
    """
    lost: list[ExpectedTag] = []
    there: dict[Commit, bool] = {}
    for one in (*drift.missing, *drift.moved)[:REPAIRED_AT_ONCE]:
        if one.commit not in there:
            there[one.commit] = await git.exists(name, one.commit)
        if there[one.commit]:
            await git.repin(name, one.tag, one.commit, one.message)
        else:
            lost.append(one)
    return lost


async def advance_main(git: Git, name: AgentName, commit: Commit) -> None:
    """Let `main` contain the approved commit. It stays where it is if somebody has gone on from there.

    Raises `TemporaryError` if it moves meanwhile.
    """
    main = await git.main(name)
    if main is None or not await git.is_ancestor(name, commit, main):
        await git.set_main(name, commit, expected=main)


async def project_meta(git: Git, data: Mapping[str, Any]) -> None:
    """Write down a deployment: `{agent, generation, commit, proposal, store_path}` as
    `agents/<agent>.json`, one commit of `meta` per change. `{agent, purged}` takes the file away."""
    agent = AgentName(data["agent"])
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", agent):
        raise ValueError(f"{agent!r} is not an agent")
    path = f"agents/{agent}.json"
    text = json.dumps(dict(data), indent=2, sort_keys=True) + "\n"
    purged = bool(data.get("purged"))
    message = f"{agent}: purged" if purged else f"{agent}: generation {data.get('generation')}"
    main = await git.main(META)
    if main is None:
        main = await git.create(META, {"flake.nix": _FLAKE}, author=AUTHOR, message="the deploy log begins")
    files: dict[str, str] = {"flake.nix": _FLAKE}
    for entry in await git.check_tree(META, main):
        if entry.path.startswith("agents/"):
            files[entry.path] = await git.read(META, main, entry.path, entry.size) or ""
    if purged:
        if files.pop(path, None) is None:
            return
    elif files.get(path) == text:
        return
    else:
        files[path] = text
    commit = await git.commit(META, files, parent=main, author=AUTHOR, message=message)
    await git.set_main(META, commit, expected=main)
