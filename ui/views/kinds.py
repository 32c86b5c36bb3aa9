"""Kinds of events to choose from on their page; the stream may carry others, and pages listen to families."""

KINDS = (
    "agent.state",
    "agent.status",
    "agent.hello",
    "agent.created",
    "agent.crashed",
    "turn.begun",
    "turn.event",
    "turn.ended",
    "message.sent",
    "message.read",
    "proposal.state",
    "proposal.changed",
    "build.log",
    "question.asked",
    "question.closed",
    "draft.started",
    "gateway.limited",
    "gateway.refused",
    "audit.row",
)
