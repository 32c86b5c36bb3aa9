"""Verbs about the hive and its agents: looking, starting, stopping, models, transcripts."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from typing import Any

from reconciler.cli.api import Hive, Json, segment
from reconciler.cli.console import Console, ago, cell, clock, state_cell, thousands, usd
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.follow import once, outcome_of, rehearsed, watch

FOLLOW_PAUSE_S = 0.3
_ENDS = {"invalid", "denied", "superseded", "cancelled", "failed"}


def status(options: Namespace, console: Console) -> int:
    """`hive status`"""
    hive = Hive()
    found = hive.get("/status")
    if options.json:
        console.document(found)
        return Exit.DONE
    console.say(
        f"hyperhive {found['version']} · {found['platform']} platform, {found['driver']} containers · "
        f"model: {found['model_upstream']}"
    )
    if not found["gateway_connected"]:
        console.say("the gateway is not connected: no turn can reach the model", "red")
    for trouble in found["troubles"]:
        console.say(trouble, "red")
    needs = found["needs_operator"]
    detail = f"{found['approvals_pending']} to approve, {found['questions_open']} to answer"
    for what in ("held", "stuck"):
        detail += f", {what}: {', '.join(found[what])}" if found[what] else ""
    detail += ", the whole hive is held" if found["hold"] else ""
    if needs:
        console.say(f"{needs} {'needs' if needs == 1 else 'need'} you: {detail}", "yellow")
    else:
        console.say("nothing needs you")
    console.say(
        f"{found['agents']} agents, {found['thinking']} thinking, {usd(found['cost_today_usd'])} today"
    )
    if (seats := found["seats"]) is not None:
        waiting = f", {seats['waiting']} waiting for a seat" if seats["waiting"] else ""
        console.say(
            f"{seats['taken']} of {seats['cap']} sessions in memory, {seats['busy']} at work{waiting}"
        )
    if found["databases"]:
        console.say(", ".join(f"{one['name']} {_megabytes(one['bytes'])}" for one in found["databases"]))
    console.say()
    _agent_table(hive.get("/agents")["items"], console)
    return Exit.DONE


def _megabytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >> 20 else f"{count >> 10} KiB"


def agents(options: Namespace, console: Console) -> int:
    """`hive agents [AGENT]`"""
    hive = Hive()
    found = hive.get(f"/agents/{segment(options.agent)}" if options.agent is not None else "/agents")
    if options.json:
        console.document(found)
    elif options.agent is None:
        _agent_table(found["items"], console)
    else:
        _agent_fields(found, console)
    return Exit.DONE


def _agent_table(items: list[Json], console: Console) -> None:
    rows = [
        [
            cell(agent["name"]),
            cell(agent["role"]),
            state_cell(agent["state"]),
            cell(ago(agent["state_since"])),
            cell(agent["model"]["queued"] or agent["model"]["active"]),
            cell(agent["generation"]),
            cell(agent["inbox_depth"]),
            cell(_context(agent)),
            cell(usd(agent["cost_today_usd"])),
            cell(" · ".join(filter(None, (agent["reason"], agent["status"])))),
        ]
        for agent in items
    ]
    headers = ["AGENT", "ROLE", "STATE", "SINCE", "MODEL", "GEN", "INBOX", "CONTEXT", "TODAY", "WHY"]
    console.table(headers, rows, "there are no agents: `hive new NAME`")


def _context(agent: Json) -> str:
    used, window = agent["context"]["used"], agent["context"]["window"]
    return f"{round(100 * used / window)}%" if used is not None and window else ""


def _agent_fields(agent: Json, console: Console) -> None:
    model, container = agent["model"], agent["container"]
    switched = model["switched_at"] and f"switched {ago(model['switched_at'])} by {model['switched_by']}"
    until = agent["until"] and f"ends {ago(agent['until'])}"
    lives = agent["desired"] != "destroyed"  # what is destroyed has no container
    console.fields([
        ("agent", f"{agent['name']} ({agent['role']})"),
        ("state", ", ".join(filter(None, (agent["state"], agent["reason"], until)))),
        ("since", ago(agent["state_since"])),
        ("desired", f"{agent['desired']}{' (held)' if agent['held'] else ''}"),
        ("says", agent["status"]),
        ("said", ago(agent["status_at"]) if agent["status_at"] else None),
        ("model", ", ".join(filter(None, (model["active"] or "none yet", switched)))),
        ("next model", model["queued"]),
        ("requests name", model["other"]),
        ("model trouble", model["problem"]),
        ("at turn end", ", ".join(agent["queued"])),
        ("generation", agent["generation"]),
        ("commit", agent["commit"]),
        ("inbox", agent["inbox_depth"]),
        ("context", _context(agent)),
        ("session", "in memory" if agent["resident"] else None),
        ("today", f"{usd(agent['cost_today_usd'])}, {thousands(agent['tokens_today'])} tokens"),
        ("last turn", ago(agent["last_turn_at"])),
        ("outcome", _outcome(agent["last_outcome"])),
        ("mcp servers", ", ".join(_server(one) for one in agent["mcp_servers"])),
        ("uids", f"{agent['uid_base']} to {agent['uid_base'] + 65535}"),
        ("container", f"{container['unit']} ({container['driver']})" if lives else None),
        ("leader", container["leader_pid"]),
        ("limits", (", ".join(container["limits_enforced"]) or "not enforced") if lives else None),
    ])  # fmt: skip


def _outcome(last: Json | None) -> str | None:
    """How the last turn ended, and what helps."""
    if last is None:
        return None
    said = f": {last['error']}" if last["error"] else ""
    return f"{last['outcome']}{said}" + (f" ({last['hint']})" if last["hint"] else "")


def _server(one: Json) -> str:
    return f"{one['name']} {one['status']}" + (f" ({one['error']})" if one["error"] else "")


def plan(options: Namespace, console: Console) -> int:
    """`hive plan [AGENT]`"""
    hive = Hive()
    if options.agent is not None:
        plans = [hive.get(f"/agents/{segment(options.agent)}/plan")]
    else:
        plans = hive.get("/plans")["items"]
    if options.json:
        console.document(plans[0] if options.agent is not None else {"items": plans, "next": None})
        return Exit.DONE
    rows = [
        [cell(one["agent"]), cell(step["kind"]), cell(step["cost"].replace("_", " ")), cell(step["reason"])]
        for one in plans
        for step in one["steps"]
    ]
    console.table(["AGENT", "STEP", "COST", "REASON"], rows, "nothing to do: all is as it should be")
    for one in plans:
        if one["outcome"] not in {"", "settled"}:
            console.say(f"{one['agent']}: {one['outcome']}")
    return Exit.DONE


def why(options: Namespace, console: Console) -> int:
    """`hive why AGENT`"""
    found = Hive().get(f"/agents/{segment(options.agent)}/why")
    if options.json:
        console.document(found)
        return Exit.DONE
    for sentence in found["now"]:
        console.line(sentence)
    if found["now"]:
        console.say()
    rows = [
        [cell(c["kind"]), cell(ago(c["at"])), cell(c["ref"]), cell(_told(c) + c["text"])]
        for c in found["chain"]
    ]
    console.table(["CAUSE", "WHEN", "REF", "WHAT"], rows, "nothing is known")
    return Exit.DONE


def _told(cause: Json) -> str:
    return "told by the container: " if cause["told_by"] == "container" else ""


def new(options: Namespace, console: Console) -> int:
    """`hive new AGENT`"""
    hive = Hive()
    if options.wait and not options.approve:
        raise Failure("new: --wait needs --approve", code="usage", status=Exit.USAGE)
    body: Json = {"name": options.agent, "role": options.role, "description": options.description}
    body |= {"model": options.model, "bash_allow": options.allow, "approve": options.approve}
    body |= {"dry_run": options.dry_run}
    # The same request again finds its own proposal.
    made = once(lambda: hive.post("/agents", body))
    if options.dry_run:
        return rehearsed(made, console)
    if options.approve and options.wait:
        made = watch(hive, made["id"], console)
        return outcome_of(made, console)
    if options.json:
        console.document(made)
    else:
        console.say(f"proposal {made['id']} for the new agent {made['agent']} is {made['state']}")
    if made["state"] in _ENDS:
        raise Failure(f"proposal {made['id']} is {made['state']}: {made['error'] or made['note']}")
    if options.approve:
        return Exit.DONE
    if not options.json:
        console.say(f"it waits for an approval: `hive approve {made['id']}`")
    return Exit.WAITS


# What reads badly as "would VERB NAME". None of these changes what is desired.
_WOULD = {
    "cancel": "cancel the turn of {}",
    "compact": "compact the conversation of {}",
    "new-session": "begin a new session of {}",
    "nap": "let {} rest",
    "wake": "wake {}",
}


def _act(verb: str, options: Namespace, console: Console, **more: int) -> int:
    body: Json = {"dry_run": options.dry_run, "note": options.note, **more}
    found = Hive().post(f"/agents/{segment(options.agent)}/{verb}", body)
    if options.json:
        console.document(found)
    else:
        desired = "" if verb in _WOULD else f", desired {found['desired']}"
        if options.dry_run:
            would = _WOULD.get(verb, verb + " {}").format(found["name"])
            console.say(f"would {would}: it is {found['state']} now{desired and f'{desired} then'}")
        else:
            waits = ", at the end of its turn" if verb in found["queued"] else ""
            console.say(f"{verb}: {found['name']} is {found['state']}{desired}{waits}")
    if verb == "wake" and found["state"] == "parked" and not options.json:
        console.say(f"it is still parked: {found['reason']}", "yellow")
    if not options.json and found["held"] and verb in {"start", "restart"}:
        console.say(f"it is held, so that waits for its release: `hive release {found['name']}`", "yellow")
    return Exit.DONE


def start(options: Namespace, console: Console) -> int:
    """`hive start AGENT`"""
    return _act("start", options, console)


def stop(options: Namespace, console: Console) -> int:
    """`hive stop AGENT`"""
    return _act("stop", options, console)


def restart(options: Namespace, console: Console) -> int:
    """`hive restart AGENT`"""
    return _act("restart", options, console)


def wake(options: Namespace, console: Console) -> int:
    """`hive wake AGENT`"""
    return _act("wake", options, console)


def nap(options: Namespace, console: Console) -> int:
    """`hive nap AGENT TIME`"""
    return _act("nap", options, console, seconds=options.time)


def cancel(options: Namespace, console: Console) -> int:
    """`hive cancel AGENT`"""
    return _act("cancel", options, console)


def compact(options: Namespace, console: Console) -> int:
    """`hive compact AGENT`"""
    return _act("compact", options, console)


def new_session(options: Namespace, console: Console) -> int:
    """`hive new-session AGENT`"""
    return _act("new-session", options, console)


def destroy(options: Namespace, console: Console) -> int:
    """`hive destroy AGENT`"""
    question = f"Destroy {options.agent}? Its repository and state are kept."
    if not options.dry_run and not options.yes and not console.ask(question):
        raise Failure(f"{options.agent} was not destroyed", code="declined")
    return _act("destroy", options, console)


def model(options: Namespace, console: Console) -> int:
    """`hive model AGENT [MODEL]`"""
    if options.model is not None and options.default:
        raise Failure("model: either a model or --default", code="usage", status=Exit.USAGE)
    hive, path = Hive(), f"/agents/{segment(options.agent)}"
    if options.model is None and not options.default:
        found = hive.get(path)
    else:
        found = hive.post(f"{path}/model", {"model": options.model, "dry_run": options.dry_run})
    if options.json:
        console.document(found)
        return Exit.DONE
    active, queued = found["model"]["active"] or "none yet", found["model"]["queued"]
    would = "would set " if options.dry_run and (options.model or options.default) else ""
    console.say(f"{would}{found['name']}: {active}" + (f", {queued} from the next turn on" if queued else ""))
    _say_choice(found["model"], console)
    return Exit.DONE


def _say_choice(model: Json, console: Console) -> None:
    """Where the model comes from, what else there is, and what is odd about it."""
    if model["override"] is not None:
        console.say(f"your override; its agent.nix says {model['default']}", "dim")
    if model["switched_at"]:
        console.say(f"switched {ago(model['switched_at'])} by {model['switched_by']}", "dim")
    if model["allowed"]:
        console.say(f"allowed: {', '.join(model['allowed'])}", "dim")
    if model["other"]:
        console.say(f"requests of its last turn name {model['other']}", "yellow")
    if model["problem"]:
        console.say(model["problem"], "red")


def spec(options: Namespace, console: Console) -> int:
    """`hive spec AGENT`"""
    found = Hive().get(f"/agents/{segment(options.agent)}/spec")
    if options.json:
        console.document(found)
        return Exit.DONE
    console.say(f"generation {found['generation'] or '-'}, commit {found['commit'] or '-'}", "dim")
    console.say(json.dumps(found["spec"], indent=2, ensure_ascii=False))
    return Exit.DONE


def generations(options: Namespace, console: Console) -> int:
    """`hive generations AGENT`"""
    found = Hive().get(f"/agents/{segment(options.agent)}/generations")
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(f"{one['number']}{' *' if one['current'] else ''}"),
            cell(one["state"]),
            cell(ago(one["created_at"])),
            cell(one["proposal"]),
            cell(one["commit"][:12]),
            cell(one["store_path"]),
        ]
        for one in found["items"]
    ]
    console.table(["GEN", "STATE", "MADE", "PROPOSAL", "COMMIT", "PATH"], rows, "there are none yet")
    return Exit.DONE


def logs(options: Namespace, console: Console) -> int:
    """`hive logs AGENT`"""
    found = Hive().get(f"/agents/{segment(options.agent)}/logs", lines=options.limit)
    if options.json:
        console.document(found)
        return Exit.DONE
    for line in found["lines"]:
        console.line(line)
    return Exit.DONE


def transcript(options: Namespace, console: Console) -> int:
    """`hive transcript AGENT`"""
    hive, path = Hive(), f"/agents/{segment(options.agent)}/transcript"
    found = hive.get(path, limit=options.limit)
    if options.json and not options.follow:
        console.document(found)
        return Exit.DONE
    if not found["items"] and not options.follow:
        console.say("there is nothing yet", "dim")
    last = 0
    while True:
        for line in found["items"]:
            last = max(last, line["id"])
            if options.json:
                console.json_line(line)
            else:
                _say_line(line, console)
        if not options.follow:
            return Exit.DONE
        time.sleep(FOLLOW_PAUSE_S)
        found = hive.get(path, after=last)


def _say_line(line: Json, console: Console) -> None:
    """One event of a turn on one line; what the container told is neutralised like all text."""
    text, colour = _summary(line["kind"], line["data"])
    console.line(f"{clock(line['at'])} {line['turn']:>5} {line['kind']:<14} {cell(text).text}", colour)


def _summary(kind: str, data: dict[str, Any]) -> tuple[str, str]:
    match kind:
        case "tool_call":
            return f"{data.get('name')} {json.dumps(data.get('input'), ensure_ascii=False)}", ""
        case "tool_result":
            return str(data.get("text", "")), "red" if data.get("is_error") else "dim"
        case "policy_refusal":
            return f"{data.get('tool')}: {data.get('reason')}", "yellow"
        case "thinking":
            return str(data.get("text", "")), "dim"
        case "turn_end":
            words = [str(data.get("outcome")), str(data.get("error") or "")]
            return " ".join(words).strip(), "bold"
        case "turn_begin":
            return f"model {data.get('model')}", "bold"
    text = data.get("text")
    return (text if isinstance(text, str) else json.dumps(data, ensure_ascii=False)), ""
