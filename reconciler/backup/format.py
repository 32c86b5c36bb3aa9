"""What a backup is: a plain tar (POSIX pax), members in this order, nothing else in it.

    hyperhive-backup.json   the header: format, version, when, schemas, facts of the hive
    config.json             the host's configuration, for information
    state.db events.db ledger.db
    repos/NAME.git/…  meta/…       bare repositories, refs as one `packed-refs`
    staged/ID.tar                  staged states of proposals that wait
    agents/NAME/{.unpacked,.uid_base}   what hived wrote down there
    agents/NAME/{state,home,config,agents}/…   the agents' own trees
    left-out.jsonl          what of the agents' trees is not in here, and why
    manifest.jsonl          a line for each member above: name, type, mode, owner, size, sha256
    manifest.sha256         of manifest.jsonl; a file without it is cut off

Ids in the agents' trees are relative to the agent's first uid, unless the member says `HIVE.owner=host`. Of
a sparse file only the data is kept, and `HIVE.sparse` says where it goes. It proves that nothing was damaged,
not who made it: keep it like the hive itself.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reconciler.errors import OperatorError
from reconciler.model.names import AGENT_NAME_PATTERN
from reconciler.model.states import Role

FORMAT = 1
HEADER = "hyperhive-backup.json"
CONFIG = "config.json"
LEFT_OUT = "left-out.jsonl"
MANIFEST = "manifest.jsonl"
SEAL = "manifest.sha256"
FAILED = "failed.json"  # in place of all that should follow, when hived could not go on
DATABASES = ("state.db", "events.db", "ledger.db")
MARKERS = (".unpacked", ".uid_base")
PARTS = ("state", "home", "config", "agents")

PAX_OWNER = "HIVE.owner"
PAX_SPARSE = "HIVE.sparse"
PAX_SIZE = "HIVE.size"
HEADER_MAX_BYTES = 16 << 20
DEPTH_MAX = 120  # agents' trees have 100 (`walk`), and lie some levels deep
DAMAGED = "damaged"

_REPOSITORY = re.compile(rf"(repos/{AGENT_NAME_PATTERN}\.git|meta)")
_STAGED = re.compile(
    rf"staged/[1-9][0-9]{{0,18}}\.tar|agents/{AGENT_NAME_PATTERN}/({'|'.join(map(re.escape, MARKERS))})"
)
_AGENT = re.compile(rf"agents/({AGENT_NAME_PATTERN})/({'|'.join(PARTS)})")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AgentInside(_Part):
    """An agent of the backup; `desired` destroyed means that its state was kept."""

    name: str = Field(pattern=f"^{AGENT_NAME_PATTERN}$")
    uid_base: int = Field(ge=65536, le=4_294_901_760, multiple_of=65536)
    role: str = Field(pattern="|".join(Role))
    desired: str = Field(pattern="^(running|stopped|destroyed)$")
    generation: int | None


class Header(_Part):
    """The first member. `schemas`: database → number of its schema. `audit_head`: last hash of the chain."""

    format: int
    version: str
    made_at: str
    host: str
    platform: str
    schemas: dict[str, int]
    agents: list[AgentInside]
    audit_head: str
    audit_rows: int
    with_state: bool

    def base_of(self, agent: str) -> int | None:
        """First uid of the agent's range; None for a tree that no row speaks of."""
        return next((one.uid_base for one in self.agents if one.name == agent), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member belongs. `kind` header…seal are the file's own; `agent` is set within its trees."""

    kind: Literal["file", "database", "repository", "staged", "tree"]
    agent: str = ""


def place_of(member: tarfile.TarInfo) -> Place:
    """The member's place; `OperatorError` code "damaged" for a name or type that no backup has."""
    name = member.name
    shown = repr(name)[:200]
    if name.startswith("/") or any(part in {"", ".", ".."} for part in name.split("/")) or "\0" in name:
        raise damaged(f"the member {shown} does not stay inside")
    if name.count("/") > DEPTH_MAX:
        raise damaged(f"the member {shown} lies deeper than {DEPTH_MAX} levels")
    plain = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse()
    if name in {HEADER, CONFIG, LEFT_OUT, MANIFEST, SEAL, FAILED} and plain:
        return Place("file")
    if name in DATABASES and plain:
        return Place("database")
    if _STAGED.fullmatch(name) and plain:
        return Place("staged")
    if (
        (found := _REPOSITORY.match(name))
        and name[found.end() :][:1] in {"", "/"}
        and (plain or member.isdir())
    ):
        return Place("repository")
    if (found := _AGENT.match(name)) and name[found.end() :][:1] in {"", "/"}:
        return _in_tree(member, found.group(1), found.group(0), plain=plain)
    raise damaged(f"the member {shown} is nothing that a backup holds")


def _in_tree(member: tarfile.TarInfo, agent: str, top: str, *, plain: bool) -> Place:
    shown = repr(member.name)[:200]
    if member.name == top and not member.isdir():
        raise damaged(f"{shown} is no directory")
    if member.islnk() and not _stays(member.linkname, top):
        raise damaged(f"{shown} is a hard link that leaves its tree")
    if not (plain or member.isdir() or member.issym() or member.islnk()):
        raise damaged(f"{shown} is neither file, directory nor link")
    return Place("tree", agent)


def _stays(target: str, top: str) -> bool:
    return target.startswith(f"{top}/") and not any(part in {"", ".", ".."} for part in target.split("/"))


def line_of(member: tarfile.TarInfo, digest: str) -> bytes:
    """The member's line of the manifest; the same from the writer's and from the reader's value."""
    kind = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "link"}.get(
        member.type, "file"
    )
    line: dict[str, object] = {
        "name": member.name, "type": kind, "mode": member.mode, "uid": member.uid, "gid": member.gid,
        "mtime": int(member.mtime), "size": member.size,
    }  # fmt: skip
    if kind == "file":
        line["sha256"] = digest
    elif kind != "dir":
        line["target"] = member.linkname
    for key in (PAX_OWNER, PAX_SPARSE, PAX_SIZE):
        if key in member.pax_headers:
            line[key] = member.pax_headers[key]
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def sparse_map(member: tarfile.TarInfo) -> tuple[list[tuple[int, int]], int] | None:
    """Extents (offset, length) and the file's length; None for a plain file. `OperatorError` if they cannot
    be."""
    text = member.pax_headers.get(PAX_SPARSE)
    if text is None:
        return None
    try:
        pairs = [tuple(map(int, pair.split(":"))) for pair in text.split(",") if pair]
        extents = [(offset, length) for offset, length in pairs]
        size = int(member.pax_headers[PAX_SIZE])
    except (KeyError, ValueError) as error:
        raise damaged(f"the sparse file {member.name!r:.200} has no readable map") from error
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise damaged(f"the sparse file {member.name!r:.200} has an impossible map")
        end = offset + length
    if end > size or sum(length for _, length in extents) != member.size:
        raise damaged(f"the sparse file {member.name!r:.200} has an impossible map")
    return extents, size


def damaged(what: str) -> OperatorError:
    """The file cannot be trusted."""
    return OperatorError(
        f"this is no whole backup: {what}", code=DAMAGED, hint="take another file; nothing was changed"
    )
