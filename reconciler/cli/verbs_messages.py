"""The verbs about messages, of the table in `verbs.py`."""

from __future__ import annotations

from reconciler.cli.grammar import DRY_RUN, YES, Verb, option, positional, switch, whole

_AGENT = positional("agent", "the agent's name")
_PEER = positional("peer", "the other agent's name")
_NOTE = option("--note", about="a note that is kept with the decision", default="")

MESSAGES: tuple[Verb, ...] = (
    Verb(
        "send",
        "Messages",
        "Send a message as the operator.",
        "talk:send",
        (
            positional("to", "an agent, `manager`, or '*' for all"),
            positional("text", "the message; without it, or as '-', standard input", nargs="*"),
            option("--reply-to", about="the message that this one answers", type=whole, metavar="ID"),
            switch("--wait", about="wait for the answer and print it"),
            option(
                "--timeout",
                about="with --wait: give up after so many seconds (default 600)",
                type=whole,
                default=600,
                metavar="SECONDS",
            ),
            DRY_RUN,
        ),
        (
            ("hive send scout 'what is in your repository?' --wait", "prints scout's answer"),
            ("git log -5 | hive send scribe -", "a message from standard input"),
        ),
    ),
    Verb(
        "messages",
        "Messages",
        "List messages, newest first.",
        "talk:messages",
        (
            option("--agent", about="only from or to this agent"),
            option("--before", about="only messages before this id", type=whole),
            option("-n", "--limit", about="at most so many messages (default 20)", type=whole, default=20),
            switch("--full", about="print whole messages"),
            option("--mark-read", about="mark this message to you as read instead", type=whole, metavar="ID"),
            switch("--dry-run", about="with --mark-read: say what would be done and do nothing"),
        ),
    ),
    Verb(
        "redeliver",
        "Messages",
        "Let a message that was set aside after too many failed turns come once more.",
        "talk:redeliver",
        (
            positional("id", "the number of a message that `hive messages` calls set aside", type=whole),
            DRY_RUN,
        ),
    ),
    Verb(
        "loops",
        "Messages",
        "List agents that only feed each other, whose messages wait for `hive deliver` or `hive drop`.",
        "loops:loops",
    ),
    Verb(
        "deliver",
        "Messages",
        "Deliver what waits between two agents that only feed each other.",
        "loops:deliver",
        (_AGENT, _PEER, DRY_RUN, _NOTE),
        (("hive deliver smith scout", "they may go on; the count begins anew"),),
    ),
    Verb(
        "drop",
        "Messages",
        "Drop what waits between two agents that only feed each other.",
        "loops:drop",
        (_AGENT, _PEER, YES, DRY_RUN, _NOTE),
    ),
)
