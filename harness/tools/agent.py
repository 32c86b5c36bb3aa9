"""The tools that every agent has."""

from __future__ import annotations

from harness.link import ATTEMPT_S, LinkError
from harness.prompts import rendered_messages
from harness.tools.tool import Arguments, Tool, ToolContext, arguments_schema, key, number, text
from harness.wire import (
    Asked,
    AskOperator,
    Done,
    Nap,
    Napping,
    OwnStatus,
    Proposed,
    SendMessage,
    Sent,
    Status,
)

RECV_MAX_S = 180
NAP_MAX_S = 86_400
_MESSAGES_MAX = 10
_BODY_CHARACTERS = 60_000


def agent_tools(context: ToolContext) -> tuple[Tool, ...]:
    """`recv send ask_operator nap set_status get_status propose`."""
    return (
        _recv(context),
        _send(context),
        _ask(context),
        _nap(context),
        _set_status(context),
        _get_status(context),
        _propose(context),
    )


def _recv(context: ToolContext) -> Tool:
    async def recv(arguments: Arguments) -> str:
        wait_s = int(arguments.get("wait_seconds", 0))
        inbox = await context.link.more(wait_s, _MESSAGES_MAX)
        return rendered_messages(inbox.messages, inbox.waiting) if inbox.messages else "no new messages"

    schema = arguments_schema(
        {}, {"wait_seconds": number("how long to wait for one, 0 to 180", 0, RECV_MAX_S)}
    )
    what = "Further messages to you within this turn. They are marked as done when the turn ends well."
    return Tool("recv", what, schema, recv, limit_s=RECV_MAX_S + ATTEMPT_S + 5)


def _send(context: ToolContext) -> Tool:
    async def send(arguments: Arguments) -> str:
        message = SendMessage(
            to=arguments["to"], body=arguments["body"], in_reply_to=arguments.get("in_reply_to"), key=key()
        )
        sent = await context.link.post("messages", message, Sent)
        ids = ", ".join(str(one) for one in sent.ids)
        if not sent.ids:
            return "sent to nobody: no agent matches"
        return f"sent as message {ids}" + (f"; {sent.note}" if sent.note else "")

    schema = arguments_schema(
        {
            "to": text("an agent's name, `manager`, `operator`, or `*` for all you may send to", 64),
            "body": text("what you want to say, plain text or Markdown", _BODY_CHARACTERS),
        },
        {"in_reply_to": number("id of the message that this answers", 1, 2**53)},
    )
    return Tool("send", "Send a message to another agent, the manager or the operator.", schema, send)


def _ask(context: ToolContext) -> Tool:
    async def ask_operator(arguments: Arguments) -> str:
        question = AskOperator(
            question=arguments["question"],
            options=list(arguments.get("options", [])),
            multi=bool(arguments.get("multi", False)),
            ttl_seconds=arguments.get("ttl_seconds"),
            key=key(),
        )
        asked = await context.link.post("questions", question, Asked)
        return f"asked as question {asked.id}; the answer comes as a message: end the turn if you need it"

    schema = arguments_schema(
        {"question": text("the question, with all the operator needs to decide it", 8000)},
        {
            "options": {
                "type": "array",
                "items": text("one answer", 400),
                "maxItems": 20,
                "description": "answers to choose from",
            },
            "multi": {"type": "boolean", "description": "whether several options may be chosen"},
            "ttl_seconds": number("after this time the question expires", 60, 604800),
        },
    )
    return Tool(
        "ask_operator",
        "Ask the human operator. Returns at once; the answer comes as a message.",
        schema,
        ask_operator,
    )


def _nap(context: ToolContext) -> Tool:
    async def nap(arguments: Arguments) -> str:
        seconds = arguments["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= NAP_MAX_S:
            raise ValueError(f"a nap lasts 1 to {NAP_MAX_S} whole seconds (24 hours), not {seconds!r:.40}")
        nap = Nap(seconds=seconds, reason=arguments.get("reason", ""))
        napping = await context.link.post("nap", nap, Napping)
        if napping.until is None:
            return "no nap: something urgent waits for you already, and comes when this turn has ended"
        return (
            f"you will not be woken before {napping.until} ({seconds} s from now), unless something urgent "
            "comes. End the turn now"
        )

    schema = arguments_schema(
        {"seconds": number("how long, up to a day", 1, NAP_MAX_S)},
        {"reason": text("shown to the operator", 400, 0)},
    )
    return Tool("nap", "Do not wake me before the time is over. End the turn after calling it.", schema, nap)


def _set_status(context: ToolContext) -> Tool:
    async def set_status(arguments: Arguments) -> str:
        await context.link.post("status", Status(text=arguments["text"]), Done)
        return "set"

    schema = arguments_schema({"text": text("one line; empty clears it", 400, 0)})
    return Tool(
        "set_status", "A short line about what you are doing, shown beside your name.", schema, set_status
    )


def _get_status(context: ToolContext) -> Tool:
    async def get_status(_arguments: Arguments) -> str:
        now = context.status()
        lines = [f"name: {now.agent}", f"role: {now.role}"]
        try:
            lines += _host_lines(await context.link.get("status", OwnStatus))
        except LinkError as error:  # a host that has just gone away; what it said at hello is not wrong yet
            lines += [f"the host does not say more: {error}", f"model: {now.model}"]
            lines += [f"generation: {now.generation}", f"may send to: {', '.join(now.peers) or 'nobody'}"]
            lines.append(f"allowed shell commands: {', '.join(now.bash_allow) or 'none'}")
        lines.append(f"session: {now.session_id}")
        if now.context is not None:
            used, window = now.context
            lines.append(f"context: {used} of {window} tokens ({100 * used // window} %)")
        return "\n".join(lines)

    return Tool(
        "get_status",
        "Who and how you are: model, budget, inbox, open questions, nap, context in use, whom you may write "
        "to and what is allowed.",
        arguments_schema({}),
        get_status,
    )


def _host_lines(own: OwnStatus) -> list[str]:
    """What the host says, one fact a line; what is not set is left out."""
    queued = f", from the next turn on {own.model_queued}" if own.model_queued else ""
    left = "no limit" if own.budget_left_usd is None else f"${own.budget_left_usd:.4f} left of "
    if own.budget_left_usd is not None:
        left += f"${own.budget_limit_usd or 0:.2f}, until {own.budget_resets_at}"
    named = {"bash.allow": "allowed shell commands", "bash.deny": "refused shell commands"}
    settings = [f"{named.get(key, key)}: {', '.join(of) or 'none'}" for key, of in own.settings.items()]
    asked = [f"question {one.id} is open: {one.question}" for one in own.questions]
    return [
        f"state: {own.state}",
        f"model: {own.model}{queued}",
        f"generation: {own.generation}, commit {own.commit}",
        *([f"status: {own.status}"] if own.status else []),
        *([f"nap until: {own.nap_until}, after this turn"] if own.nap_until else []),
        f"budget today: {left}",
        *([f"tokens per turn: {own.tokens_per_turn}"] if own.tokens_per_turn else []),
        f"inbox: {own.waiting} waiting",
        *([f"held until the operator decides: {own.held} messages between agents"] if own.held else []),
        *asked,
        f"may send to: {', '.join(own.peers) or 'nobody'}",
        *settings,
        *([f"at the end of this turn: {', '.join(own.queued)}"] if own.queued else []),
    ]


def _propose(context: ToolContext) -> Tool:
    async def propose(arguments: Arguments) -> str:
        return await offer(context, context.status().agent, arguments["commit"], arguments["description"])

    schema = arguments_schema(
        {
            "commit": text("full id of a commit in /config (40 digits), or HEAD", 64),
            "description": text("what changes and why, for the operator", 2000),
        }
    )
    what = "Offer a commit of your own repository (/config) for approval. The outcome comes as a message."
    return Tool("propose", what, schema, propose)


async def offer(context: ToolContext, agent: str, commit: str, description: str) -> str:
    """Sends a commit of an agent's repository to the host as a proposal."""
    bundle = await context.trees.pack(agent, commit)
    query = {"agent": agent, "commit": bundle.commit, "description": description}
    proposed = await context.link.upload("proposals", {"bundle": bundle.data}, Proposed, query)
    return (
        f"commit {bundle.commit} is proposal {proposed.proposal} for {agent}, now {proposed.state}; "
        "what becomes of it will come as a message"
    )
