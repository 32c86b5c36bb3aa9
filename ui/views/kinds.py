"""Kinds of events to choose from on the page of events; the stream may carry others, pages listen to families."""

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
    "audit.row",
)
