"""Each check of `hive doctor` sees what breaks its invariant, and nothing else; each finding has a remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from reconciler.approvals.rules import Reserved
from reconciler.doctor.checks import CHECKS, judge
from reconciler.doctor.facts import (
    AgentRow,
    CredentialFact,
    Facts,
    Finding,
    GatewayFact,
    PathFact,
    PricesFact,
    ProfileFacts,
    Space,
    TagFacts,
)

GIB = 1 << 30
BASE, NEXT = 1_048_576, 1_114_112
PATH = "/nix/store/a-hive-smith"
SMITH = AgentRow("smith", BASE, "running", 3, PATH)
SCOUT = AgentRow("scout", NEXT, "destroyed", None, None)
WELL = Facts(
    now=1_000_000.0,
    uid_range=(BASE, BASE + 10 * 65536),
    agents=(SMITH, SCOUT),
    recorded_bases={"smith": BASE},
    databases={"state.db": (), "events.db": ()},
    schemas={"state.db": (2, 2)},
    audit=("abc", 7, None),
    newest_at=999_999.0,
    synchronised=True,
    given_up=(),
    tags={"smith": TagFacts()},
    deploy_log={},
    profiles={"smith": ProfileFacts(3, {3: "/nix/store/a-hive-smith"}, stored=True)},
    paths=(PathFact("/s/state.db", 0, 0, 0o600, 0, None, 0o077, required=True),),
    strays=(),
    space=(Space("/s", 50 * GIB, 100 * GIB, 1_000_000, 2_000_000),),
    programs={"git": "/usr/bin/git"},
    versions={"git": "2.39.5", "kernel": "6.1.0-18-amd64", "harness CLI": "2.1.330"},
    file_system="ext4",
    user_namespaces=10_000,
    others_may_make_them=True,
    enforced={"smith": ("memory", "tasks", "cpu")},
    gateway=GatewayFact(connected=True, problems={}),
    credential=CredentialFact("/etc/key"),
    prices=PricesFact(1_000_000.0 - 90 * 86_400, "https://example.org/prices", 90),
)


def findings(facts: Facts) -> dict[str, Finding]:
    return {check.id: found for check, found in judge(facts)}


def path(**changes: Any) -> tuple[PathFact, ...]:
    return (replace(WELL.paths[0], **changes),)


def profile(selected: int | None, held: dict[int, str], *, stored: bool = True) -> dict[str, ProfileFacts]:
    return {"smith": ProfileFacts(selected, held, stored)}


def room(**changes: Any) -> tuple[Space, ...]:
    return (replace(WELL.space[0], **changes),)


def test_of_a_hive_that_is_well_every_check_says_so() -> None:
    assert {name: found.status for name, found in findings(WELL).items()} == {
        check.id: "ok" for check in CHECKS
    }


BROKEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("config", {"config_faults": ("ui_user: the user 'x' does not exist",)}, "fail", "'x' does not",
     "check-config"),
    ("config", {"config_notes": ("the file has changed",)}, "warn", "has changed", "restart hived"),
    ("programs", {"programs": {"git": None}}, "fail", r"git \(package git\)", "install"),
    ("versions", {"versions": {"git": "2.30.2"}}, "fail", "2.30.2 is older than 2.38", "upgrade"),
    ("versions", {"versions": {"kernel": "5.10.0-28-amd64"}}, "fail", "id-mapped mounts", "upgrade"),
    ("versions", {"versions": {"nix": "2.3.16"}}, "fail", "nix 2.3.16", "upgrade"),
    ("versions", {"versions": {"harness CLI": None}}, "warn", "harness CLI: no version", "install"),
    ("prices", {"prices": PricesFact(1_000_000.0 - 91 * 86_400, "https://example.org", 90)}, "warn",
     "91 days ago", "compare reconciler/gateway/models.json"),
    ("user-namespaces", {"user_namespaces": 0}, "fail", "switched off", "sysctl user.max_user_namespaces"),
    ("user-namespaces", {"others_may_make_them": False}, "fail", "build user", "unprivileged_userns_clone"),
    ("file-system", {"file_system": "nfs4"}, "fail", "locks", "ext4"),
    ("file-system", {"file_system": "overlay"}, "fail", "id-mapped", "ext4"),
    ("file-system", {"store_file_system": "overlay"}, "warn", "/nix/store", "move /nix"),
    ("file-system", {"file_system": "tmpfs"}, "warn", "reboot", "disk"),
    ("space", {"space": room(free=100 << 20)}, "fail", "100 of", "nix-collect-garbage"),
    ("space", {"space": room(free=1 * GIB)}, "warn", "1024 of", "make room soon"),
    ("inodes", {"space": room(free_inodes=10)}, "fail", "10 inodes", "du --inodes"),
    ("inodes", {"space": room(free_inodes=50_000)}, "warn", "50000 of", "du --inodes"),
    ("permissions", {"paths": path(mode=0o640)}, "fail", "mode 0640, 0600 is enough", "chmod"),
    ("permissions", {"paths": path(uid=1000)}, "fail", "belongs to uid 1000, not to 0", "chown"),
    ("permissions", {"paths": path(gid=5, want_gid=0)}, "fail", "gid 5, not to 0", "chown"),
    ("permissions", {"paths": path(uid=None)}, "fail", "is not there", "who changed"),
    ("credential", {"credential": CredentialFact("/k", readable_by="everybody")}, "fail", "everybody",
     "replace the"),
    ("credential", {"credential": CredentialFact("/k", problem="it is empty")}, "fail", "it is empty",
     "write the"),
    ("databases", {"databases": {"state.db": ("row 1 missing",)}}, "fail", "row 1 missing", "hive restore"),
    ("schemas", {"schemas": {"state.db": (9, 2)}}, "fail", "state.db has 9, this program knows 2", "newer"),
    ("schemas", {"schemas": {"state.db": (1, 2)}}, "warn", "1 of 2", "start hived"),
    ("audit-chain", {"audit": ("abc", 7, 4)}, "fail", "row 4 of 7", "compare"),
    ("clock", {"newest_at": 1_000_060.0}, "fail", "60 s in the future", "NTP"),
    ("clock", {"synchronised": False}, "warn", "nobody keeps", "NTP"),
    ("uid-ranges", {"agents": (SMITH, replace(SCOUT, uid_base=BASE))}, "fail", "overlaps with smith",
     "purge"),
    ("uid-ranges", {"reserved": (Reserved(BASE + 5, 1, "/etc/passwd (ann)"),)}, "fail", "ann", "other ids"),
    ("uid-ranges", {"reserved": (Reserved(NEXT, 65536, "/etc/subuid (bob)"),)}, "fail", "bob", "other ids"),
    ("uid-ranges", {"uid_range": (BASE, BASE + 65536)}, "warn", "outside of uid_range: scout", "widen"),
    ("uid-records", {"recorded_bases": {"smith": NEXT}}, "fail", f"made for {NEXT}", "set uid_base"),
    ("tags", {"tags": {"smith": TagFacts(("deployed/3",))}}, "fail", "smith: deployed/3", "--repair"),
    ("tags", {"tags": {"smith": TagFacts((), ("approved/99",))}}, "warn", "no row knows: smith", "tag -d"),
    ("deploy-log", {"deploy_log": {"smith": "it is not in it"}}, "fail", "smith: it is not", "--repair"),
    ("outbox", {"given_up": ("tag (row 4): no such commit",)}, "fail", "row 4", "--repair"),
    ("generations", {"profiles": profile(3, {})}, "fail", "3 is not pinned", "next pass"),
    ("generations", {"profiles": {}}, "fail", "3 is not pinned", "next pass"),
    ("generations", {"profiles": profile(3, {3: "/other"})}, "fail", "another path", "next pass"),
    ("generations", {"profiles": profile(2, {3: PATH})}, "fail", "points to 2", "next pass"),
    ("generations", {"profiles": profile(3, {3: PATH}, stored=False)}, "fail", "does not have",
     "why"),
    ("strays", {"strays": (("container", "ghost"),)}, "warn", "container ghost", "by hand"),
    ("leftovers", {"leftovers": ("/s/trees/x: 3 h old",)}, "warn", "trees/x", "restart hived"),
    ("limits", {"enforced": {"smith": ("cpu",)}}, "warn", "smith: memory, tasks not enforced",
     "control group"),
    ("gateway", {"gateway": GatewayFact(connected=False, problems={})}, "fail", "not connected",
     "start hive-gateway"),
    ("gateway", {"gateway": GatewayFact(connected=True, problems={"smith": "no dir"})}, "fail", "no dir",
     "pass"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "change", "status", "detail", "remedy"),
    BROKEN,
    ids=[f"{b[0]}-{n}" for n, b in enumerate(BROKEN)],
)
def test_what_breaks_an_invariant_is_seen_by_its_check_alone_and_has_a_remedy(
    check: str, change: dict[str, Any], status: str, detail: str, remedy: str
) -> None:
    found = findings(replace(WELL, **change))
    assert found[check].status == status
    assert re.search(detail, found[check].detail), found[check].detail
    assert remedy in found[check].remedy
    assert {name for name, one in found.items() if one.status != "ok"} == {check}


def test_every_check_is_broken_by_some_test() -> None:
    assert {check.id for check in CHECKS} == {broken[0] for broken in BROKEN}


def test_a_deployment_under_way_and_a_destroyed_agent_need_no_profile() -> None:
    for agent in (
        replace(SMITH, deploying=True),
        replace(SMITH, desired="destroyed"),
        replace(SMITH, generation=None),
    ):
        assert findings(replace(WELL, agents=(agent,), profiles={}))["generations"].status == "ok"


def test_what_could_not_be_found_out_is_never_ok() -> None:
    nothing = findings(Facts(now=1.0))
    known_of_nothing = {
        "config",
        "programs",
        "versions",
        "space",
        "inodes",
        "permissions",
        "leftovers",
        "clock",
    }
    assert {name for name, found in nothing.items() if found.status == "ok"} <= known_of_nothing
    assert all(found.status in {"ok", "not-applicable"} for found in nothing.values())


def test_many_findings_are_told_shortly() -> None:
    many = tuple(("directory", f"/s/agents/ghost-{number}") for number in range(500))
    found = findings(replace(WELL, strays=many))["strays"]
    assert "and 495 more" in found.detail
    assert len(found.detail) < 300
