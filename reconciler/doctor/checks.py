"""All checks, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reconciler.doctor import hive, host
from reconciler.doctor.facts import Facts, Finding


@dataclass(frozen=True, slots=True)
class Check:
    """One check: a stable word, what must be true, and who judges it."""

    id: str
    title: str
    judge: Callable[[Facts], Finding]


CHECKS: tuple[Check, ...] = (
    Check("config", "the configuration can work here", host.config),
    Check("programs", "what hived starts is installed", host.programs),
    Check("versions", "nothing is too old", host.versions),
    Check("user-namespaces", "user namespaces are allowed", host.user_namespaces),
    Check("file-system", "the state lies on a fitting file system", host.file_system),
    Check("space", "there is room on the disks", host.space),
    Check("inodes", "there is room for files", host.inodes),
    Check("permissions", "owners and modes are as they must be", host.permissions),
    Check("credential", "the credential is usable, and the gateway's alone", host.credential),
    Check("databases", "the databases are whole", hive.databases),
    Check("schemas", "the databases fit this program", hive.schemas),
    Check("audit-chain", "every decision follows the one before", hive.audit_chain),
    Check("clock", "time goes forward", hive.clock),
    Check("uid-ranges", "every agent has uids of its own", hive.uid_ranges),
    Check("uid-records", "rows and directories agree on uids", hive.uid_records),
    Check("tags", "git shows the proposals of the rows", hive.tags),
    Check("deploy-log", "meta/ says what was deployed", hive.deploy_log),
    Check("outbox", "what follows from decisions was done", hive.outbox),
    Check("generations", "Nix profiles hold what should run", hive.generations),
    Check("strays", "nothing is there without a row", hive.strays),
    Check("leftovers", "nothing is left of what was interrupted", hive.leftovers),
    Check("limits", "limits of containers are enforced", host.limits),
    Check("prices", "the prices of models are not old", host.prices),
    Check("gateway", "the model gateway is connected", host.gateway),
)


def judge(facts: Facts) -> list[tuple[Check, Finding]]:
    """Every check with its finding."""
    return [(check, check.judge(facts)) for check in CHECKS]
