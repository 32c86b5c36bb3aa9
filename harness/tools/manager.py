"""The tools that only the manager has. The host checks that again: these are no rights, only ways to ask."""

from __future__ import annotations

from harness.link import Link
from harness.tools.agent import offer
from harness.tools.tool import Arguments, Tool, ToolContext, arguments_schema, number, text
from harness.wire import Agents, Done, DraftMade, Logs, Proposed, Spawn, SpawnDraft

_LOG_LINES = 100


def manager_tools(context: ToolContext) -> tuple[Tool, ...]:
    """`request_spawn request_spawn_draft request_spawn_commit request_apply_commit start stop restart
    list_agents get_logs`."""
    return (
        _request_spawn(context),
        _request_spawn_draft(context),
        _request_spawn_commit(context),
        _request_apply_commit(context),
        _unit_tool(context.link, "start", "Start an agent's container."),
        _unit_tool(context.link, "stop", "Stop an agent's container; it stays stopped until it is started."),
        _unit_tool(context.link, "restart", "Restart an agent's container at the end of its turn."),
        _list_agents(context.link),
        _get_logs(context.link),
    )


def _name(what: str = "the agent's name") -> dict[str, object]:
    return {**text(what, 31), "pattern": "^[a-z][a-z0-9-]{0,30}$"}


def _request_spawn(context: ToolContext) -> Tool:
    async def request_spawn(arguments: Arguments) -> str:
        spawn = Spawn(name=arguments["name"], description=arguments.get("description", ""))
        proposed = await context.link.post("spawns", spawn, Proposed, repeatable=False)
        return f"proposal {proposed.proposal} for the new agent {spawn.name}, now {proposed.state}"

    schema = arguments_schema({"name": _name()}, {"description": text("what it is for", 2000, 0)})
    return Tool(
        "request_spawn", "Ask for a new agent made from the template, as it is.", schema, request_spawn
    )


def _request_spawn_draft(context: ToolContext) -> Tool:
    async def request_spawn_draft(arguments: Arguments) -> str:
        name = arguments["name"]
        made = await context.link.post("drafts", SpawnDraft(name=name), DraftMade, repeatable=False)
        await context.trees.make_draft(name)
        return (
            f"draft of {name} at commit {made.commit}: edit {context.trees.repository(name)} and commit, "
            f"put notes and files for it into {context.trees.state(name)}, then request_spawn_commit"
        )

    what = (
        "First step to a new agent: makes /agents/<name>/config (a repository with a first commit) "
        "and /agents/<name>/state."
    )
    return Tool("request_spawn_draft", what, arguments_schema({"name": _name()}), request_spawn_draft)


def _request_spawn_commit(context: ToolContext) -> Tool:
    async def request_spawn_commit(arguments: Arguments) -> str:
        name = arguments["name"]
        bundle = await context.trees.pack(name, arguments["commit_ref"])
        state = await context.trees.pack_state(name)
        query = {"commit": bundle.commit, "description": arguments.get("description", "")}
        parts = {"bundle": bundle.data, "state": state}
        proposed = await context.link.upload(f"drafts/{name}/commit", parts, Proposed, query)
        return (
            f"commit {bundle.commit} with {len(state)} bytes of state is proposal {proposed.proposal}, "
            f"now {proposed.state}"
        )

    schema = arguments_schema(
        {
            "name": _name(),
            "commit_ref": text("full id of a commit in /agents/<name>/config (40 digits), or HEAD", 64),
        },
        {"description": text("what the agent is for, for the operator", 2000, 0)},
    )
    what = (
        "Second step to a new agent: sends the drafted commit and state for approval, frozen as they are now."
    )
    return Tool("request_spawn_commit", what, schema, request_spawn_commit)


def _request_apply_commit(context: ToolContext) -> Tool:
    async def request_apply_commit(arguments: Arguments) -> str:
        return await offer(
            context, arguments["name"], arguments["commit_ref"], arguments.get("description", "")
        )

    schema = arguments_schema(
        {
            "name": _name(),
            "commit_ref": text("full id of a commit in /agents/<name>/config (40 digits), or HEAD", 64),
        },
        {"description": text("what changes and why, for the operator", 2000, 0)},
    )
    what = "Offer a commit for an agent. It takes effect when the operator approves; you hear of it."
    return Tool("request_apply_commit", what, schema, request_apply_commit)


def _unit_tool(link: Link, verb: str, what: str) -> Tool:
    async def act(arguments: Arguments) -> str:
        name = arguments["name"]
        await link.post(f"agents/{name}/{verb}", None, Done, repeatable=False)
        return f"{verb} of {name} is on its way"

    return Tool(verb, what, arguments_schema({"name": _name()}), act)


def _list_agents(link: Link) -> Tool:
    async def list_agents(_arguments: Arguments) -> str:
        agents = (await link.get("agents", Agents)).agents
        lines = [
            f"{one.name}: {one.role}, {one.state}, model {one.model}, generation {one.generation}, "
            f"commit {one.commit}"
            for one in agents
        ]
        return "\n".join(lines) or "there are no agents"

    return Tool("list_agents", "All agents of the hive and how they are.", arguments_schema({}), list_agents)


def _get_logs(link: Link) -> Tool:
    async def get_logs(arguments: Arguments) -> str:
        query = {"lines": str(arguments.get("lines", _LOG_LINES))}
        logs = await link.get(f"agents/{arguments['name']}/logs", Logs, query)
        return "\n".join(logs.lines) or "the log is empty"

    schema = arguments_schema({"name": _name()}, {"lines": number("how many of the last lines", 1, 1000)})
    return Tool("get_logs", "The last lines of an agent's console log.", schema, get_logs)
