"""Verbs on an agent as a whole: hold and release, rollback, what is kept of destroyed ones."""

from __future__ import annotations

from argparse import Namespace

from reconciler.cli.api import Hive, Json, segment
from reconciler.cli.console import Console, ago, cell
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.follow import outcome_of, watch


def hold(options: Namespace, console: Console) -> int:
    """`hive hold [AGENT | --all]`"""
    return _hold("hold", options, console)


def release(options: Namespace, console: Console) -> int:
    """`hive release [AGENT | --all]`"""
    return _hold("release", options, console)


def _hold(verb: str, options: Namespace, console: Console) -> int:
    if options.agent is not None and options.all:
        raise Failure(f"{verb}: either an agent or --all", code="usage", status=Exit.USAGE)
    hive, body = Hive(), {"dry_run": options.dry_run, "note": options.note}
    if options.all:
        found = hive.post(f"/{verb}", body)
    elif options.agent is not None:
        found = hive.post(f"/agents/{segment(options.agent)}/{verb}", body)
    else:
        found = hive.get("/holds")
    if options.json:
        console.document(found)
        return Exit.DONE
    if options.all or options.agent is not None:
        whom = "the whole hive" if options.all else options.agent
        console.say(f"would {verb} {whom}; then:" if options.dry_run else f"{verb}: {whom}")
    rows = [
        [cell("the hive" if one["scope"] == "*" else one["scope"]), cell(one["by"]), cell(ago(one["at"])),
         cell(one["reason"])]
        for one in found["items"]
    ]  # fmt: skip
    console.table(["HELD", "BY", "SINCE", "WHY"], rows, "nothing is held")
    return Exit.DONE


def rollback(options: Namespace, console: Console) -> int:
    """`hive rollback AGENT [GENERATION]`"""
    hive = Hive()
    body: Json = {"generation": options.generation, "now": options.now, "note": options.note}
    made = hive.post(f"/agents/{segment(options.agent)}/rollback", body | {"dry_run": options.dry_run})
    if options.dry_run:
        if options.json:
            console.document(made)
        else:
            console.say(f"would go back to generation {made['rollback_of']}, commit {made['commit'][:12]}")
            for number in made["supersedes"]:
                console.say(f"it would supersede proposal {number}")
        return Exit.DONE
    if options.wait:
        return outcome_of(watch(hive, made["id"], console), console)
    if options.json:
        console.document(made)
    else:
        console.say(f"proposal {made['id']}: {made['agent']} goes {made['description']}")
        console.say(f"`hive proposals {made['id']}` shows how it goes, `--wait` follows it", "dim")
    return Exit.DONE


def kept(options: Namespace, console: Console) -> int:
    """`hive kept`"""
    found = Hive().get("/kept")
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [cell(one["name"]), cell(one["role"]), cell(one["generation"]), cell((one["commit"] or "")[:12]),
         cell(ago(one["destroyed_at"]) if one["destroyed_at"] else ""),
         cell(_room(one["size_bytes"], whole=one["size_is_whole"])),
         cell("being purged" if one["purging"] else "kept")]
        for one in found["items"]
    ]  # fmt: skip
    console.table(["KEPT", "ROLE", "GEN", "COMMIT", "DESTROYED", "SIZE", "STATE"], rows, "nothing is kept")
    return Exit.DONE


def _room(size: int | None, *, whole: bool) -> str:
    """As `12.3 MiB`, with `≥` if there is more."""
    if size is None:
        return ""
    more = "" if whole else "≥ "
    if size < 1 << 20:
        return f"{more}{size / 1024:.0f} KiB"
    return f"{more}{size / 2**20:.1f} MiB" if size < 1 << 30 else f"{more}{size / 2**30:.1f} GiB"


def revive(options: Namespace, console: Console) -> int:
    """`hive revive AGENT`"""
    body = {"dry_run": options.dry_run, "note": options.note}
    found = Hive().post(f"/agents/{segment(options.agent)}/revive", body)
    if options.json:
        console.document(found)
    else:
        console.say(f"{'would revive' if options.dry_run else 'revived'}: {found['name']}")
    return Exit.DONE


def purge(options: Namespace, console: Console) -> int:
    """`hive purge AGENT`"""
    confirm = options.confirm
    if confirm is None and not options.dry_run:
        confirm = console.ask_for(
            f"Purge {options.agent}? Its state, home and repository are removed for good. Type its name: "
        )
    if not options.dry_run and confirm != options.agent:
        raise Failure(
            f"{options.agent} was not purged",
            f"type its name, or give --confirm {options.agent}",
            code="declined",
        )
    body = {"dry_run": options.dry_run, "note": options.note, "confirm": options.agent}
    done = Hive().post(f"/agents/{segment(options.agent)}/purge", body)
    if options.json:
        console.document(done)
    else:
        console.say(f"would purge {options.agent}" if options.dry_run else f"{options.agent} is being purged")
    return Exit.DONE
