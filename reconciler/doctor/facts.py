"""What a doctor knows. Everything that could not be found out is None (or absent), never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from reconciler.approvals.rules import Reserved

Status = Literal["ok", "warn", "fail", "not-applicable"]


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent of the rows. `store_path` is of the generation that should run; `deploying`: another one is on
    its way, so that pictures of the current one may be ahead."""

    name: str
    uid_base: int
    desired: str
    generation: int | None
    store_path: str | None
    deploying: bool = False


@dataclass(frozen=True, slots=True)
class PathFact:
    """A path with what is true of it and what must be. `uid` None: it is not there. `want_*` None: any.

    `forbidden`: bits of the mode that must not be set.
    """

    path: str
    uid: int | None
    gid: int
    mode: int
    want_uid: int | None
    want_gid: int | None
    forbidden: int
    required: bool = False


@dataclass(frozen=True, slots=True)
class TagFacts:
    """Tags of an agent's repository: missing or on another commit, and of proposals that no row knows."""

    wrong: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """An agent's Nix profile: the generation it points to, what it holds, and whether the store has what
    should run."""

    selected: int | None
    generations: Mapping[int, str]
    stored: bool


@dataclass(frozen=True, slots=True)
class Space:
    """Room on a file system, in bytes and inodes (0 inodes in all: it does not count them)."""

    path: str
    free: int
    total: int
    free_inodes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class CredentialFact:
    """The credential's file. `problem`: why the gateway cannot use it; `readable_by` who else can read it."""

    path: str
    problem: str = ""
    readable_by: str = ""


@dataclass(frozen=True, slots=True)
class GatewayFact:
    """The gateway as hived sees it; `problems`: agent → why it is not served."""

    connected: bool
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PricesFact:
    """The prices that budgets are counted by: of which day (epoch seconds) they are, from where, and after
    how many days somebody should look whether they still hold."""

    as_of: float
    source: str
    max_age_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. Instants in epoch seconds, ids as numbers, `reserved` as in the rules of approvals.

    `schemas`: database → (its schema, the newest known). `databases`: name → faults. `audit`: head, number of
    rows, first broken row. `deploy_log`: agent → what is wrong. `strays`: (kind, what) of things without a
    row. `enforced`: agent → limits in force of its running container. `versions`: what → version found.
    """

    now: float
    uid_range: tuple[int, int] = (0, 0)
    reserved: tuple[Reserved, ...] = ()
    config_faults: tuple[str, ...] = ()
    config_notes: tuple[str, ...] = ()
    agents: tuple[AgentRow, ...] | None = None
    recorded_bases: Mapping[str, int] = field(default_factory=dict)
    databases: Mapping[str, tuple[str, ...]] | None = None
    schemas: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    audit: tuple[str, int, int | None] | None = None
    newest_at: float | None = None
    synchronised: bool | None = None
    given_up: tuple[str, ...] | None = None
    tags: Mapping[str, TagFacts] | None = None
    deploy_log: Mapping[str, str] | None = None
    profiles: Mapping[str, ProfileFacts] | None = None
    paths: tuple[PathFact, ...] = ()
    strays: tuple[tuple[str, str], ...] | None = None
    leftovers: tuple[str, ...] = ()
    space: tuple[Space, ...] = ()
    programs: Mapping[str, str | None] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    file_system: str = ""
    store_file_system: str = ""
    user_namespaces: int | None = None
    others_may_make_them: bool | None = None
    enforced: Mapping[str, tuple[str, ...]] | None = None
    gateway: GatewayFact | None = None
    prices: PricesFact | None = None
    credential: CredentialFact | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one check. `remedy` says what to do; empty when nothing is."""

    status: Status
    detail: str
    remedy: str = ""


def unknown(why: str = "hived is not running") -> Finding:
    """It could not be found out."""
    return Finding("not-applicable", why)


def several(items: list[str], limit: int = 5) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more
