"""The verbs of `hive`: parser, help and docs/cli.md are made from this table."""

from __future__ import annotations

from reconciler.cli.grammar import DRY_RUN, YES, Argument, Verb, option, positional, span, switch, whole
from reconciler.cli.verbs_host import HOST
from reconciler.cli.verbs_messages import MESSAGES
from reconciler.cli.verbs_money import MONEY
from reconciler.cli.verbs_questions import QUESTIONS
from reconciler.cli.verbs_stats import STATS

_AGENT = positional("agent", "the agent's name")
_ID = positional("id", "the proposal's number", type=whole)
_NOTE = option("--note", about="a note that is kept with the decision", default="")
_WAIT = switch("--wait", about="follow the build to its end and exit by it: 0 deployed, 1 anything else")
_NOW = switch("--now", about="do not wait for the end of a running turn")


def _limit(what: str, count: int) -> Argument:
    return option(
        "-n", "--limit", about=f"at most so many {what} (default {count})", type=whole, default=count
    )


_HIVE = (
    Verb(
        "status",
        "The hive",
        "Show the hive at a glance.",
        "fleet:status",
        (),
        (("hive status", "what needs you, and what every agent does"),),
    ),
    Verb(
        "agents",
        "The hive",
        "List the agents, or show one.",
        "fleet:agents",
        (positional("agent", "show this one only, with all there is to know", nargs="?"),),
        (
            ("hive agents scout", "one agent in detail"),
            ("hive agents --json | jq -r '.items[].name'", "the names, for a script"),
        ),
    ),
    Verb(
        "plan",
        "The hive",
        "Show what the next passes would do; does nothing.",
        "fleet:plan",
        (positional("agent", "of this agent only", nargs="?"),),
    ),
    Verb(
        "why",
        "The hive",
        "Show why an agent does what it does now, and what led to it.",
        "fleet:why",
        (_AGENT,),
        (("hive why smith", "message → turn → tool call → proposal → approval → deployment"),),
    ),
    Verb(
        "events",
        "The hive",
        "Show what happened.",
        "history:events",
        (
            option("--after", about="only events after this id", type=whole),
            option("--agent", about="only of this agent"),
            option("--kind", about="only of this kind"),
            _limit("events", 50),
            switch(
                "-f", "--follow", about="go on with new events as they happen (with --json: one per line)"
            ),
        ),
        (("hive events --follow --agent scout", "watch one agent"),),
    ),
    Verb(
        "audit",
        "The hive",
        "Show decisions, newest first, with the head of their hash chain.",
        "history:audit",
        (option("--before", about="only rows before this id", type=whole), _limit("rows", 50)),
    ),
    STATS,
    *MONEY,
)

_AGENTS = (
    Verb(
        "new",
        "Agents",
        "Propose a new agent from the template.",
        "fleet:new",
        (
            positional("agent", "the new agent's name: a-z, 0-9 and '-', at most 31 characters"),
            option("--role", about="its role (default agent)", choices=("agent", "manager"), default="agent"),
            option("--model", about="its model, if not the template's"),
            option(
                "--allow",
                about="a shell command it may run, as 'git *'; may be repeated",
                action="append",
                default=[],
                metavar="PATTERN",
            ),
            option("--description", about="what it is for", default=""),
            switch("--approve", about="decide it at once: it is your own request"),
            _WAIT,
            DRY_RUN,
        ),
        (
            (
                "hive new scribe --allow 'git *' --description 'keeps the changelog'",
                "waits for your approval",
            ),
            ("hive new scribe --approve --wait", "builds and starts it"),
        ),
        "Without --approve the exit status is 3: it waits for an approval.",
    ),
    Verb("start", "Agents", "Let an agent run.", "fleet:start", (_AGENT, DRY_RUN, _NOTE)),
    Verb(
        "stop",
        "Agents",
        "Stop an agent's container; everything else is kept.",
        "fleet:stop",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb(
        "restart",
        "Agents",
        "Stop and start an agent's container.",
        "fleet:restart",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb(
        "destroy",
        "Agents",
        "Remove an agent; its repository and state are kept.",
        "fleet:destroy",
        (_AGENT, DRY_RUN, YES, _NOTE),
    ),
    Verb(
        "kept",
        "Agents",
        "List destroyed agents whose repository and state are still there.",
        "lifecycle:kept",
    ),
    Verb(
        "revive",
        "Agents",
        "Let a destroyed agent run again from what was kept of it.",
        "lifecycle:revive",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb(
        "purge",
        "Agents",
        "Remove for good what was kept of a destroyed agent.",
        "lifecycle:purge",
        (
            _AGENT,
            option("--confirm", about="its name again, instead of being asked for it", metavar="NAME"),
            DRY_RUN,
            _NOTE,
        ),
        (("hive purge scribe --confirm scribe", "its name and uid range are free again"),),
    ),
    Verb(
        "hold",
        "Agents",
        "Freeze an agent, or all of them; without either, list what is held.",
        "lifecycle:hold",
        (
            positional("agent", "the agent's name", nargs="?"),
            switch("--all", about="the whole hive, agents to come included"),
            DRY_RUN,
            _NOTE,
        ),
        (
            ("hive hold scout --note 'looks odd'", "nothing of scout runs any more, within a second"),
            ("hive hold --all", "nothing of the hive does; restarts and reboots do not change it"),
        ),
    ),
    Verb(
        "release",
        "Agents",
        "Let a held agent, or the hive, go on where it was.",
        "lifecycle:release",
        (
            positional("agent", "the agent's name", nargs="?"),
            switch("--all", about="the hive; what agents are held by themselves stays held"),
            DRY_RUN,
            _NOTE,
        ),
    ),
    Verb(
        "model",
        "Agents",
        "Show or override an agent's model.",
        "fleet:model",
        (
            _AGENT,
            positional("model", "the model from the next turn on", nargs="?"),
            switch("--default", about="take the override away: back to the spec's model"),
            DRY_RUN,
        ),
        (
            ("hive model smith opus", "from the next turn on"),
            ("hive model smith --default", "as its spec says"),
        ),
    ),
    Verb(
        "nap",
        "Agents",
        "Let an agent rest: nothing but something urgent wakes it before.",
        "fleet:nap",
        (_AGENT, positional("time", "how long, 1s to 24h: as 90, 90s, 10m or 2h", type=span), DRY_RUN, _NOTE),
        (("hive nap scout 1h", "an hour; your message, or `hive wake scout`, ends it before"),),
    ),
    Verb(
        "wake",
        "Agents",
        "End an agent's nap, or its wait for a limit to pass.",
        "fleet:wake",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb("cancel", "Agents", "End an agent's running turn.", "fleet:cancel", (_AGENT, DRY_RUN, _NOTE)),
    Verb(
        "compact",
        "Agents",
        "Let an agent note what it must keep, then sum its conversation up, when its turn is over.",
        "fleet:compact",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb(
        "new-session",
        "Agents",
        "Begin a fresh conversation when an agent's turn is over; its notes and files stay.",
        "fleet:new_session",
        (_AGENT, DRY_RUN, _NOTE),
    ),
    Verb(
        "transcript",
        "Agents",
        "Show an agent's turns, as told by its container.",
        "fleet:transcript",
        (_AGENT, _limit("lines", 50), switch("-f", "--follow", about="go on with new lines as they come")),
    ),
    Verb(
        "logs", "Agents", "Show the end of an agent's console.", "fleet:logs", (_AGENT, _limit("lines", 200))
    ),
    Verb("spec", "Agents", "Show the approved settings of the running generation.", "fleet:spec", (_AGENT,)),
    Verb(
        "policy",
        "Agents",
        "Show how an agent's Bash policy decides on a command, and why; runs nothing.",
        "policy:policy",
        (
            _AGENT,
            positional(
                "command", "the command, behind --; as one word if the shell should see it so", nargs="+"
            ),
            option(
                "--folder", about="the folder where the agent gives it (default /state)", default="/state"
            ),
        ),
        (
            ("hive policy scout -- 'git log | head -3'", "exit status 0 if it is allowed, 1 if not"),
            ("hive policy scout -- git -c core.pager=id log", "a launcher, and what would have to name it"),
        ),
    ),
    Verb(
        "rollback",
        "Agents",
        "Run an earlier generation again, under a new number.",
        "lifecycle:rollback",
        (
            _AGENT,
            positional(
                "generation", "its number; without it the last good one before", nargs="?", type=whole
            ),
            _NOW,
            _WAIT,
            DRY_RUN,
            _NOTE,
        ),
        (("hive rollback scout --wait", "back to what ran before, and see it come up"),),
    ),
    Verb(
        "generations", "Agents", "List an agent's generations, newest first.", "fleet:generations", (_AGENT,)
    ),
)

_PROPOSALS = (
    Verb(
        "proposals",
        "Proposals",
        "List proposals, newest first, or show one.",
        "decide:proposals",
        (
            positional("id", "show this one only", nargs="?", type=whole),
            option("--state", about="only in this state, as pending"),
            option("--agent", about="only for this agent"),
            _limit("proposals", 20),
        ),
        (("hive proposals --state pending", "what waits for you"),),
    ),
    Verb(
        "diff",
        "Proposals",
        "Show a proposal's text diff.",
        "decide:diff",
        (
            _ID,
            option(
                "--base",
                about="compare with the running commit, the last approved one, or the proposal before",
                choices=("running", "approved", "proposal"),
                default="running",
            ),
        ),
    ),
    Verb(
        "propose",
        "Proposals",
        "Propose a commit that is in the agent's repository.",
        "decide:propose",
        (
            _AGENT,
            positional("commit", "the full commit id"),
            option("--description", about="what changes and why", default=""),
            switch("--approve", about="show it when it is examined, and approve it"),
            YES,
            _NOW,
            _WAIT,
            DRY_RUN,
        ),
        (("hive propose smith $(git rev-parse HEAD)", "after a push to the hive's repository of smith"),),
        "Without --approve the exit status is 3: it waits for an approval.",
    ),
    Verb(
        "approve",
        "Proposals",
        "Approve exactly what is shown.",
        "decide:approve",
        (_ID, _NOW, _NOTE, YES, _WAIT, DRY_RUN),
        (("hive approve 4 --wait", "shows the changes, asks, and follows the build"),),
        "Shows the settings before and after with their risk, asks on a terminal, and binds the approval to "
        "what was shown: if the proposal has changed meanwhile, nothing happens.",
    ),
    Verb(
        "deny",
        "Proposals",
        "Deny a proposal; the note reaches the proposer.",
        "decide:deny",
        (_ID, _NOTE, DRY_RUN),
        (("hive deny 4 --note 'haiku is enough for this'", "the agent reads the note"),),
    ),
    Verb(
        "cancel-proposal",
        "Proposals",
        "Take a proposal back before it is activated.",
        "decide:cancel",
        (_ID, _NOTE, DRY_RUN),
    ),
    Verb("drafts", "Proposals", "List new agents that the manager is drafting.", "decide:drafts"),
    Verb(
        "discard",
        "Proposals",
        "Discard a draft; the manager is told.",
        "decide:discard",
        (positional("name", "the draft's name"), YES, DRY_RUN, _NOTE),
        (("hive discard scribe --note 'we have one'", "the manager reads the note"),),
    ),
)

VERBS: tuple[Verb, ...] = (*_HIVE, *_AGENTS, *_PROPOSALS, *MESSAGES, *QUESTIONS, *HOST)
