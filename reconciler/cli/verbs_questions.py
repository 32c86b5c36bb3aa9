"""The verbs about questions, of the table in `verbs.py`."""

from __future__ import annotations

from reconciler.cli.grammar import DRY_RUN, Verb, option, positional, switch, whole

_ID = positional("id", "the question's number", type=whole)

QUESTIONS: tuple[Verb, ...] = (
    Verb(
        "questions",
        "Messages",
        "List the agents' questions, open ones first, or show one.",
        "questions:questions",
        (
            positional("id", "show this one only, whole", nargs="?", type=whole),
            switch("--open", about="only what waits for an answer"),
            option(
                "--state",
                about="only in this state",
                choices=("open", "ended", "answered", "expired", "cancelled"),
            ),
            option("--agent", about="only of this agent"),
            option("--search", about="only where question, options or answer hold this text", metavar="TEXT"),
            option("--before", about="only ended ones before this id", type=whole),
            option("-n", "--limit", about="at most so many (default 50)", type=whole, default=50),
        ),
        (
            ("hive questions --open", "what agents want to know from you"),
            ("hive questions --agent scout --search mirror", "what was decided about the mirror"),
        ),
    ),
    Verb(
        "answer",
        "Messages",
        "Answer a question: with options, with words, or both.",
        "questions:answer",
        (
            _ID,
            positional("text", "the answer; as '-', or without any option, standard input", nargs="*"),
            option(
                "--option",
                about="the number of an option, the first is 1; may be repeated if the question allows it",
                type=whole,
                action="append",
                default=[],
                metavar="NUMBER",
            ),
            DRY_RUN,
        ),
        (
            ("hive answer 3 'yes, but not before Friday'", "in words"),
            ("hive answer 3 --option 1 --option 3", "the first and the third option"),
        ),
    ),
    Verb(
        "cancel-question",
        "Messages",
        "Cancel a question; the agent is told.",
        "questions:cancel_question",
        (_ID, DRY_RUN),
    ),
)
