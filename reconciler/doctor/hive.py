"""Checks over what the hive itself knows: rows, repositories, profiles, and things without a row. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.approvals.rules import RANGE
from reconciler.doctor.facts import AgentRow, Facts, Finding, several, unknown

CLOCK_SLACK_S = 5.0


def databases(facts: Facts) -> Finding:
    """SQLite's own checks."""
    if facts.databases is None:
        return unknown("the databases cannot be read: not root?")
    wrong = [f"{name}: {fault}" for name, faults in sorted(facts.databases.items()) for fault in faults]
    if wrong:
        return Finding(
            "fail",
            several(wrong),
            "stop hived, move the state directory away and `hive restore` the newest backup",
        )
    return Finding("ok", f"{', '.join(sorted(facts.databases))} are whole")


def schemas(facts: Facts) -> Finding:
    """No file is newer than the program."""
    if not facts.schemas:
        return unknown("the databases cannot be read: not root?")
    newer = [
        f"{n} has {has}, this program knows {new}"
        for n, (has, new) in sorted(facts.schemas.items())
        if has > new
    ]
    if newer:
        return Finding(
            "fail", several(newer), "start the newer hyperhive, or restore a backup from before it"
        )
    older = [f"{n} has {has} of {new}" for n, (has, new) in sorted(facts.schemas.items()) if has < new]
    if older:
        return Finding("warn", several(older), "start hived: it migrates them, after a copy")
    return Finding("ok", ", ".join(f"{n} {has}" for n, (has, _) in sorted(facts.schemas.items())))


def audit_chain(facts: Facts) -> Finding:
    """Every row of the audit follows the one before."""
    if facts.audit is None:
        return unknown("the audit cannot be read: not root?")
    head, rows, broken = facts.audit
    if broken is not None:
        return Finding(
            "fail",
            f"row {broken} of {rows} is not what was written: it was changed, or a row before it is gone",
            "compare `hive audit` with a backup and find out who had root; the chain cannot be mended",
        )
    return Finding("ok", f"{rows} rows, head {head or '(none)'}")


def clock(facts: Facts) -> Finding:
    """Time goes forward, and is kept."""
    if facts.newest_at is not None and facts.newest_at > facts.now + CLOCK_SLACK_S:
        ahead = facts.newest_at - facts.now
        return Finding(
            "fail",
            f"the newest row was written {ahead:.0f} s in the future: the clock was set back",
            "set the host's clock (timedatectl), and keep it by NTP",
        )
    if facts.synchronised is False:
        return Finding("warn", "nobody keeps the host's clock", "switch on NTP: timedatectl set-ntp true")
    return Finding("ok", "no row is from the future")


def uid_ranges(facts: Facts) -> Finding:
    """Every agent's uids are its own, inside of the host's range."""
    if facts.agents is None:
        return unknown()
    first, end = facts.uid_range
    wrong: list[str] = []
    outside: list[str] = []
    seen: list[AgentRow] = []
    for agent in facts.agents:
        where = f"{agent.name} ({agent.uid_base} to {agent.uid_base + RANGE - 1})"
        wrong += [
            f"{where} overlaps with {other.name}"
            for other in seen
            if abs(other.uid_base - agent.uid_base) < RANGE
        ]
        wrong += [
            f"{where} overlaps with {taken.source}"
            for taken in facts.reserved
            if agent.uid_base < taken.first + taken.count and taken.first < agent.uid_base + RANGE
        ]
        if agent.uid_base < first or agent.uid_base + RANGE > end:
            outside.append(where)
        seen.append(agent)
    if wrong:
        return Finding(
            "fail", several(wrong), "stop these agents; give the other owner other ids, or purge the agent"
        )
    if outside:
        return Finding(
            "warn", f"outside of uid_range: {several(outside)}", "widen uid_range in the configuration"
        )
    return Finding("ok", f"{len(facts.agents)} ranges, disjoint and inside {first} to {end - 1}")


def uid_records(facts: Facts) -> Finding:
    """Rows and directories agree whose uids an agent has."""
    if facts.agents is None:
        return unknown()
    wrong = [
        f"{agent.name}: the row says {agent.uid_base}, its directories were made for {base}"
        for agent in facts.agents
        if (base := facts.recorded_bases.get(agent.name, agent.uid_base)) != agent.uid_base
    ]
    if wrong:
        return Finding(
            "fail", several(wrong), "set uid_base of the row back: the files belong to the old range"
        )
    return Finding("ok", "rows and directories agree")


def tags(facts: Facts) -> Finding:
    """Git shows what the rows say of proposals."""
    if facts.tags is None:
        return unknown()
    wrong = [f"{name}: {tag}" for name, found in sorted(facts.tags.items()) for tag in found.wrong]
    if wrong:
        return Finding(
            "fail", f"missing or moved: {several(wrong)}", "`hive doctor --repair` makes them anew"
        )
    extra = [f"{name}: {tag}" for name, found in sorted(facts.tags.items()) for tag in found.unknown]
    if extra:
        return Finding(
            "warn",
            f"of proposals that no row knows: {several(extra)}",
            "remove them with `git tag -d` in the hive's repository of that agent",
        )
    return Finding("ok", f"{len(facts.tags)} repositories show their rows")


def deploy_log(facts: Facts) -> Finding:
    """`meta/` says what runs."""
    if facts.deploy_log is None:
        return unknown()
    wrong = [f"{name}: {what}" for name, what in sorted(facts.deploy_log.items())]
    if wrong:
        return Finding("fail", several(wrong), "`hive doctor --repair` writes it anew")
    return Finding("ok", "the deploy log in meta/ is what the rows say")


def outbox(facts: Facts) -> Finding:
    """Everything that follows from a commit was done."""
    if facts.given_up is None:
        return unknown()
    if facts.given_up:
        return Finding(
            "fail",
            f"given up: {several(list(facts.given_up))}",
            "mend the reason, then `hive doctor --repair` tries again",
        )
    return Finding("ok", "nothing was given up")


def generations(facts: Facts) -> Finding:
    """Nix profiles hold and point to what should run."""
    if facts.agents is None or facts.profiles is None:
        return unknown()
    wrong = [text for agent in facts.agents for text in _profile_faults(agent, facts)]
    if wrong:
        return Finding(
            "fail",
            several(wrong),
            "hived mends it in its next pass; if it stays, `hive why AGENT` and `hive plan AGENT` say why",
        )
    return Finding("ok", "profiles hold what should run")


def _profile_faults(agent: AgentRow, facts: Facts) -> Iterator[str]:
    profile = (facts.profiles or {}).get(agent.name)
    if (
        agent.generation is None
        or agent.store_path is None
        or agent.desired == "destroyed"
        or agent.deploying
    ):
        return
    if profile is None or agent.generation not in profile.generations:
        yield f"{agent.name}: generation {agent.generation} is not pinned"
    elif profile.generations[agent.generation] != agent.store_path:
        yield f"{agent.name}: generation {agent.generation} is pinned to another path"
    elif profile.selected != agent.generation:
        yield f"{agent.name}: its profile points to {profile.selected}, not to {agent.generation}"
    if profile is not None and not profile.stored:
        yield f"{agent.name}: the store does not have {agent.store_path}"


def strays(facts: Facts) -> Finding:
    """Nothing of the hive is without a row."""
    if facts.strays is None:
        return unknown()
    found = [f"{kind} {what}" for kind, what in facts.strays]
    if found:
        return Finding(
            "warn",
            several(found),
            "look whose they are; what is of no agent is removed by hand (a container: stop it first)",
        )
    return Finding("ok", "no container, directory, repository, mount or control group without a row")


def leftovers(facts: Facts) -> Finding:
    """Nothing is left of what was interrupted."""
    if facts.leftovers:
        return Finding(
            "warn",
            several(list(facts.leftovers)),
            "restart hived: its start clears away; else remove them by hand",
        )
    return Finding("ok", "nothing was left behind")
