"""The verbs of `hive` about money."""

from __future__ import annotations

from reconciler.cli.grammar import DRY_RUN, Verb, amount, option, positional, switch

MONEY = (
    Verb(
        "budget",
        "The hive",
        "Show what may be spent today, or add to it.",
        "money:budget",
        (
            positional("agent", "only this agent's", nargs="?"),
            switch("--hive", about="only the hive's own, which all agents share"),
            option(
                "--raise-today",
                about="add so many dollars until midnight; whoever waits for them goes on at once",
                type=amount,
                metavar="USD",
            ),
            DRY_RUN,
            option("--note", about="a note that is kept with the decision", default=""),
        ),
        (
            ("hive budget scout --raise-today 5", "five dollars more for scout, today only"),
            ("hive budget --hive", "what the whole hive has spent of its budget"),
        ),
    ),
    Verb("spending", "The hive", "Show tokens and cost by day, agent and model.", "history:spending"),
)
