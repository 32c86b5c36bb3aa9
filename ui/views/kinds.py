"""Kinds of events, in the order in which a person meets them; the script refetches by them."""

KINDS = (
    "agent.state",
    "message.sent",
    "message.state",
    "proposal.state",
    "build.log",
    "turn.begin",
    "turn.event",
    "turn.end",
    "question.state",
    "draft.state",
    "audit.row",
    "hive.status",
)
